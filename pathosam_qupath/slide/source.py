"""What a file of pixels offers, whichever reader is behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pathosam_qupath.slide.cache import Pixels


@dataclass(frozen=True)
class Level:
    """One resolution of a file.

    Attributes
    ----------
    width, height : pixels of this level.
    downsample : (x, y) pixels of level 0 that one pixel of this level covers; pixel i
        covers ``[i * downsample, (i + 1) * downsample)`` of level 0.
    """

    width: int
    height: int
    downsample: tuple[float, float] = (1.0, 1.0)


class PixelSource(Protocol):
    """Pixels of a file, level by level. Reads are thread-safe."""

    levels: tuple[Level, ...]
    mpp: tuple[float, float] | None
    """(x, y) micrometres per pixel of level 0 as the file says, where it is credible."""
    magnification: float | None
    """Objective power as the file says; a hint for people, never a pixel size."""
    fluorescence: str | None
    """What in the file's metadata speaks of fluorescence, or None."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8 RGB of a window that lies inside the level."""

    def close(self) -> None:
        """Release the file."""


def level_downsample(full: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Return how many pixels of level 0 one pixel of a level covers, along x and y.

    Pyramids are made by halving, and an odd last row or column is dropped (or filled):
    2967 rows become 1483, whose ratio is 2.0007 although each row covers exactly 2.
    Where one whole number explains both sides within a pixel of the level, it is taken;
    else the plain ratios are.

    Parameters
    ----------
    full : (width, height) of level 0.
    size : (width, height) of the level.
    """
    ratios = full[0] / size[0], full[1] / size[1]
    whole = round(sum(ratios) / 2)
    if whole >= 1 and all(
        abs(side / whole - part) < 1.0 for side, part in zip(full, size, strict=True)
    ):
        return float(whole), float(whole)
    return ratios
