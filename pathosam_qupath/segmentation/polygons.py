"""Label images to polygons that QuPath, JTS and shapely all accept.

Each object's outer border is followed once (OpenCV's border following, pixel by pixel),
and drawn through the midpoints of the pixel sides that part it from the outside. That
ring never touches itself, whatever the mask, and its area differs from the mask's by half
a pixel. It is then thinned (Douglas–Peucker) and scaled about its centroid so that its
area is the mask's. Vertices are rounded to float32, which QuPath stores, before anything
is checked or measured.

All arithmetic starts from the object's own corner: a polygon does not depend on where the
label image was cut out of the slide.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.segmentation.watershed import boxes_around

TOLERANCE = 0.5
"""Largest distance in pixels between the border and its thinned ring."""

_STEPS = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)])
"""The eight steps (x, y) in the order in which the border is searched: east, north-east, …"""


@dataclass(frozen=True, eq=False)
class Rings:
    """Closed rings of many objects in one array; the first vertex is not repeated.

    Attributes
    ----------
    points : (m, 2) int32 x, y in half pixels from ``corners``.
    starts : (n + 1,) int64, ring i is ``points[starts[i]:starts[i + 1]]``.
    corners : (n, 2) int64, x and y of the corner of each object's box, in pixels.
    """

    points: NDArray[np.int32]
    starts: NDArray[np.int64]
    corners: NDArray[np.int64]


def polygons(
    labels: NDArray[np.int32],
    *,
    origin: tuple[int, int] = (0, 0),
    scale: tuple[float, float] = (1.0, 1.0),
    tolerance: float = TOLERANCE,
    within: tuple[int, int] | None = None,
) -> NDArray[np.object_]:
    """One valid polygon per label.

    Parameters
    ----------
    labels : (height, width) int32; every label of 1…n must be there. Of an object in
        several pieces (8-connected) the largest counts; holes are filled.
    origin : x and y, in pixels of the label image's resolution, of its first pixel.
    scale : slide pixels per pixel of the label image, in x and y.
    tolerance : see ``TOLERANCE``.
    within : width and height of the slide, in pixels of the label image's resolution;
        vertices beyond them, by a fraction of a pixel, are moved to the border.

    Returns
    -------
    polygons : (n,) shapely polygons in slide pixels (a pixel's corner is an integer),
        valid, without holes, whose coordinates are exact in float32.
    """
    rings = outlines(labels)
    count = len(rings.corners)
    if count == 0:
        return np.zeros(0, object)
    target = np.abs(_doubled_areas(rings)) / 8 + 0.5
    bounds = (np.inf, np.inf) if within is None else within
    thin = _thinned(rings, tolerance)
    result = _polygons(thin, target, origin, scale, bounds)
    wrong = np.flatnonzero(~shapely.is_valid(result))
    if wrong.size:
        result[wrong] = _polygons(_subset(rings, wrong), target[wrong], origin, scale, bounds)
        for i in wrong[~shapely.is_valid(result[wrong])]:
            result[i] = _repaired(result[i])
    return result


def outlines(labels: NDArray[np.int32]) -> Rings:
    """Rings through the midpoints of the pixel sides around each label's largest piece."""
    chains: list[NDArray[np.int32]] = []
    corners: list[tuple[int, int]] = []
    at = np.flatnonzero(labels != 0)
    owner = labels.ravel()[at]
    boxes = boxes_around(at, owner, int(owner.max(initial=0)) + 1, labels.shape[1])
    for label, (x0, y0, x1, y1) in enumerate(boxes[1:].tolist(), start=1):
        if not x1:
            raise ValueError(f"label {label} has no pixel")
        crop = (labels[y0:y1, x0:x1] == label).view(np.uint8)
        found, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        chains.append(found[0] if len(found) == 1 else max(found, key=_piece_size))
        corners.append((x0, y0))
    if not chains:
        return Rings(np.zeros((0, 2), np.int32), np.zeros(1, np.int64), np.zeros((0, 2), np.int64))
    lengths = np.array([len(chain) for chain in chains], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    pixels = np.concatenate(chains)[:, 0].astype(np.int32)
    return _around(Rings(pixels, starts, np.array(corners, np.int64)))


def _piece_size(chain: NDArray[np.int32]) -> tuple[float, int, int, int]:
    """Area, and a rule for pieces of equal area: the longer border, then the first."""
    x, y = chain[:, 0].min(axis=0)
    return cv2.contourArea(chain), len(chain), -int(y), -int(x)


def _sides_table() -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For a step into a border pixel and one out of it, the sides passed in between.

    The search for the next border pixel turns from the way back to the way out; each of
    the four side directions that it passes is outside.
    """
    counts = np.zeros((9, 9), np.int64)
    sides = np.zeros((9, 9, 4, 2), np.int32)
    for into in range(8):
        for out in range(8):
            back = into + 4
            turns = (out - back - 1) % 8 + 1
            passed = [d % 8 for d in range(back + 1, back + turns) if d % 2 == 0]
            counts[into, out] = len(passed)
            sides[into, out, : len(passed)] = _STEPS[passed] if passed else 0
    counts[8, 8] = 4
    sides[8, 8] = _STEPS[[0, 2, 4, 6]]
    return counts, sides


_SIDE_COUNTS, _SIDES = _sides_table()
_STEP_CODES = np.full(9, 8, np.int64)
_STEP_CODES[(_STEPS[:, 1] + 1) * 3 + _STEPS[:, 0] + 1] = np.arange(8)


def _around(chains: Rings) -> Rings:
    """From chains of border pixels to rings of side midpoints, in half pixels."""
    pixels, starts = chains.points, chains.starts
    following = np.arange(1, len(pixels) + 1)
    following[starts[1:] - 1] = starts[:-1]
    step = pixels[following] - pixels
    out = _STEP_CODES[(step[:, 1] + 1) * 3 + step[:, 0] + 1]
    into = np.empty_like(out)
    into[following] = out
    n_sides = _SIDE_COUNTS[into, out]
    owner = np.repeat(np.arange(len(pixels)), n_sides)
    ends = np.concatenate([[0], np.cumsum(n_sides)])
    nth = np.arange(len(owner)) - ends[owner]
    points = 2 * pixels[owner] + 1 + _SIDES[into[owner], out[owner], nth]
    return Rings(points.astype(np.int32), ends[starts], chains.corners)


def _thinned(rings: Rings, tolerance: float) -> Rings:
    """Douglas–Peucker on each ring; a ring that would lose its area is kept whole."""
    points, starts = rings.points, rings.starts.tolist()
    thin: list[NDArray[np.int32]] = []
    for i in range(len(starts) - 1):
        ring = points[starts[i] : starts[i + 1]]
        fewer = np.asarray(cv2.approxPolyDP(ring, 2 * tolerance, True)[:, 0], np.int32)
        thin.append(fewer if len(fewer) > 2 else ring)
    lengths = np.array([len(ring) for ring in thin], np.int64)
    return Rings(np.concatenate(thin), np.concatenate([[0], np.cumsum(lengths)]), rings.corners)


def _subset(rings: Rings, wanted: NDArray[np.int64]) -> Rings:
    """The rings at the wanted places."""
    parts = [rings.points[rings.starts[i] : rings.starts[i + 1]] for i in wanted]
    lengths = np.array([len(part) for part in parts], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Rings(np.concatenate(parts), starts, rings.corners[wanted])


def _doubled_areas(rings: Rings) -> NDArray[np.int64]:
    """Twice the signed area of each ring, in squared half pixels (exact)."""
    return np.add.reduceat(_crosses(rings), rings.starts[:-1])


def _crosses(rings: Rings) -> NDArray[np.int64]:
    following = _following(rings)
    x, y = rings.points[:, 0].astype(np.int64), rings.points[:, 1].astype(np.int64)
    return x * y[following] - x[following] * y


def _following(rings: Rings) -> NDArray[np.int64]:
    """Index of the vertex after each vertex."""
    following = np.arange(1, len(rings.points) + 1)
    following[rings.starts[1:] - 1] = rings.starts[:-1]
    return following


def _polygons(
    rings: Rings,
    target: NDArray[np.float64],
    origin: tuple[int, int],
    scale: tuple[float, float],
    within: tuple[float, float],
) -> NDArray[np.object_]:
    """Polygons in slide pixels from rings in half pixels, scaled to the target areas."""
    cross = _crosses(rings)
    doubled = np.add.reduceat(cross, rings.starts[:-1])
    has_area = doubled != 0
    divisor = np.where(has_area, 3 * doubled, 1)[:, None]
    both = rings.points.astype(np.int64) + rings.points[_following(rings)]
    moment = np.add.reduceat(both * cross[:, None], rings.starts[:-1], axis=0)
    center = moment / divisor
    factor = np.sqrt(np.where(has_area, 8 * target / np.abs(np.where(has_area, doubled, 1)), 1))
    ring = np.repeat(np.arange(len(target)), np.diff(rings.starts))
    local = (center[ring] + (rings.points - center[ring]) * factor[ring, None]) / 2
    corner = rings.corners + np.array(origin, np.int64)
    placed = np.clip(local + corner[ring], 0, within)
    points = (placed * np.array(scale)).astype(np.float32).astype(np.float64)
    closing = rings.starts[1:]
    closed = np.insert(points, closing, points[rings.starts[:-1]], axis=0)
    of_ring = np.insert(ring, closing, np.arange(len(target)))
    return np.asarray(shapely.polygons(shapely.linearrings(closed, indices=of_ring)))


def _repaired(polygon: BaseGeometry) -> BaseGeometry:
    """The largest valid part of a polygon, without holes, exact in float32.

    Reached only where rounding far from the slide's origin folds a sliver over.
    """
    parts = shapely.get_parts(shapely.make_valid(polygon))
    parts = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    if len(parts):
        largest = shapely.Polygon(parts[np.argmax(shapely.area(parts))].exterior)
        rounded = shapely.transform(largest, lambda xy: xy.astype(np.float32).astype(np.float64))
        if rounded.is_valid:
            return rounded
    return polygon.convex_hull
