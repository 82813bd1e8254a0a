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
    alternative : another downsample that the sizes allow, which only the pixels can
        tell from the first (see :func:`level_downsamples`), or None.
    """

    width: int
    height: int
    downsample: tuple[float, float] = (1.0, 1.0)
    alternative: tuple[float, float] | None = None

    @classmethod
    def of_size(cls, full: tuple[int, int], size: tuple[int, int]) -> Level:
        """Return the level of ``size`` (width, height) in a pyramid on ``full``."""
        return cls(*size, *level_downsamples(full, size))


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


def level_downsamples(
    full: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[float, float], ...]:
    """Return how many pixels of level 0 a pixel of a level may cover, along x and y.

    Most pyramids are made by halving and drop an odd last row or column: 2967 rows
    become 1483, and each covers exactly 2. Others are resized to fit: each of the 1483
    covers 2967 / 1483. Nothing in a file says which, and at the far end the two differ
    by up to a pixel of the level; where they differ both are returned.

    Parameters
    ----------
    full : (width, height) of level 0.
    size : (width, height) of the level.

    Returns
    -------
    candidates : the likelier first.
    """
    ratios = full[0] / size[0], full[1] / size[1]
    whole = round(sum(ratios) / 2)
    fits = whole >= 1 and all(
        abs(side / whole - part) < 1.0 for side, part in zip(full, size, strict=True)
    )
    if not fits:
        return (ratios,)
    exact = float(whole), float(whole)
    return (exact,) if ratios == exact else (exact, ratios)
