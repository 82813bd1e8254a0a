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

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from pathosam_qupath.model.interface import Postprocessing

TRUNCATE = 3.0
"""Gaussians end at three sigma, as in the reference's filters."""

_AT_ONCE = 1 << 13
"""Pixels flooded at once, about: a call takes as long as 2000, a long queue more for each."""

_VECTOR = 64
"""More pixels than any processor takes at a time."""

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
    seeds = _seeds(is_seed)
    del maps, foreground, center, is_seed  # the flood needs the memory
    edge = _edge(mask.shape, open_sides)
    is_cut = np.zeros(seeds.count + 1, bool)
    is_cut[seeds.owner[edge.ravel()[seeds.at]]] = True
    count = int(seeds.count - is_cut.sum())
    whole = ~is_cut
    whole[0] = False
    edge_label = np.int32(count + 1)
    number = np.where(whole, np.cumsum(whole), np.where(is_cut, edge_label, 0)).astype(np.int32)
    markers = np.zeros(mask.shape, np.int32)
    markers.ravel()[seeds.at] = number[seeds.owner]
    edge &= mask & flood_edge
    markers[edge] = edge_label
    labels = _flooded(boundary, markers, mask, edge, origin)
    complete = np.ones(count, bool)
    if flood_edge:
        complete[_neighbours(labels, edge_label) - 1] = False
    width = mask.shape[1]
    anchors = np.stack([seeds.first % width, seeds.first // width], axis=1)
    return WindowInstances(
        labels=labels,
        count=count,
        anchors=anchors[whole[1:]],
        complete=complete,
        seed_boxes=seeds.boxes[whole[1:]],
        cut_boxes=seeds.boxes[is_cut[1:]],
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
        return (_gaussian(maps[channel], sigma) if sigma > 0 else maps[channel])[inside]

    return (
        smooth(0, parameters.foreground_smoothing),
        smooth(1, parameters.distance_smoothing),
        smooth(2, parameters.distance_smoothing),
    )


def _gaussian(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """A Gaussian that ends at ``TRUNCATE`` sigma; borders are mirrored.

    The sums are made by vectors of pixels, and by single ones at the end of a row, which may
    round otherwise. So the ends of rows are made longer: a pixel then has the same value in
    every window that holds what it is made of.
    """
    radius = int(TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    border = cv2.BORDER_REFLECT_101

    def smooth(part: NDArray[np.float32]) -> NDArray[np.float32]:
        whole = cv2.sepFilter2D(part, cv2.CV_32F, kernel, kernel, borderType=border)
        return np.asarray(whole, np.float32)

    width = values.shape[1]
    begin = max(0, width - _VECTOR - radius)
    longer = cv2.copyMakeBorder(values[:, begin:], 0, 0, 0, _VECTOR, border)
    ends = smooth(np.asarray(longer, np.float32))
    if begin == 0:
        return ends[:, :width]
    smoothed = smooth(values)
    smoothed[:, width - _VECTOR :] = ends[:, radius : radius + _VECTOR]
    return smoothed


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
    boundary: NDArray[np.float32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    origin: tuple[int, int],
) -> NDArray[np.float64]:
    """Heights of pixels in the order of ``boundary``, ties decided by the position on the slide.

    A float32 leaves the lower 29 bits of a float64 empty: the hash goes there, so two
    different distances keep their order whatever the hash.
    """
    height, width = boundary.shape
    by_column = _hash(np.arange(origin[0], origin[0] + width), 0x9E3779B97F4A7C15)
    by_row = _hash(np.arange(origin[1], origin[1] + height), 0xC2B2AE3D27D4EB4F)
    heights = np.maximum(boundary[rows, columns], 0).astype(np.float64)
    bits = heights.view(np.uint64)
    bits |= by_row[rows] ^ by_column[columns]
    return heights


def _hash(positions: NDArray[np.int64], salt: int) -> NDArray[np.uint64]:
    """29 well-mixed bits per position (the finaliser of splitmix64)."""
    z = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(salt)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(35), np.uint64)


def _neighbours(labels: NDArray[np.int32], label: np.int32) -> NDArray[np.int32]:
    """Labels, background excepted, that are 4-adjacent to pixels of ``label``."""
    height, width = labels.shape
    rows, columns = np.divmod(np.flatnonzero(labels == label), width)
    touching = [
        labels[np.minimum(rows + 1, height - 1), columns],
        labels[np.maximum(rows - 1, 0), columns],
        labels[rows, np.minimum(columns + 1, width - 1)],
        labels[rows, np.maximum(columns - 1, 0)],
    ]
    found = np.unique(np.concatenate(touching))
    return np.asarray(found[(found != 0) & (found != label)], np.int32)


@dataclass(frozen=True, eq=False)
class _Seeds:
    """8-connected pieces, labelled 1…count in the row-major order of their first pixels.

    Attributes
    ----------
    at, owner : (m,) row-major index and label of each pixel of a piece.
    first : (count,) index of each piece's first pixel.
    boxes : (count, 4) x0, y0, x1, y1 around each piece.
    """

    count: int
    at: NDArray[np.int64]
    owner: NDArray[np.int32]
    first: NDArray[np.int64]
    boxes: NDArray[np.int64]


def _seeds(is_seed: NDArray[np.bool_]) -> _Seeds:
    # Nuclei are few pixels of a window: what is known of each of their pixels is much less
    # than a number for every pixel, or the statistics of OpenCV, which look at all of them.
    n, found = cv2.connectedComponents(is_seed.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    at = np.flatnonzero(is_seed)
    piece = found.ravel()[at]
    first = np.zeros(n, np.int64)
    first[piece[::-1]] = at[::-1]
    order = 1 + np.argsort(first[1:])
    number = np.zeros(n, np.int32)
    number[order] = np.arange(1, n)
    owner = number[piece]
    boxes = boxes_around(at, owner, n, is_seed.shape[1])
    return _Seeds(n - 1, at, owner, first[order], boxes[1:])


def boxes_around(
    at: NDArray[np.int64], owner: NDArray[np.int32], count: int, width: int
) -> NDArray[np.int64]:
    """Boxes x0, y0, x1, y1 around the pixels of each owner 0…count - 1.

    Parameters
    ----------
    at : (m,) row-major index of each pixel in an image of that width, ``owner`` whose it is.

    Returns
    -------
    boxes : (count, 4); x1 is 0 where an owner has no pixel.
    """
    rows, columns = np.divmod(at, width)
    boxes = np.zeros((count, 4), np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    np.minimum.at(boxes[:, 0], owner, columns)
    np.minimum.at(boxes[:, 1], owner, rows)
    np.maximum.at(boxes[:, 2], owner, columns + 1)
    np.maximum.at(boxes[:, 3], owner, rows + 1)
    return boxes


def _flooded(
    boundary: NDArray[np.float32],
    markers: NDArray[np.int32],
    mask: NDArray[np.bool_],
    first: NDArray[np.bool_],
    origin: tuple[int, int],
) -> NDArray[np.int32]:
    """The flood of the boundary distance from the markers, inside the mask.

    A connected piece of the mask that holds one marker is that marker's, whatever the
    distances; most nuclei are such pieces. Only those with several have to be flooded. Since
    no flood leaves its piece, they are cut out and put beside each other, some at a time.

    Parameters
    ----------
    first : pixels that flood before all others.
    origin : x and y of the first pixel on the slide.
    """
    count, pieces = cv2.connectedComponents(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    inside = np.flatnonzero(mask)
    owner, marker = pieces.ravel()[inside], markers.ravel()[inside]
    del pieces
    marked = marker != 0
    one = np.zeros(count, np.int32)
    one[owner[marked]] = marker[marked]
    several = np.zeros(count, bool)
    several[owner[marked & (marker != one[owner])]] = True
    one[several] = 0
    labels: NDArray[np.int32] = np.zeros(mask.shape, np.int32)
    labels.ravel()[inside] = one[owner]
    contested = np.flatnonzero(several)
    if not contested.size:
        return labels
    fought = several[owner]
    at, piece, marker = inside[fought], owner[fought], marker[fought]
    del inside, owner, fought
    width = mask.shape[1]
    boxes = boxes_around(at, piece, count, width)[contested]
    group, corners, shapes = _pictures(boxes, mask.shape)
    # Of each contested piece its picture, and how far it is moved there.
    picture = np.zeros(count, np.min_scalar_type(len(shapes)))
    moved = np.zeros((count, 2), np.int64)
    picture[contested], moved[contested] = group, corners - boxes[:, :2]
    order = np.argsort(picture[piece], kind="stable")
    at, piece, marker = at[order], piece[order], marker[order]
    rows, columns = np.divmod(at, width)
    heights = _distinct_heights(boundary, rows, columns, origin)
    heights[first.ravel()[at]] = -1.0
    rows += moved[piece, 1]
    columns += moved[piece, 0]
    ends = np.cumsum(np.bincount(picture[piece], minlength=len(shapes)))
    for shape, start, end in zip(shapes, [0, *ends], ends, strict=False):
        there = rows[start:end] * shape[1] + columns[start:end]
        high, markers, mask = (np.zeros(shape, kind) for kind in (np.float64, np.int32, bool))
        high.ravel()[there] = heights[start:end]
        markers.ravel()[there] = marker[start:end]
        mask.ravel()[there] = True
        flooded = watershed(high, markers, mask=mask)  # type: ignore[no-untyped-call]
        labels.ravel()[at[start:end]] = flooded.ravel()[there]
    return labels


def _pictures(
    boxes: NDArray[np.int64], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[tuple[int, ...]]]:
    """Pictures on which pieces are flooded, some pieces on each.

    Parameters
    ----------
    boxes : (n, 4) x0, y0, x1, y1 around each, in a window of a ``shape``.

    Returns
    -------
    group : (n,) picture of each, and ``corners`` (n, 2), x and y of its box there.
    shapes : of the pictures.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    areas = (sizes + 1).prod(axis=1)
    if areas.sum() > 2 * math.prod(shape):  # boxes that overlap that much stay where they are
        return np.zeros(len(boxes), np.int64), boxes[:, :2], [shape]
    group = np.unique(np.cumsum(areas) // _AT_ONCE, return_inverse=True)[1]
    corners = np.empty_like(sizes)
    shapes: list[tuple[int, ...]] = []
    for number in range(int(group[-1]) + 1):
        corners[group == number], on = _side_by_side(sizes[group == number])
        shapes.append(on)
    return group, corners, shapes


def _side_by_side(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Places for boxes on one picture, in rows, with a pixel between them.

    Parameters
    ----------
    sizes : (n, 2) width and height.

    Returns
    -------
    corners : (n, 2) x and y of each.
    shape : height and width of the picture.
    """
    larger = sizes + 1
    width = max(int(larger[:, 0].max()), math.isqrt(int(larger.prod(axis=1).sum())))
    corners = np.empty_like(sizes)
    x = y = row_height = 0
    order = np.argsort(-sizes[:, 1], kind="stable")
    for box, (w, h) in zip(order.tolist(), larger[order].tolist(), strict=True):
        if x + w > width:
            x, y = 0, y + row_height
        if x == 0:
            row_height = h
        corners[box] = x, y
        x += w
    return corners, (y + row_height, width)
