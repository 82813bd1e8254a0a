"""Open a slide, or say why it cannot be segmented and what to do about it."""

from __future__ import annotations

import math
from pathlib import Path

from pathosam_qupath.errors import ImageError, PixelSizeError, UsageError
from pathosam_qupath.slide.illumination import check_illumination, fluorescence
from pathosam_qupath.slide.plain import PYRAMID_REMEDY, PlainSource
from pathosam_qupath.slide.slide import Frame, Slide
from pathosam_qupath.slide.source import PixelSource
from pathosam_qupath.slide.tiff import TiffSource

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def open_slide(
    path: str | Path,
    *,
    series: int = 0,
    rotation: int = 0,
    crop: tuple[int, int, int, int] | None = None,
    mpp: float | tuple[float, float] | None = None,
) -> Slide:
    """Open a slide for reading at any resolution.

    Parameters
    ----------
    path : SVS, NDPI, TIFF or OME-TIFF pyramid, or a plain TIFF, PNG or JPEG.
    series : which image of the file.
    rotation : clockwise degrees that QuPath turns the (cropped) image: 0, 90, 180, 270.
    crop : (x, y, width, height) that QuPath shows, in pixels of the file.
    mpp : µm/px instead of what the file says: one number, or (x, y) along the axes of the
        image as QuPath shows it, after crop and rotation.

    Raises
    ------
    PixelSizeError : the file tells no pixel size and none is given.
    ImageError : missing, damaged, of an unknown format, or not brightfield RGB.
    UsageError : a rotation, crop or pixel size that cannot be.
    """
    path = Path(path)
    given = _given_pixel_size(mpp)
    source = _open_source(path, series)
    try:
        check_illumination(path, source)
        frame = _frame(path, source, rotation, crop)
        size = given or (source.mpp and frame.turned(source.mpp))
        if size is None:
            raise _no_pixel_size(path, source)
        return Slide(source, frame, size)
    except BaseException:
        source.close()
        raise


def check(
    path: str | Path | None,
    *,
    series: int = 0,
    rotation: int = 0,
    crop: tuple[int, int, int, int] | None = None,
    mpp: float | tuple[float, float] | None = None,
    image_type: str | None = None,
) -> ImageError | None:
    """Return why an image cannot be segmented, or None when it can.

    Reads the file's headers and a few tiles of its coarsest level.

    Parameters
    ----------
    path, series, rotation, crop, mpp : as for :func:`open_slide`.
    image_type : QuPath's image type; ``FLUORESCENCE`` is refused whatever the pixels.

    Raises
    ------
    UsageError : a rotation, crop or pixel size that cannot be.
    """
    if path is None:
        return ImageError("image", "the project does not say where it is", "Open it in QuPath.")
    if (image_type or "").upper() == "FLUORESCENCE":
        return fluorescence(path, "QuPath's image type says so")
    try:
        open_slide(path, series=series, rotation=rotation, crop=crop, mpp=mpp).close()
    except ImageError as error:
        return error
    return None


def _open_source(path: Path, series: int) -> PixelSource:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except IsADirectoryError as error:
        raise ImageError(path, "it is a folder, not an image file", "Name a file.") from error
    except FileNotFoundError as error:
        raise ImageError(
            path,
            "the image file does not exist",
            "If it moved, say where with --path-map FROM=TO, or update its URI in QuPath.",
        ) from error
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error})", "Check its permissions.") from error
    if head.startswith(_TIFF):
        return TiffSource(path, series)
    if head.startswith(_PLAIN):
        return PlainSource(path)
    if not head:
        raise ImageError(path, "the file is empty", "Copy it again from where it came.")
    raise ImageError(
        path,
        "not a format that can be read (SVS, NDPI, TIFF, OME-TIFF, PNG, JPEG)",
        PYRAMID_REMEDY,
    )


def _given_pixel_size(mpp: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if mpp is None:
        return None
    pair = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    if not all(math.isfinite(value) and value > 0 for value in pair):
        raise UsageError(f"--mpp {mpp}", "a pixel size must be positive", "Give µm per pixel.")
    return float(pair[0]), float(pair[1])


def _frame(
    path: Path, source: PixelSource, rotation: int, crop: tuple[int, int, int, int] | None
) -> Frame:
    if rotation not in (0, 90, 180, 270):
        raise UsageError(
            f"rotation {rotation}", "only quarter turns can be read", "Use 0, 90, 180 or 270."
        )
    full = source.levels[0]
    x, y, width, height = crop or (0, 0, full.width, full.height)
    if (
        width <= 0
        or height <= 0
        or x < 0
        or y < 0
        or x + width > full.width
        or y + height > full.height
    ):
        raise UsageError(
            path,
            f"the crop {crop} does not lie in the image of {full.width} x {full.height} pixels",
            "Check that the project's image is this file.",
        )
    return Frame((x, y, width, height), rotation)


def _no_pixel_size(path: Path, source: PixelSource) -> PixelSizeError:
    hint = ""
    if source.magnification:
        hint = (
            f" Scanned at {source.magnification:g}x, it is about {10 / source.magnification:.2g}."
        )
    return PixelSizeError(
        path,
        "the file does not say how large its pixels are",
        f"Give it in µm per pixel, for instance --mpp 0.25, or set it in QuPath's Image tab.{hint}",
    )
