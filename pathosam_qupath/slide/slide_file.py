"""A slide as a value: where it is and how to open it, here or in another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pathosam_qupath.slide.opening import open_slide
from pathosam_qupath.slide.slide import Slide


@dataclass(frozen=True)
class SlideFile:
    """What :func:`open_slide` is to be called with."""

    path: Path
    series: int = 0
    rotation: int = 0
    crop: tuple[int, int, int, int] | None = None
    mpp: float | tuple[float, float] | None = None

    def open(self) -> Slide:
        """Open it.

        Raises
        ------
        ImageError, PixelSizeError : the pixels cannot be had, or not be segmented.
        """
        return open_slide(
            self.path, series=self.series, rotation=self.rotation, crop=self.crop, mpp=self.mpp
        )
