"""Slides as programs write them, made of given pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

WIDTH, HEIGHT = 1003, 777  # odd on purpose: halving drops a row and a column


def halve(pixels: np.ndarray) -> np.ndarray:
    """The usual way to make a level: means of 2 x 2 pixels, odd ends dropped."""
    h, w = pixels.shape[0] // 2, pixels.shape[1] // 2
    means = pixels[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean(axis=(1, 3))
    return np.round(means).astype(np.uint8)


def fit(pixels: np.ndarray) -> np.ndarray:
    """The other way: resize to half the size, rounded down."""
    size = pixels.shape[1] // 2, pixels.shape[0] // 2
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def write_pyramid(
    path: Path,
    pixels: np.ndarray,
    *,
    levels: int = 3,
    make: Callable[[np.ndarray], np.ndarray] = halve,
    mpp: float | None = 0.5,
    **options: object,
) -> Path:
    """Write a tiled TIFF whose levels are pages, as vips and OpenSlide's users make them."""
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate", **options}
    with tifffile.TiffWriter(path) as writer:
        for number in range(levels):
            if mpp is not None:
                options["resolution"] = (10_000 / mpp / 2**number,) * 2
                options["resolutionunit"] = "CENTIMETER"
            writer.write(pixels, subfiletype=int(number > 0), metadata=None, **options)
            pixels = make(pixels)
    return path
