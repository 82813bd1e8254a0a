"""Pixels that a client sends because the server cannot read its slide.

They show a rectangle of the slide at some downsample, and are a small slide of their own here.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pathosam_qupath.errors import ImageError
from pathosam_qupath.server.open_image import OpenImage, Pair, Placement
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.slide import Level, Slide
from pathosam_qupath.slide.illumination import check_illumination
from pathosam_qupath.slide.slide import Frame

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PixelRectangle:
    """What pixels that a client sends show.

    Attributes
    ----------
    x, y, width, height : of the rectangle, in slide pixels.
    mpp : (x, y) µm per slide pixel.
    slide_size : (width, height) of the slide, for the client's own use; None: up to the
        rectangle's far corner.
    """

    x: float
    y: float
    width: float
    height: float
    mpp: Pair
    slide_size: tuple[int, int] | None = None


def pixel_image(key: str, pixels: Pixels, rectangle: PixelRectangle) -> OpenImage:
    """An image of sent pixels.

    Raises
    ------
    ProblemError : their shape is not the rectangle's.
    ImageError : fluorescence.
    """
    height, width = pixels.shape[:2]
    scale = rectangle.width / width, rectangle.height / height
    # Rounding to whole pixels makes the two differ by about one pixel of the sent image.
    if abs(scale[0] / scale[1] - 1) > 2 / min(width, height) + 0.01:
        raise ProblemError(
            422,
            "invalid_request",
            "pixels",
            f"{width} x {height} pixels do not have the shape of the rectangle of "
            f"{rectangle.width:g} x {rectangle.height:g} slide pixels",
            "Send the pixels of exactly that rectangle.",
        )
    source = _ArraySource(pixels)
    check_illumination(Path("pixels"), source)
    own = rectangle.mpp[0] * scale[0], rectangle.mpp[1] * scale[1]
    far = round(rectangle.x + rectangle.width), round(rectangle.y + rectangle.height)
    return OpenImage(
        key,
        Slide(source, Frame((0, 0, width, height)), own),
        Placement((rectangle.x, rectangle.y), scale),
        rectangle.slide_size or far,
        rectangle.mpp,
        "pixels",
        f"pixels at {rectangle.x:g}, {rectangle.y:g}",
        pixels.nbytes,
    )


def decode(content: bytes, most: int) -> Pixels:
    """(height, width, 3) uint8 of a PNG or JPEG; its size is looked at before it is decoded.

    Raises
    ------
    ImageError : damaged, another format, or not 8-bit colour.
    ProblemError : more than ``most`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                width, height = image.size
                if width * height > most:
                    raise ProblemError(
                        413,
                        "too_large",
                        "pixels",
                        f"{width} x {height} pixels are more than {most:,}",
                        "Send a smaller rectangle, or a coarser one.",
                    )
                if image.mode not in ("RGB", "RGBA", "P"):
                    raise ImageError(
                        "pixels", f"their colours are {image.mode}, not RGB", "Send 8-bit RGB."
                    )
                return np.array(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ProblemError(
            413, "too_large", "pixels", str(error), "Send a smaller rectangle."
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            "pixels", f"they cannot be decoded as PNG or JPEG ({error})", "Send them again."
        ) from error


class _ArraySource:
    """Pixels in memory as a slide's reader gives them."""

    mpp: tuple[float, float] | None = None
    magnification: float | None = None
    fluorescence: str | None = None

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self.levels: tuple[Level, ...] = (Level(pixels.shape[1], pixels.shape[0]),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A window of the pixels."""
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing is open; memory goes with the last user."""
