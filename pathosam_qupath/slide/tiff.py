"""Pixels of tiled and striped TIFF slides: SVS, NDPI, OME-TIFF and plain pyramids.

tiffslide says what the file is (vendor, baseline series, pixel size); the tiles are
decoded one by one through the ``tifffile`` object it stands on. So tiles that overlap,
as a network's do, decode each tile of the file once, threads share one bounded cache, and
an error tells which tile of a damaged file is at fault.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from pathosam_qupath.errors import ImageError
from pathosam_qupath.slide import pixel_size
from pathosam_qupath.slide.cache import PixelCache, Pixels
from pathosam_qupath.slide.plain import PYRAMID_REMEDY
from pathosam_qupath.slide.source import Level
from pathosam_qupath.slide.tiff_layout import (
    APERIO_YCBCR,
    DAMAGED,
    JPEG,
    Plane,
    check_kind,
    level_planes,
    level_size,
)

TILE_CACHE_BYTES = 128 * 2**20
_REFUSED_FORMATS = {
    "scn": "Leica SCN places its regions in a slide-wide frame that is not read here",
    "bif": "Ventana BIF tiles overlap and need stitching, which is not done here",
}


class TiffSource:
    """A TIFF-based slide.

    Parameters
    ----------
    path : the file.
    series : which image of the file; 0 is the slide itself.

    Raises
    ------
    ImageError : unreadable, cut off, or not 8-bit RGB; the text says which.
    """

    def __init__(self, path: Path, series: int = 0) -> None:
        from tiffslide import TiffSlide

        self.path = path
        self._cache = PixelCache(TILE_CACHE_BYTES)
        self._seek = Lock()
        try:
            self._slide = TiffSlide(path)
        except Exception as error:  # tifffile raises whatever damaged bytes lead to
            raise ImageError(path, f"it cannot be read as TIFF ({error})", DAMAGED) from error
        try:
            self._open(series)
        except ImageError:
            self._slide.close()
            raise
        except Exception as error:
            self._slide.close()
            raise ImageError(path, f"its TIFF structure is broken ({error})", DAMAGED) from error

    def _open(self, series: int) -> None:
        self._file = self._slide.ts_tifffile
        for name, reason in _REFUSED_FORMATS.items():
            if getattr(self._file, f"is_{name}"):
                raise ImageError(self.path, reason, PYRAMID_REMEDY)
        if not 0 <= series < len(self._file.series):
            raise ImageError(
                self.path,
                f"it has {len(self._file.series)} images, and number {series} is asked for",
                "Choose the image in QuPath again.",
            )
        chosen = self._file.series[series]
        self.fluorescence = self._fluorescence(series)
        check_kind(self.path, chosen, self.fluorescence)
        sizes = [level_size(level) for level in chosen.levels]
        self.levels = tuple(Level.of_size(sizes[0], size) for size in sizes)
        self._planes = [level_planes(self.path, level) for level in chosen.levels]
        end = max(plane.end for planes in self._planes for plane in planes)
        if end > self._file.filehandle.size:
            raise ImageError(
                self.path,
                f"it is cut off: {self._file.filehandle.size} bytes of at least {end} are there",
                DAMAGED,
            )
        properties = self._properties(series)
        power = properties.get("tiffslide.objective-power")
        self.magnification = float(power) if power else None
        self.mpp = self._pixel_size(series, properties)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8 RGB of a window that lies inside the level."""
        out = np.empty((height, width, 3), np.uint8)
        channel = 0
        for number, plane in enumerate(self._planes[level]):
            channels = out[:, :, channel : channel + plane.samples]
            channel += plane.samples
            tile_w, tile_h = plane.segment_width, plane.segment_height
            for row in range(y // tile_h, (y + height - 1) // tile_h + 1):
                for column in range(x // tile_w, (x + width - 1) // tile_w + 1):
                    tile = self._cache.get(
                        (level, number, row, column),
                        partial(self._segment, plane, level, row, column),
                    )
                    top, left = row * tile_h, column * tile_w
                    y0, y1 = max(y, top), min(y + height, top + tile_h)
                    x0, x1 = max(x, left), min(x + width, left + tile_w)
                    channels[y0 - y : y1 - y, x0 - x : x1 - x] = tile[
                        y0 - top : y1 - top, x0 - left : x1 - left
                    ]
        return out

    def close(self) -> None:
        """Close the file and forget its decoded tiles."""
        self._cache.clear()
        self._slide.close()

    def _segment(self, plane: Plane, level: int, row: int, column: int) -> Pixels:
        try:
            return self._raw(plane, row) if plane.raw else self._decode(plane, row, column)
        except ImageError:
            raise
        except Exception as error:  # each codec has exceptions of its own
            raise ImageError(
                self.path,
                f"tile ({column}, {row}) of level {level} cannot be decoded ({error})",
                DAMAGED,
            ) from error

    def _raw(self, plane: Plane, row: int) -> Pixels:
        width, height = int(plane.page.imagewidth), int(plane.page.imagelength)
        top = row * plane.segment_height
        rows = min(plane.segment_height, height - top)
        line = width * plane.samples
        start = plane.frame.dataoffsets[0] + (plane.number * height + top) * line
        data = self._bytes(start, rows * line)
        return _rgb(np.frombuffer(data, np.uint8).reshape(rows, width, plane.samples))

    def _decode(self, plane: Plane, row: int, column: int) -> Pixels:
        index = plane.index(row, column)
        count = plane.frame.databytecounts[index]
        options: dict[str, Any] = {}
        if plane.page.compression in JPEG:
            options = {
                "jpegtables": plane.frame.jpegtables,
                "jpegheader": plane.page.jpegheader,
            }
        data = self._bytes(plane.frame.dataoffsets[index], count) if count else None
        array, _, shape = plane.page.decode(data, index, **options)
        if array is None:  # a tile that was never scanned
            return np.full((*shape[1:3], min(plane.samples, 3)), 255, np.uint8)
        pixels = array[0]
        if plane.page.compression == APERIO_YCBCR:
            pixels = np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
        return _rgb(pixels)

    def _bytes(self, offset: int, count: int) -> bytes:
        with self._seek:
            self._file.filehandle.seek(offset)
            data = bytes(self._file.filehandle.read(count))
        if len(data) < count:
            raise ImageError(self.path, "the file ends within its pixels", DAMAGED)
        return data

    def _properties(self, series: int) -> Mapping[str, Any]:
        if series != 0:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "metadata parsing only partially implemented"
            try:
                return dict(self._slide.properties)
            except (NotImplementedError, AssertionError, ValueError, KeyError):
                return {}  # a layout that tiffslide does not know: no vendor's metadata

    def _pixel_size(self, series: int, properties: Mapping[str, Any]) -> tuple[float, float] | None:
        page = self._file.series[series].keyframe
        if self._file.is_ome:
            return pixel_size.from_ome(str(self._file.ome_metadata), series)
        if self._file.is_imagej:
            return pixel_size.from_imagej(self._file.imagej_metadata or {}, page.get_resolution(1))
        x, y = properties.get("tiffslide.mpp-x"), properties.get("tiffslide.mpp-y")
        if x is None or y is None:
            return None
        return pixel_size.credible(float(x), float(y))

    def _fluorescence(self, series: int) -> str | None:
        if self._file.is_ome:
            return pixel_size.ome_fluorescence(str(self._file.ome_metadata), series)
        if self._file.is_ndpi:
            # Hamamatsu's private tags: 65434 the filter set, 65451 its wavelength in nm.
            tags = self._file.pages.first.tags
            name, wavelength = tags.valueof(65434), tags.valueof(65451)
            if name and wavelength:
                return f"NDPI filter {str(name).strip()!r}, {float(wavelength):g} nm"
        return None


def _rgb(pixels: Pixels) -> Pixels:
    """Return at most three channels; transparency is laid over white."""
    if pixels.shape[-1] != 4:
        return np.ascontiguousarray(pixels[..., :3])
    alpha = pixels[..., 3:].astype(np.uint16)
    colour = pixels[..., :3].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
