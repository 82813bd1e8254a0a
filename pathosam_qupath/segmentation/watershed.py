"""Maps to instances: PathoSAM's seeded watershed, whole or through a window.

The steps are those of micro-sam's ``InstanceSegmentationWithDecoder`` (torch_em's
``watershed_from_center_and_boundary_distances``): smooth the three maps, threshold the
foreground, take the 8-connected pieces where both distances are small as seeds, and
flood the boundary distance from them, 4-connected, inside the foreground.

A slide does not fit into memory, so the flood runs in windows. A pixel that a window's
edge could have decided otherwise is recognised, not guessed: the edge is flooded too, as
a label of its own, before anything else. The flood gives a pixel the label of the
neighbour that is reached first, and the edge reaches every pixel at least as early as
whatever lies outside could. So a pixel that still belongs to a seed belongs to it in the
flood of the whole slide, and an object that nowhere touches the edge's label is complete.
This holds when no two heights are equal; equal ones are therefore told apart by a hash of
their position on the slide, below the precision of the maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from pathosam_qupath.model.interface import Postprocessing

TRUNCATE = 3.0
"""Gaussians end at three sigma, as in the reference's filters."""

Sides = tuple[bool, bool, bool, bool]
"""Left, top, right, bottom."""

CLOSED: Sides = (False, False, False, False)
"""A window whose four sides are borders of the slide."""


@dataclass(frozen=True, eq=False)
class WindowInstances:
    """Objects of one window.

    Attributes
    ----------
    labels : (height, width) int32, 0 for background. The label ``count + 1`` marks what
        belongs to objects that reach in from outside (the edge's label).
    count : number of seeds that lie wholly in the window, labelled 1…count.
    anchors : (count, 2) int64, x and y of each seed's first pixel in row-major order, in
        the window's coordinates. Anchors identify an object on the slide.
    complete : (count,) bool, whether the object is what the whole slide would give.
    seed_boxes : (count, 4) int64, x0, y0, x1, y1 around each seed.
    cut_boxes : (n, 4) int64, the same of the seeds that the edge cuts, as far as seen.
    """

    labels: NDArray[np.int32]
    count: int
    anchors: NDArray[np.int64]
    complete: NDArray[np.bool_]
    seed_boxes: NDArray[np.int64]
    cut_boxes: NDArray[np.int64]


def instances(
    maps: NDArray[np.float32], parameters: Postprocessing | None = None
) -> NDArray[np.int32]:
    """Instances of an image whose maps are there as a whole.

    Parameters
    ----------
    maps : (3 or more, height, width) float32: foreground, centre and boundary distance.
    parameters : thresholds, smoothing and smallest area; PathoSAM's where None.

    Returns
    -------
    labels : (height, width) int32, 0 for background, 1…n in the order of the seeds.
    """
    parameters = parameters or Postprocessing()
    found = window_instances(maps, parameters, open_sides=CLOSED)
    if parameters.min_size <= 0:
        return found.labels
    areas = np.bincount(found.labels.ravel(), minlength=found.count + 1)
    kept = areas >= parameters.min_size
    kept[0] = False
    renumbered = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return np.asarray(renumbered[found.labels], np.int32)


def smoothing_reach(parameters: Postprocessing) -> int:
    """Pixels that the smoothing looks to each side."""
    sigma = max(parameters.foreground_smoothing, parameters.distance_smoothing, 0.0)
    return int(TRUNCATE * sigma + 0.5)


