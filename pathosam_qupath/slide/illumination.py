"""Tell fluorescence from brightfield where a file stores both as RGB.

Scanners store fluorescence as ordinary RGB too (Hamamatsu's NDPI does: a red channel
on black). Metadata alone is no proof: fields for filters are filled in for brightfield
as well. In brightfield light passes the slide: glass is white and tissue takes some of
it, so an image that is mostly dark and whose lit pixels are hardly ever bright in all three
channels is fluorescence; black filling around a brightfield scan leaves its tissue
bright, and is not counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pathosam_qupath.errors import ImageError
from pathosam_qupath.slide.cache import Pixels
from pathosam_qupath.slide.source import PixelSource

_SAMPLES = 100_000
_BLACK = 8
"""Below this in every channel a pixel may be filling around a scanned region."""
_DARK = 64
"""A pixel whose brightest channel is below this is dark."""
_TRANSMITTED = 110
"""A pixel whose darkest channel is above this has let light of every colour pass."""


def check_illumination(path: Path, source: PixelSource) -> None:
    """Raise where the pixels are those of a fluorescence image.

    Raises
    ------
    ImageError : fluorescence.
    """
    pixels = sample(source)
    if _is_fluorescence(pixels, source.fluorescence):
        raise fluorescence(
            path, source.fluorescence or "nearly all pixels are black and none is white"
        )


def fluorescence(path: object, evidence: str) -> ImageError:
    """Return the error for a fluorescence image."""
    return ImageError(
        path,
        f"it is a fluorescence image ({evidence}); the models know brightfield stains such as H&E",
        "Choose a brightfield image.",
    )


def sample(source: PixelSource) -> Pixels:
    """Return pixels, (n, 3), from all over the coarsest level, about a hundred thousand."""
    number = len(source.levels) - 1
    level = source.levels[number]
    if level.width * level.height <= 1_000_000:
        pixels = source.read(number, 0, 0, level.width, level.height).reshape(-1, 3)
        return pixels[:: max(1, len(pixels) // _SAMPLES)]
    side = 128
    xs = np.linspace(0, max(level.width - side, 0), 6).astype(int)
    ys = np.linspace(0, max(level.height - side, 0), 6).astype(int)
    width, height = min(side, level.width), min(side, level.height)
    windows = [
        source.read(number, int(x), int(y), width, height).reshape(-1, 3) for y in ys for x in xs
    ]
    pixels = np.concatenate(windows)
    return pixels[:: max(1, len(pixels) // _SAMPLES)]


def _is_fluorescence(pixels: Pixels, metadata: str | None) -> bool:
    brightest = pixels.max(axis=1)
    lit = int((brightest >= _BLACK).sum())
    if not lit:
        return False  # nothing but filling
    transmitted = float((pixels.min(axis=1) > _TRANSMITTED).sum()) / lit
    dark = float((brightest < _DARK).mean())
    if metadata is not None:
        return transmitted < 0.05 and dark > 0.2
    return transmitted < 0.01 and dark > 0.6
