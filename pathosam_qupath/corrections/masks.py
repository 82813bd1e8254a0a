"""Outlines to masks: what a reviewed region looks like to training and evaluation.

A pixel belongs to an outline when its centre lies inside. Coordinates are slide pixels; a
crop's pixel ``(i, j)`` covers ``scale`` slide pixels each way from its left and top corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

MARGIN = 32
"""Pixels of a crop around its region: what the network sees there helps, but does not count."""

LARGEST_CROP = 1024
"""Larger regions give several crops."""

NOT_REVIEWED = 255


@dataclass(frozen=True)
class Window:
    """A crop in pixels at the wanted resolution: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Masks:
    """What is known of a crop's pixels.

    Attributes
    ----------
    labels : (height, width) uint16: 0 background, 1…n.
    types : (height, width) uint8: the nucleus' type id, 0 in the background.
    ignore : (height, width) uint8: ``NOT_REVIEWED`` where nobody looked, else 0.
    drawn : which of the nuclei has label 1, 2 … n.
    """

    labels: NDArray[np.uint16]
    types: NDArray[np.uint8]
    ignore: NDArray[np.uint8]
    drawn: tuple[int, ...]


def windows(
    region: BaseGeometry, scale: tuple[float, float], size: tuple[int, int]
) -> list[Window]:
    """The crops that cover a region: equal parts of its box with a margin.

    Parameters
    ----------
    region : in slide pixels.
    scale : (x, y) slide pixels per pixel.
    size : (width, height) of the slide at the resolution of the crops.
    """
    left, top, right, bottom = region.bounds
    spans = []
    for low, high, step, end in (
        (left, right, scale[0], size[0]),
        (top, bottom, scale[1], size[1]),
    ):
        first = max(0, math.floor(low / step) - MARGIN)
        last = min(end, math.ceil(high / step) + MARGIN)
        count = max(1, math.ceil((last - first) / LARGEST_CROP))
        edges = [first + (last - first) * i // count for i in range(count + 1)]
        spans.append(list(pairwise(edges)))
    found = [
        Window(x0, y0, x1 - x0, y1 - y0)
        for y0, y1 in spans[1]
        for x0, x1 in spans[0]
        if x1 > x0 and y1 > y0
    ]
    return [w for w in found if shapely.intersects(region, slide_box(w, scale))]


def slide_box(window: Window, scale: tuple[float, float]) -> BaseGeometry:
    """A window as a rectangle in slide pixels."""
    return shapely.box(
        window.x * scale[0],
        window.y * scale[1],
        (window.x + window.width) * scale[0],
        (window.y + window.height) * scale[1],
    )


def draw_masks(
    window: Window,
    scale: tuple[float, float],
    region: BaseGeometry,
    nuclei: Sequence[BaseGeometry],
    types: Sequence[int],
    others: Sequence[BaseGeometry] = (),
) -> Masks:
    """Draw what is known of a crop.

    Parameters
    ----------
    region : what was reviewed, in slide pixels.
    nuclei : outlines of the nuclei of the region; where two overlap, the smaller one counts.
    types : their type ids.
    others : outlines of which it is not known whether they are nuclei.
    """
    shape = (window.height, window.width)
    owner = np.full(shape, -1, np.int32)
    for i in sorted(range(len(nuclei)), key=lambda i: -nuclei[i].area):
        owner[_pixels(nuclei[i], window, scale)] = i
    known = np.zeros(shape, bool)
    known[_pixels(region, window, scale)] = True
    for other in others:
        known[_pixels(other, window, scale)] = False
    drawn, labels = np.unique(owner, return_inverse=True)
    labels = labels.reshape(shape)
    if drawn[0] >= 0:  # not a pixel of background
        labels += 1
    kinds = np.array([*types, 0], np.uint8)[owner]
    ignore = np.where(known | (owner >= 0), 0, NOT_REVIEWED)
    return Masks(
        labels.astype(np.uint16),
        kinds,
        ignore.astype(np.uint8),
        tuple(int(i) for i in drawn if i >= 0),
    )


def _pixels(
    shape: BaseGeometry, window: Window, scale: tuple[float, float]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of a window's pixels whose centre lies in a shape."""
    left, top, right, bottom = shape.bounds
    x0 = max(window.x, math.floor(left / scale[0]))
    x1 = min(window.x + window.width, math.ceil(right / scale[0]))
    y0 = max(window.y, math.floor(top / scale[1]))
    y1 = min(window.y + window.height, math.ceil(bottom / scale[1]))
    if x1 <= x0 or y1 <= y0:
        none = np.zeros(0, np.intp)
        return none, none
    x, y = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
    shapely.prepare(shape)
    rows, columns = np.nonzero(shapely.contains_xy(shape, x * scale[0], y * scale[1]))
    return rows + (y0 - window.y), columns + (x0 - window.x)
