"""Resample a level of a file on a grid that any read shares.

A pixel at the wanted resolution covers a known rectangle of the slide. Its value must
not depend on the window that was asked for, or nuclei at the borders of tiles would
differ. So the image at a resolution is cut into fixed blocks; each block is always
made whole, from the same level pixels with the same margin, and reads are assembled
from blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pathosam_qupath.slide.cache import Pixels
from pathosam_qupath.slide.source import Level, PixelSource

FINE_ENOUGH = 1.01
"""A level up to 1 % coarser than asked counts as fine enough: rounding of level sizes,
and pixel sizes such as 0.499, would otherwise cost a fourfold read."""

_BLOCK_SOURCE = 2048
_BLOCK = 256
_SUPPORT = 2.0
"""Half width of the bicubic kernel, in pixels of the coarser of both grids."""


@dataclass(frozen=True)
class Window:
    """A rectangle in pixels of level 0, corners at (x0, y0) and (x1, y1)."""

    x0: float
    y0: float
    x1: float
    y1: float


def best_level(levels: tuple[Level, ...], scale: tuple[float, float]) -> int:
    """Return the coarsest level that is still as fine as asked, else the finest.

    Parameters
    ----------
    levels : of the file, finest first or in any order.
    scale : (x, y) level 0 pixels per wanted pixel.
    """
    fitting = [
        number
        for number, level in enumerate(levels)
        if all(d <= s * FINE_ENOUGH for d, s in zip(level.downsample, scale, strict=True))
    ]
    if not fitting:
        return 0
    return max(fitting, key=lambda number: levels[number].downsample[0])


def block_size(downsample: tuple[float, float], scale: tuple[float, float]) -> int:
    """Return the side of a block in wanted pixels; its source is about 2048 pixels."""
    ratio = max(s / d for s, d in zip(scale, downsample, strict=True))
    return max(1, min(_BLOCK, int(_BLOCK_SOURCE / max(ratio, 1.0))))


def resample(
    source: PixelSource,
    number: int,
    downsample: tuple[float, float],
    window: Window,
    size: tuple[int, int],
) -> Pixels:
    """Return ``window`` as (height, width, 3) uint8, antialiased bicubic.

    Beyond the edge of the image its last pixels are continued.

    Parameters
    ----------
    source : the file.
    number : the level to read.
    downsample : (x, y) of that level.
    window : in pixels of level 0.
    size : (width, height) of the result.
    """
    dx, dy = downsample
    x0, x1, left, right = _span(window.x0 / dx, window.x1 / dx, size[0])
    y0, y1, top, bottom = _span(window.y0 / dy, window.y1 / dy, size[1])
    pixels = read_continued(source, number, left, top, right - left, bottom - top)
    image = Image.fromarray(pixels).resize(
        size, Image.Resampling.BICUBIC, box=(x0 - left, y0 - top, x1 - left, y1 - top)
    )
    return np.array(image)


def _span(start: float, end: float, count: int) -> tuple[float, float, int, int]:
    margin = _SUPPORT * max((end - start) / count, 1.0) + 1
    return start, end, math.floor(start - margin), math.ceil(end + margin)


def read_continued(
    source: PixelSource, number: int, x: int, y: int, width: int, height: int
) -> Pixels:
    """Return a window of a level; outside the level its edge pixels are repeated."""
    level = source.levels[number]
    x0, x1 = (min(max(v, 0), level.width) for v in (x, x + width))
    y0, y1 = (min(max(v, 0), level.height) for v in (y, y + height))
    if x0 == x1:  # wholly outside: start from the nearest column, row
        x0, x1 = (0, 1) if x < 0 else (level.width - 1, level.width)
    if y0 == y1:
        y0, y1 = (0, 1) if y < 0 else (level.height - 1, level.height)
    pixels = source.read(number, x0, y0, x1 - x0, y1 - y0)
    if pixels.shape[:2] == (height, width):
        return pixels
    left, right = (min(max(v - x, 0), width) for v in (x0, x1))
    top, bottom = (min(max(v - y, 0), height) for v in (y0, y1))
    out = np.empty((height, width, 3), np.uint8)
    out[top:bottom, left:right] = pixels[: bottom - top, : right - left]
    out[top:bottom, :left] = pixels[: bottom - top, :1]
    out[top:bottom, right:] = pixels[: bottom - top, -1:]
    if top == bottom:  # rows wholly outside: one row of pixels is there
        out[:, left:right] = pixels[:1, : right - left]
        out[:, :left] = pixels[:1, :1]
        out[:, right:] = pixels[:1, -1:]
        return out
    out[:top] = out[top]
    out[bottom:] = out[bottom - 1]
    return out