def window_instances(
    maps: NDArray[np.float32],
    parameters: Postprocessing,
    *,
    open_sides: Sides,
    origin: tuple[int, int] = (0, 0),
    flood_edge: bool = True,
) -> WindowInstances:
    """Objects of a window, each with the knowledge whether the window holds all of it.

    Parameters
    ----------
    maps : (3 or more, height, width) float32, of the window and, on open sides, of
        ``smoothing_reach`` more pixels, which the result leaves out.
    parameters : thresholds and smoothing; ``min_size`` is not applied here.
    open_sides : the sides beyond which the slide goes on.
    origin : x and y of the result's first pixel on the slide.
    flood_edge : False takes the objects as the window alone gives them; ``complete`` is
        then True throughout. Seeds that an open side cuts are left out either way.

    Returns
    -------
    The objects, before any filter by size.
    """
    foreground, center, boundary = _smoothed(maps, parameters, open_sides)
    mask = foreground > parameters.foreground_threshold
    is_seed = center < parameters.center_distance_threshold
    is_seed &= boundary < parameters.boundary_distance_threshold
    is_seed &= mask
    pieces, n_pieces = ndimage.label(is_seed, structure=np.ones((3, 3), bool), output=np.int32)
    edge = _edge(mask.shape, open_sides)
    is_cut = np.zeros(n_pieces + 1, bool)
    is_cut[pieces[edge]] = True
    is_cut[0] = False
    count = int(n_pieces - is_cut.sum())
    whole = ~is_cut
    whole[0] = False
    edge_label = np.int32(count + 1)
    number = np.where(whole, np.cumsum(whole), np.where(is_cut, edge_label, 0)).astype(np.int32)
    markers = number[pieces]
    heights = _distinct_heights(boundary, origin)
    if flood_edge:
        edge &= mask
        markers[edge] = edge_label
        heights[edge] = -1.0
    labels: NDArray[np.int32] = watershed(heights, markers, mask=mask)  # type: ignore[no-untyped-call]
    complete = np.ones(count, bool)
    if flood_edge:
        complete[_neighbours(labels, edge_label) - 1] = False
    first = _first_pixels(pieces, n_pieces)
    width = mask.shape[1]
    anchors = np.stack([first % width, first // width], axis=1)
    boxes = _boxes(pieces, n_pieces)
    return WindowInstances(
        labels=labels,
        count=count,
        anchors=anchors[whole[1:]],
        complete=complete,
        seed_boxes=boxes[whole[1:]],
        cut_boxes=boxes[is_cut[1:]],
    )


def _smoothed(
    maps: NDArray[np.float32], parameters: Postprocessing, open_sides: Sides
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Foreground, centre and boundary distance after smoothing, without the reach."""
    reach = smoothing_reach(parameters)
    left, top, right, bottom = (reach if is_open else 0 for is_open in open_sides)
    height, width = maps.shape[1:]
    inside = (slice(top, height - bottom), slice(left, width - right))

    def smooth(channel: int, sigma: float) -> NDArray[np.float32]:
        smoothed = maps[channel]
        if sigma > 0:
            smoothed = ndimage.gaussian_filter(smoothed, sigma, mode="mirror", truncate=TRUNCATE)
        return np.asarray(smoothed[inside], np.float32)

    return (
        smooth(0, parameters.foreground_smoothing),
        smooth(1, parameters.distance_smoothing),
        smooth(2, parameters.distance_smoothing),
    )


def _edge(shape: tuple[int, ...], open_sides: Sides) -> NDArray[np.bool_]:
    """The outermost pixels at open sides."""
    edge = np.zeros(shape, bool)
    left, top, right, bottom = open_sides
    edge[:, :1] |= left
    edge[:1, :] |= top
    edge[:, -1:] |= right
    edge[-1:, :] |= bottom
    return edge


def _distinct_heights(
    boundary: NDArray[np.float32], origin: tuple[int, int]
) -> NDArray[np.float64]:
    """Heights in the order of ``boundary``, ties decided by the position on the slide.

    A float32 leaves the lower 29 bits of a float64 empty: the hash goes there, so two
    different distances keep their order whatever the hash.
    """
    height, width = boundary.shape
    by_column = _hash(np.arange(origin[0], origin[0] + width), 0x9E3779B97F4A7C15)
    by_row = _hash(np.arange(origin[1], origin[1] + height), 0xC2B2AE3D27D4EB4F)
    heights = np.maximum(boundary, 0).astype(np.float64)
    bits = heights.view(np.uint64)
    bits |= by_row[:, None] ^ by_column[None, :]
    return heights


def _hash(positions: NDArray[np.int64], salt: int) -> NDArray[np.uint64]:
    """29 well-mixed bits per position (the finaliser of splitmix64)."""
    z = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(salt)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(35), np.uint64)


def _neighbours(labels: NDArray[np.int32], label: np.int32) -> NDArray[np.int32]:
    """Labels, background excepted, that are 4-adjacent to pixels of ``label``."""
    is_label = labels == label
    rows = np.flatnonzero(is_label.any(axis=1))
    if rows.size == 0:
        return np.zeros(0, np.int32)
    touching = [
        labels[1:][is_label[:-1]],
        labels[:-1][is_label[1:]],
        labels[:, 1:][is_label[:, :-1]],
        labels[:, :-1][is_label[:, 1:]],
    ]
    found = np.unique(np.concatenate(touching))
    return np.asarray(found[(found != 0) & (found != label)], np.int32)


def _first_pixels(pieces: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Row-major index of the first pixel of each of the labels 1…count."""
    at = np.flatnonzero(pieces)
    first = np.zeros(count + 1, np.int64)
    first[pieces.ravel()[at[::-1]]] = at[::-1]
    return first[1:]


def _boxes(pieces: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Boxes x0, y0, x1, y1 of the labels 1…count."""
    boxes = [
        (box[1].start, box[0].start, box[1].stop, box[0].stop)
        for box in ndimage.find_objects(pieces)
    ]
    return np.array(boxes, np.int64).reshape(count, 4)
