"""A slide in QuPath's frame, and the same slide seen at one resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

import numpy as np

from pathosam_qupath.errors import UsageError
from pathosam_qupath.slide.alignment import Pyramid
from pathosam_qupath.slide.cache import PixelCache, Pixels
from pathosam_qupath.slide.resampling import (
    Window,
    best_level,
    block_size,
    read_continued,
    resample,
)
from pathosam_qupath.slide.source import Level, PixelSource

_Number = TypeVar("_Number", int, float)
BLOCK_CACHE_BYTES = 64 * 2**20
_ALIGNED = 0.01
"""Level pixels by which a read may drift over the whole level and count as exact."""


@dataclass(frozen=True)
class Frame:
    """How QuPath's frame lies on the file's pixels: a crop, then a clockwise rotation.

    Attributes
    ----------
    crop : (x, y, width, height) in level 0 pixels of the file.
    rotation : clockwise degrees: 0, 90, 180 or 270.
    """

    crop: tuple[int, int, int, int]
    rotation: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as QuPath shows it."""
        return self.turned(self.crop[2:])

    def turned(self, pair: tuple[_Number, _Number]) -> tuple[_Number, _Number]:
        """Return a file's (x, y) pair of lengths along the frame's axes, or back."""
        return pair if self.rotation % 180 == 0 else (pair[1], pair[0])

    def to_file(self, window: Window) -> Window:
        """Return a rectangle of the frame in level 0 pixels of the file."""
        left, top, width, height = self.crop
        x0, y0, x1, y1 = window.x0, window.y0, window.x1, window.y1
        if self.rotation == 90:
            x0, y0, x1, y1 = y0, height - x1, y1, height - x0
        elif self.rotation == 180:
            x0, y0, x1, y1 = width - x1, height - y1, width - x0, height - y0
        elif self.rotation == 270:
            x0, y0, x1, y1 = width - y1, x0, width - y0, x1
        return Window(left + x0, top + y0, left + x1, top + y1)

    def from_file(self, pixels: Pixels) -> Pixels:
        """Turn pixels of the file as the frame shows them."""
        return np.rot90(pixels, -(self.rotation // 90))


class Slide:
    """An open slide; a context manager. Made by :func:`open_slide`.

    Attributes
    ----------
    width, height : full-resolution pixels after crop and rotation.
    mpp : (x, y) micrometres per full-resolution pixel, along the frame's axes.
    levels : the file's resolutions, in the file's own frame.
    magnification : objective power as the file says, or None; a hint, never a pixel size.
    """

    def __init__(self, source: PixelSource, frame: Frame, mpp: tuple[float, float]) -> None:
        self._pyramid = Pyramid(source)
        self._frame = frame
        self.width, self.height = frame.size
        self.mpp = mpp
        self.levels: tuple[Level, ...] = source.levels
        self.magnification = source.magnification

    def at(self, mpp: float) -> ScaledSlide:
        """Return the slide as seen at ``mpp`` micrometres per pixel.

        Raises
        ------
        UsageError : ``mpp`` is not a positive number.
        """
        if not (math.isfinite(mpp) and mpp > 0):
            raise UsageError(
                f"{mpp} µm/px", "a resolution must be a positive number", "Give µm/px."
            )
        return ScaledSlide(self._pyramid, self._frame, (mpp / self.mpp[0], mpp / self.mpp[1]))

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._pyramid.source.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, eq=False)
class ScaledSlide:
    """A slide at one resolution. Scaled pixel i covers slide pixels ``[i*s, (i+1)*s)``.

    Attributes
    ----------
    scale : (x, y) slide pixels per scaled pixel.
    width, height : scaled pixels that cover the slide, the last one perhaps in part.
    """

    _pyramid: Pyramid
    _frame: Frame
    scale: tuple[float, float]
    _blocks: PixelCache = field(default_factory=lambda: PixelCache(BLOCK_CACHE_BYTES), repr=False)

    @property
    def width(self) -> int:
        """Scaled pixels from left to right."""
        return math.ceil(self._frame.size[0] / self.scale[0] - 1e-6)

    @property
    def height(self) -> int:
        """Scaled pixels from top to bottom."""
        return math.ceil(self._frame.size[1] / self.scale[1] - 1e-6)

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8 RGB; white outside the slide. Thread-safe.

        The pixels are the same, bit for bit, in every read that contains them.

        Parameters
        ----------
        x, y : left and top scaled pixel, which may lie outside the slide.
        width, height : of the window in scaled pixels.

        Raises
        ------
        ImageError : the file is damaged there.
        """
        out = np.full((height, width, 3), 255, np.uint8)
        x0, x1 = max(x, 0), min(x + width, self.width)
        y0, y1 = max(y, 0), min(y + height, self.height)
        if x0 >= x1 or y0 >= y1:
            return out
        inside = out[y0 - y : y1 - y, x0 - x : x1 - x]
        scale_x, scale_y = self._frame_scale_in_file()
        number = best_level(self._pyramid.source.levels, (scale_x, scale_y))
        if not self._copy(number, x0, y0, inside):
            self._assemble(number, x0, y0, inside)
        return out

    def _frame_scale_in_file(self) -> tuple[float, float]:
        x, y = self.scale
        return (x, y) if self._frame.rotation % 180 == 0 else (y, x)

    def _window(self, x: int, y: int, width: int, height: int) -> Window:
        sx, sy = self.scale
        return self._frame.to_file(Window(x * sx, y * sy, (x + width) * sx, (y + height) * sy))

    def _copy(self, number: int, x: int, y: int, out: Pixels) -> bool:
        """Fill ``out`` without resampling where scaled pixels are the level's own."""
        level = self._pyramid.source.levels[number]
        downsample = self._pyramid.downsample(number)
        origin = self._frame.to_file(
            Window(0, 0, self.width * self.scale[0], self.height * self.scale[1])
        )
        for extent, scale, step, start in zip(
            (level.width, level.height),
            self._frame_scale_in_file(),
            downsample,
            (origin.x0, origin.y0),
            strict=True,
        ):
            first = start / step
            if abs(scale / step - 1) * extent + abs(first - round(first)) > _ALIGNED:
                return False
        height, width = out.shape[:2]
        window = self._window(x, y, width, height)
        left, top = round(window.x0 / downsample[0]), round(window.y0 / downsample[1])
        if self._frame.rotation % 180:
            width, height = height, width
        out[:] = self._frame.from_file(
            read_continued(self._pyramid.source, number, left, top, width, height)
        )
        return True

    def _assemble(self, number: int, x: int, y: int, out: Pixels) -> None:
        """Fill ``out`` from resampled blocks."""
        side = block_size(self._pyramid.downsample(number), self._frame_scale_in_file())
        height, width = out.shape[:2]
        for row in range(y // side, (y + height - 1) // side + 1):
            for column in range(x // side, (x + width - 1) // side + 1):
                block = self._blocks.get(
                    (row, column),
                    lambda r=row, c=column: self._block(number, side, r, c),  # type: ignore[misc]
                )
                top, left = row * side, column * side
                y0, y1 = max(y, top), min(y + height, top + side)
                x0, x1 = max(x, left), min(x + width, left + side)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = block[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]

    def _block(self, number: int, side: int, row: int, column: int) -> Pixels:
        window = self._window(column * side, row * side, side, side)
        return np.ascontiguousarray(
            self._frame.from_file(
                resample(
                    self._pyramid.source,
                    number,
                    self._pyramid.downsample(number),
                    window,
                    (side, side),
                )
            )
        )
