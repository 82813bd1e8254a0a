"""Pixels of plain PNG and JPEG images, decoded once and kept."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pathosam_qupath.errors import ImageError
from pathosam_qupath.slide.cache import PixelCache, Pixels
from pathosam_qupath.slide.source import Level

PYRAMID_REMEDY = "Convert it to a pyramidal OME-TIFF (QuPath: File > Export images > OME TIFF)."


class PlainSource:
    """A PNG or JPEG file: one level, no pixel size.

    PNG and JPEG do hold a print resolution (dpi), but no microscope writes its pixel
    size there, and QuPath does not take it for one either.

    Raises
    ------
    ImageError : not a readable image, not 8-bit RGB, or too large to decode as a whole.
    """

    mpp: tuple[float, float] | None = None
    magnification: float | None = None
    fluorescence: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache = PixelCache(limit=0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    width, height = image.size
                    mode = image.mode
        except Image.DecompressionBombError as error:
            raise ImageError(
                path, f"too large for a plain image ({error})", PYRAMID_REMEDY
            ) from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise _damaged(path, error) from error
        if mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;"):
            raise single_channel(path)
        if mode not in ("RGB", "RGBA", "P", "PA"):
            raise ImageError(path, f"its colours are {mode}, not RGB", "Save it as 8-bit RGB.")
        if _png_bit_depth(path) == 16:
            raise sixteen_bit(path)
        self.levels: tuple[Level, ...] = (Level(width, height),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8 RGB of a window inside the image."""
        return self._cache.get("all", self._decode)[y : y + height, x : x + width]

    def close(self) -> None:
        """Forget the decoded pixels."""
        self._cache.clear()

    def _decode(self) -> Pixels:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(self.path) as image:
                    image.load()
                    if image.mode == "RGB":
                        return np.array(image)
                    with_alpha = image.convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:
            raise _damaged(self.path, error) from error
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, with_alpha).convert("RGB"))


def single_channel(path: Path) -> ImageError:
    """Return the error for an image of one channel."""
    return ImageError(
        path,
        "the image has a single channel; nuclei are segmented in RGB images of stained tissue",
        "Choose a brightfield RGB image.",
    )


def sixteen_bit(path: Path, bits: int = 16) -> ImageError:
    """Return the error for an image of more than 8 bits a channel."""
    return ImageError(
        path,
        f"it has {bits} bits a channel, where 8-bit RGB is needed",
        "Convert it to 8-bit RGB if it is brightfield; fluorescence cannot be segmented.",
    )


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(
        path,
        f"the image cannot be decoded ({error})",
        "The file is damaged or cut off: copy it again.",
    )


def _png_bit_depth(path: Path) -> int | None:
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 25 else None
