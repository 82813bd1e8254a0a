"""What a TIFF file's images are made of, and where their encoded bytes lie.

Facts: TIFF 6.0 (strips, tiles, planar configuration), tifffile's series and their axes
(``YXS`` interleaved colour, ``SYX`` one plane per colour, ``CYX`` one page per channel).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathosam_qupath.errors import ImageError
from pathosam_qupath.slide.illumination import fluorescence
from pathosam_qupath.slide.plain import PYRAMID_REMEDY, single_channel, sixteen_bit

if TYPE_CHECKING:
    from tifffile import TiffFrame, TiffPage, TiffPageSeries

DAMAGED = "The file is damaged or cut off: copy it again from where it came."
JPEG = (6, 7, 34892, 33007)
"""Compressions that keep JPEG tables apart from the tiles."""
APERIO_YCBCR = 33003
_YCBCR_CODECS = (*JPEG, 33003, 33005, 34712, 50001)
_LARGEST_SEGMENT = 2**30
_STRIP_BYTES = 2**20


@dataclass(frozen=True)
class Plane:
    """One plane of a level: all its colours, or one of them.

    Attributes
    ----------
    page : how the segments are encoded.
    frame : where they lie in the file.
    number : which colour plane of the page.
    samples : colours that each segment holds.
    segment_width, segment_height : pixels of a tile or strip.
    raw : uncompressed rows one after another, cut into strips of about a megabyte
        here, so that a file of one strip is not read as a whole.
    """

    page: TiffPage
    frame: TiffPage | TiffFrame
    number: int
    samples: int
    segment_width: int
    segment_height: int
    raw: bool

    @property
    def columns(self) -> int:
        """Segments in a row."""
        return -(-int(self.page.imagewidth) // self.segment_width)

    @property
    def rows(self) -> int:
        """Rows of segments."""
        return -(-int(self.page.imagelength) // self.segment_height)

    def index(self, row: int, column: int) -> int:
        """Return a segment's place in the page's lists of offsets and byte counts."""
        return (self.number * self.rows + row) * self.columns + column

    @property
    def end(self) -> int:
        """Bytes of the file that this plane reaches to."""
        offsets = np.asarray(self.frame.dataoffsets, np.int64)
        counts = np.asarray(self.frame.databytecounts, np.int64)
        return int((offsets + counts).max(initial=0))


def level_size(level: TiffPageSeries) -> tuple[int, int]:
    """Return (width, height) of a series or one of its levels."""
    sizes = dict(zip(level.axes, level.shape, strict=True))
    return int(sizes["X"]), int(sizes["Y"])


def level_planes(path: Path, level: TiffPageSeries) -> tuple[Plane, ...]:
    """Return the planes whose samples, one after another, are the level's colours.

    Raises
    ------
    ImageError : a compressed strip too large to decode at once, no decoder, or tiles missing.
    """
    page = level.keyframe
    _check_codec(path, page)
    width, height = int(page.imagewidth), int(page.imagelength)
    raw = page.compression == 1 and not page.is_tiled and page.is_contiguous
    separate = level.axes == "SYX"
    samples = 1 if separate else int(page.samplesperpixel)
    if page.is_tiled:
        segment = int(page.tilewidth), int(page.tilelength)
    elif raw:
        segment = width, max(1, min(height, _STRIP_BYTES // (width * samples)))
    else:
        segment = width, min(int(page.rowsperstrip), height)
    if segment[0] * segment[1] * samples > _LARGEST_SEGMENT:
        raise ImageError(path, "its pixels are one huge compressed strip", PYRAMID_REMEDY)
    if min(segment) < 1:
        raise ImageError(path, "its tiles have no size", DAMAGED)
    frames = level.pages if level.axes == "CYX" else level.pages[:1]
    planes = tuple(
        Plane(page, frame, number, samples, *segment, raw)
        for frame in frames
        if frame is not None
        for number in range(3 if separate else 1)
    )
    last = planes[-1]
    if not raw and last.index(last.rows - 1, last.columns - 1) >= len(last.frame.dataoffsets):
        raise ImageError(path, "some of its tiles are missing", DAMAGED)
    return planes


def check_kind(path: Path, series: TiffPageSeries, evidence: str | None) -> None:
    """Refuse an image that is not one plane of 8-bit RGB.

    Parameters
    ----------
    path : for the message.
    series : the image.
    evidence : what the metadata says of fluorescence, or None.

    Raises
    ------
    ImageError : with the reason.
    """
    from tifffile import PHOTOMETRIC

    sizes = dict(zip(series.axes, series.shape, strict=True))
    for axis, name in (("Z", "focal planes (z)"), ("T", "time points (t)")):
        if sizes.get(axis, 1) > 1:
            raise ImageError(
                path,
                f"it is a stack of {sizes[axis]} {name}",
                "Export the plane to be segmented as an image of its own.",
            )
    separate, samples = sizes.get("C", 1), sizes.get("S", 1)
    if evidence and separate > 1:
        raise fluorescence(path, evidence)
    others = {axis: size for axis, size in sizes.items() if axis not in "YXSC" and size > 1}
    if others or not {"Y", "X"} <= set(sizes):
        raise ImageError(
            path,
            f"its pixels are a stack of {' x '.join(map(str, series.shape))} ({series.axes})",
            "Export the plane to be segmented as an RGB image of its own.",
        )
    if separate > 1 and (separate != 3 or series.dtype != np.uint8):
        raise ImageError(
            path,
            f"it has {separate} separate {series.dtype} channels, as fluorescence images have",
            "Choose a brightfield RGB image.",
        )
    if separate * samples == 1:
        raise single_channel(path)
    if series.dtype != np.uint8:
        raise sixteen_bit(path, 8 * int(series.dtype.itemsize))
    photometric = PHOTOMETRIC(series.keyframe.photometric).name
    known = photometric in ("RGB", "YCBCR") or (photometric == "MINISBLACK" and separate == 3)
    encoded = photometric != "YCBCR" or series.keyframe.compression in _YCBCR_CODECS
    if series.axes not in ("YXS", "SYX", "CYX") or separate * samples not in (3, 4):
        known = False
    if not known or not encoded:
        raise ImageError(
            path,
            f"it has {separate * samples} channels ({photometric}, {series.axes}), "
            "where 8-bit RGB is needed",
            "Choose a brightfield RGB image, or convert it to RGB.",
        )


def _check_codec(path: Path, page: TiffPage) -> None:
    from tifffile import TIFF

    try:
        if page.compression != 1:
            TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        name = getattr(page.compression, "name", page.compression)
        raise ImageError(
            path,
            f"its tiles are compressed with {name}, and no decoder is installed",
            f"Install one with: pip install imagecodecs. Otherwise: {PYRAMID_REMEDY}",
        ) from error
