"""From the maps of a block to its objects: polygons, class sums, sizes.

An object belongs to the block that holds the first pixel of its seed. A block looks at a
margin around itself, and where that does not settle an object (``watershed`` says so), at
a wider one around each object that is left, or around several that are near each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.segmentation.polygons import TOLERANCE, polygons
from pathosam_qupath.segmentation.tiling import Box
from pathosam_qupath.segmentation.watershed import (
    Sides,
    WindowInstances,
    smoothing_reach,
    window_instances,
)

MARGINS = (64, 180)
"""Scaled pixels around a block, then around what is left. The first is more than a nucleus
and its neighbour. What the last leaves open is a sheet of foreground with hardly a seed:
there objects are taken as that window shows them."""

LARGEST_SEED = 160
"""Scaled pixels. A seed that is longer in x or y is no nucleus and left out: no margin
would hold it for sure."""

Maps = NDArray[np.float32]

ClassesOf = Callable[[Box, NDArray[np.int64]], Maps]
"""(classes, n) probabilities of the n pixels of a box that have these row-major indices."""


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
    classes_of: ClassesOf,
    parameters: Postprocessing,
    *,
    scale: tuple[float, float],
    tolerance: float = TOLERANCE,
) -> Objects:
    """The objects of a block.

    Parameters
    ----------
    inner : the block; objects whose anchor lies in it are returned.
    slide : all scaled pixels.
    maps_of : foreground, centre and boundary distance of a box within the slide.
    classes_of : class probabilities of pixels of a box.
    scale : slide pixels per scaled pixel.
    tolerance : of the polygons, in scaled pixels.
    """
    reach = smoothing_reach(parameters)
    targets = [inner]
    done = np.zeros(0, np.int64)
    parts: list[Objects] = []

    def take(found: WindowInstances, box: Box, target: Box, *, all_: bool) -> None:
        nonlocal done
        anchors = found.anchors + np.array((box.x0, box.y0))
        keys = anchors[:, 1] * slide.x1 + anchors[:, 0]
        wanted = target.holds(anchors[:, 0], anchors[:, 1]) & ~np.isin(keys, done)
        if not all_:
            wanted &= found.complete
        done = np.concatenate([done, keys[wanted]])
        parts.append(_traced(found, wanted, classes_of, box, slide, parameters, scale, tolerance))

    for margin in MARGINS:
        left: list[Box] = []
        for target in targets:
            box = _window(target.grown(margin), slide, reach)
            found = _look(box, slide, maps_of, parameters)
            take(found, box, inner, all_=False)
            left += _left(found, box, target)
        if not left:
            return joined(parts)
        targets = _together(left, MARGINS[-1])
    for target in targets:
        box = _window(target.grown(MARGINS[-1]), slide, reach)
        found = _look(box, slide, maps_of, parameters, flood_edge=False)
        take(found, box, target, all_=True)
    return joined(parts)


def class_sums(probabilities: Maps, owner: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """Class probabilities summed over the pixels of objects 1…count: (count, classes).

    Parameters
    ----------
    probabilities : (classes, n) of n pixels, ``owner`` whose they are.
    """
    sums = np.zeros((count, len(probabilities)))
    for channel, values in enumerate(probabilities):
        sums[:, channel] = np.bincount(owner, values, minlength=count + 1)[1:]
    return sums


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
) -> WindowInstances:
    """The objects of a window."""
    outer = box.grown(smoothing_reach(parameters)).clipped(slide)
    open_sides: Sides = (
        box.x0 > slide.x0,
        box.y0 > slide.y0,
        box.x1 < slide.x1,
        box.y1 < slide.y1,
    )
    return window_instances(
        maps_of(outer),
        parameters,
        open_sides=open_sides,
        origin=(box.x0, box.y0),
        flood_edge=flood_edge,
    )


def _left(found: WindowInstances, box: Box, target: Box) -> list[Box]:
    """The parts of the target that seeds take up whose objects the window does not settle."""
    seeds = np.concatenate([found.seed_boxes[~found.complete], found.cut_boxes])
    seeds = seeds + np.array((box.x0, box.y0) * 2)
    low = np.maximum(seeds[:, :2], (target.x0, target.y0))
    high = np.minimum(seeds[:, 2:], (target.x1, target.y1))
    inside = (low < high).all(axis=1)
    return [Box(*sides) for sides in np.concatenate([low, high], axis=1)[inside].tolist()]


def _together(boxes: list[Box], margin: int) -> list[Box]:
    """Boxes around those that are better looked at in one window than in several.

    Windows become one where that is not larger than they are together.
    """
    targets: list[Box] = []
    for box in boxes:
        joining = box
        while True:
            area = _area(joining.grown(margin))
            near = next(
                (
                    other
                    for other in targets
                    if _area(_around(joining, other).grown(margin))
                    <= area + _area(other.grown(margin))
                ),
                None,
            )
            if near is None:
                break
            targets.remove(near)
            joining = _around(joining, near)
        targets.append(joining)
    everything = reduce(_around, targets)
    separate = sum(_area(target.grown(margin)) for target in targets)
    return [everything] if _area(everything.grown(margin)) <= separate else targets


def _around(one: Box, other: Box) -> Box:
    return Box(
        min(one.x0, other.x0),
        min(one.y0, other.y0),
        max(one.x1, other.x1),
        max(one.y1, other.y1),
    )


def _area(box: Box) -> int:
    return box.width * box.height


def _traced(
    found: WindowInstances,
    wanted: NDArray[np.bool_],
    classes_of: ClassesOf,
    box: Box,
    slide: Box,
    parameters: Postprocessing,
    scale: tuple[float, float],
    tolerance: float,
) -> Objects:
    """The wanted objects of a window that have the size of a nucleus."""
    at = np.flatnonzero(found.labels != 0)
    owner = found.labels.ravel()[at]
    sizes = np.bincount(owner, minlength=found.count + 2)[1 : found.count + 1]
    wanted = wanted & (sizes >= max(parameters.min_size, 1))
    wanted &= (found.seed_boxes[:, 2:] - found.seed_boxes[:, :2] <= LARGEST_SEED).all(axis=1)
    number = np.zeros(found.count + 2, np.int32)
    number[1:-1] = np.where(wanted, np.cumsum(wanted), 0)
    owner = number[owner]
    labels = np.zeros(found.labels.shape, np.int32)
    labels.ravel()[at] = owner
    at, owner = at[owner != 0], owner[owner != 0]
    sums = class_sums(classes_of(box, at), owner, int(wanted.sum()))
    return Objects(
        found.anchors[wanted] + np.array((box.x0, box.y0)),
        polygons(
            labels,
            origin=(box.x0, box.y0),
            scale=scale,
            tolerance=tolerance,
            within=(slide.x1, slide.y1),
        ),
        sums,
    )
