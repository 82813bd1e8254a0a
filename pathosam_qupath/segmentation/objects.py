"""From the maps of a block to its objects: polygons, class sums, sizes.

An object belongs to the block that holds the first pixel of its seed. A block looks at a
margin around itself, and where that does not settle an object (``watershed`` says so), at
a wider one around that object alone, up to ``MAX_MARGIN``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.segmentation.polygons import TOLERANCE, polygons
from pathosam_qupath.segmentation.tiling import Box
from pathosam_qupath.segmentation.watershed import (
    Sides,
    WindowInstances,
    smoothing_reach,
    window_instances,
)

MARGIN = 64
"""Scaled pixels that a block looks around itself: more than a nucleus and its neighbour."""

MAX_MARGIN = 512
"""Scaled pixels around an object after which it is taken as seen; one whose seed alone
reaches farther is no nucleus and is left out."""

Maps = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Objects:
    """n objects, in the row-major order of their anchors.

    Attributes
    ----------
    anchors : (n, 2) int64, x and y of the first pixel of the seed, in scaled pixels.
    polygons : (n,) shapely polygons in slide pixels.
    class_sums : (n, classes) float64, class probabilities summed over the pixels.
    """

    anchors: NDArray[np.int64]
    polygons: NDArray[np.object_]
    class_sums: NDArray[np.float64]


def block_objects(
    inner: Box,
    slide: Box,
    maps_of: Callable[[Box], Maps],
    parameters: Postprocessing,
    *,
    scale: tuple[float, float],
    tolerance: float = TOLERANCE,
    margin: int = MARGIN,
) -> Objects:
    """The objects of a block.

    Parameters
    ----------
    inner : the block; objects whose anchor lies in it are returned.
    slide : all scaled pixels.
    maps_of : maps of a box within the slide, (3 + classes, height, width).
    scale : slide pixels per scaled pixel.
    tolerance : of the polygons, in scaled pixels.
    """
    box = _window(inner.grown(margin), slide, smoothing_reach(parameters))
    maps, found = _look(box, slide, maps_of, parameters)
    anchors = found.anchors + np.array((box.x0, box.y0))
    is_inside = inner.holds(anchors[:, 0], anchors[:, 1])
    parts = [_traced(found, is_inside & found.complete, maps, box, parameters, scale, tolerance)]
    settled: set[tuple[int, int]] = set()
    for point, around in _unsettled(found, is_inside, box, inner):
        wider = _settle(point, around, slide, maps_of, parameters, margin)
        if wider is None:
            continue
        label, found_wider, maps_wider, box_wider = wider
        x, y = found_wider.anchors[label - 1] + np.array((box_wider.x0, box_wider.y0))
        if (int(x), int(y)) not in settled and inner.holds(x, y):
            settled.add((int(x), int(y)))
            wanted = np.arange(1, found_wider.count + 1) == label
            parts.append(
                _traced(found_wider, wanted, maps_wider, box_wider, parameters, scale, tolerance)
            )
    return joined(parts)


def joined(parts: Sequence[Objects]) -> Objects:
    """Objects of several blocks as one, in the order of their anchors."""
    anchors = np.concatenate([part.anchors for part in parts])
    order = np.lexsort((anchors[:, 0], anchors[:, 1]))
    return Objects(
        anchors[order],
        np.concatenate([part.polygons for part in parts])[order],
        np.concatenate([part.class_sums for part in parts])[order],
    )


def _window(box: Box, slide: Box, reach: int) -> Box:
    """A box within the slide, drawn to its border where the smoothing would cross it."""
    return Box(
        slide.x0 if box.x0 - reach <= slide.x0 else box.x0,
        slide.y0 if box.y0 - reach <= slide.y0 else box.y0,
        slide.x1 if box.x1 + reach >= slide.x1 else box.x1,
        slide.y1 if box.y1 + reach >= slide.y1 else box.y1,
    )


def _look(
    box: Box,
    slide: Box,
    maps_of: Callable[[Box], Maps],
    parameters: Postprocessing,
    *,
    flood_edge: bool = True,
) -> tuple[Maps, WindowInstances]:
    """Class maps and objects of a window."""
    outer = box.grown(smoothing_reach(parameters)).clipped(slide)
    open_sides: Sides = (
        box.x0 > slide.x0,
        box.y0 > slide.y0,
        box.x1 < slide.x1,
        box.y1 < slide.y1,
    )
    maps = maps_of(outer)
    found = window_instances(
        maps, parameters, open_sides=open_sides, origin=(box.x0, box.y0), flood_edge=flood_edge
    )
    rows, columns = box.slices(outer)
    return maps[3:, rows, columns], found


def _unsettled(
    found: WindowInstances, is_inside: NDArray[np.bool_], box: Box, inner: Box
) -> Iterator[tuple[tuple[int, int], Box]]:
    """A pixel and the box, on the slide, of each object that needs a wider look."""
    unsure = np.flatnonzero(is_inside & ~found.complete)
    if unsure.size:
        slices = ndimage.find_objects(found.labels, max_label=found.count)
        for i in unsure:
            rows, columns = slices[i]
            x, y = found.anchors[i]
            yield (
                (int(x) + box.x0, int(y) + box.y0),
                Box(
                    columns.start + box.x0,
                    rows.start + box.y0,
                    columns.stop + box.x0,
                    rows.stop + box.y0,
                ),
            )
    for (x, y), (x0, y0, x1, y1) in zip(
        found.cut_seeds.tolist(), found.cut_boxes.tolist(), strict=True
    ):
        around = Box(x0 + box.x0, y0 + box.y0, x1 + box.x0, y1 + box.y0)
        shared = around.clipped(inner)
        if shared.width > 0 and shared.height > 0:
            yield (x + box.x0, y + box.y0), around


def _settle(
    point: tuple[int, int],
    around: Box,
    slide: Box,
    maps_of: Callable[[Box], Maps],
    parameters: Postprocessing,
    margin: int,
) -> tuple[int, WindowInstances, Maps, Box] | None:
    """The object at a pixel of a seed, through windows that widen until it is settled.

    Returns
    -------
    Its label, the window's objects, class maps and box; None when the seed never ends.
    """
    reach = smoothing_reach(parameters)
    while True:
        margin = min(2 * margin, MAX_MARGIN)
        box = _window(around.grown(margin), slide, reach)
        maps, found = _look(box, slide, maps_of, parameters)
        label = int(found.labels[point[1] - box.y0, point[0] - box.x0])
        if label <= found.count and found.complete[label - 1]:
            return label, found, maps, box
        if margin >= MAX_MARGIN:
            break
    if label > found.count:
        return None
    maps, found = _look(box, slide, maps_of, parameters, flood_edge=False)
    label = int(found.labels[point[1] - box.y0, point[0] - box.x0])
    return label, found, maps, box


def _traced(
    found: WindowInstances,
    wanted: NDArray[np.bool_],
    class_maps: Maps,
    box: Box,
    parameters: Postprocessing,
    scale: tuple[float, float],
    tolerance: float,
) -> Objects:
    """The wanted objects of a window that are large enough."""
    sizes = np.bincount(found.labels.ravel(), minlength=found.count + 2)[1 : found.count + 1]
    wanted = wanted & (sizes >= max(parameters.min_size, 1))
    number = np.zeros(found.count + 2, np.int32)
    number[1:-1] = np.where(wanted, np.cumsum(wanted), 0)
    labels = number[found.labels]
    count = int(wanted.sum())
    at = np.flatnonzero(labels)
    owner = labels.ravel()[at]
    sums = np.zeros((count, len(class_maps)))
    for channel, class_map in enumerate(class_maps):
        sums[:, channel] = np.bincount(owner, class_map.ravel()[at], minlength=count + 1)[1:]
    return Objects(
        found.anchors[wanted] + np.array((box.x0, box.y0)),
        polygons(labels, origin=(box.x0, box.y0), scale=scale, tolerance=tolerance),
        sums,
    )
