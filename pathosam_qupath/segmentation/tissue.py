"""Where a slide shows tissue, seen from afar, so that glass never reaches the network.

Tissue takes light away; glass does not. The darkest channel's optical density against the
slide's own glass tells them apart at a few µm/px, with Otsu's threshold held between bounds
that pale connective tissue and dense tumour set. The rest errs on the side of tissue: gaps
are closed, small fragments kept, the outline widened; where nothing is found at all, all of
the slide counts. Marks of green and blue pens are told by their colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

if TYPE_CHECKING:
    from PIL.Image import Image

    from pathosam_qupath.segmentation.block_plan import SegmentableSlide
    from pathosam_qupath.segmentation.tiling import ScaledPixels

MPP = 8.0
"""µm/px at which tissue is looked for; finer where a slide is small."""

_LEAST_SIDE = 512
"""Pixels that the longer side of the picture has at least, as far as the slide has them."""

_MOST_PIXELS = 4e6
"""Pixels that the picture has at most, so that memory does not grow with the slide: one of
25 mm by 25 mm is looked at with 12.5 µm/px."""

_BAND = 256
"""Rows of the picture whose densities and colours are computed at a time."""

_OPTICAL_DENSITY = (0.04, 0.12)
"""Bounds of the threshold. Glass varies by 0.02; the palest stroma has about 0.06."""

_GLASS = 200
"""Least channel value of pixels that may be glass."""

_USUAL_GLASS = 243.0
"""Brightness of glass, for slides that show too little of it to tell."""

_UNSCANNED = 8
_SMOOTH_UM, _RIM_UM = 8.0, 32.0
_GAP_UM, _HOLE_UM2, _FRAGMENT_UM2, _MARGIN_UM = 32.0, 2e4, 2e3, 40.0


@dataclass(frozen=True, eq=False)
class Tissue:
    """Where a slide shows tissue.

    Attributes
    ----------
    geometry : polygons in full-resolution slide pixels.
    picture : RGB of the slide as it was looked at, ``mask`` where it shows tissue (bool).
    share : of the slide's area, 0…1.
    found : False where nothing was found and all of the slide counts as tissue.
    """

    geometry: BaseGeometry
    picture: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    share: float
    found: bool = True


def find_tissue(slide: SegmentableSlide) -> Tissue:
    """Look for tissue on a slide.

    Raises
    ------
    ImageError : the file is damaged.
    """
    small, mpp, picture = _from_afar(slide)
    mask = tissue_mask(picture, mpp)
    found = bool(mask.any())
    if not found:
        mask = np.ones_like(mask)
    whole = shapely.box(0, 0, slide.width, slide.height)
    geometry = whole if not found else shapely.intersection(outlines(mask, small.scale), whole)
    return Tissue(geometry, picture, mask, float(geometry.area / whole.area), found)


def given_tissue(slide: SegmentableSlide, geometry: BaseGeometry) -> Tissue:
    """Tissue as somebody has outlined it.

    Parameters
    ----------
    geometry : polygons in full-resolution slide pixels.
    """
    small, _, picture = _from_afar(slide)
    whole = shapely.box(0, 0, slide.width, slide.height)
    inside = shapely.intersection(geometry, whole)
    mask = np.zeros(picture.shape[:2], np.uint8)
    for part in shapely.get_parts(inside):
        if part.geom_type == "Polygon":
            rings = [part.exterior, *part.interiors]
            points = [np.round(shapely.get_coordinates(r) / small.scale) for r in rings]
            cv2.fillPoly(mask, [p.astype(np.int32) for p in points], 1)
    return Tissue(inside, picture, mask > 0, float(inside.area / whole.area))


def _from_afar(slide: SegmentableSlide) -> tuple[ScaledPixels, float, NDArray[np.uint8]]:
    """The slide as it is looked at, the µm/px of that, and its pixels."""
    sides = slide.width * slide.mpp[0], slide.height * slide.mpp[1]
    mpp = min(MPP, max(max(sides) / _LEAST_SIDE, *slide.mpp))
    mpp = max(mpp, math.sqrt(sides[0] * sides[1] / _MOST_PIXELS))
    small = slide.at(mpp)
    width, height = (
        max(1, math.floor(side / step + 1e-6))
        for side, step in zip((slide.width, slide.height), small.scale, strict=True)
    )
    return small, mpp, small.read(0, 0, width, height)


def tissue_mask(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Where a picture shows tissue: (height, width) bool.

    Parameters
    ----------
    rgb : (height, width, 3) at ``mpp`` µm/px.
    """
    smooth = np.asarray(cv2.GaussianBlur(rgb, (0, 0), max(0.5, _SMOOTH_UM / mpp)), np.uint8)
    density = _density(smooth)
    seen = smooth.max(axis=2) > _UNSCANNED
    low, high = _OPTICAL_DENSITY
    threshold = min(max(_otsu(density[seen]), low), high) if seen.any() else high
    mask = (density > threshold) & seen & ~_pen(smooth, mpp)
    return _tidy(mask, mpp)


def outlines(mask: NDArray[np.bool_], scale: tuple[float, float]) -> BaseGeometry:
    """Polygons around the pixels of a mask, in slide pixels.

    Parameters
    ----------
    scale : slide pixels per pixel of the mask, in x and y.
    """
    # Runs of pixels in a row are boxes; their union has exactly the mask's outline.
    padded = np.pad(mask.astype(np.int8), ((0, 0), (1, 1)))
    step = np.diff(padded, axis=1)
    rows, starts = np.nonzero(step == 1)
    _, ends = np.nonzero(step == -1)
    sx, sy = scale
    boxes = shapely.box(starts * sx, rows * sy, ends * sx, (rows + 1) * sy)
    return shapely.simplify(shapely.union_all(boxes), 0.0)


def drawn(tissue: Tissue) -> Image:
    """A picture of what counts as tissue: the rest is dimmed, the border drawn."""
    from PIL import Image

    dimmed = np.arange(256)[:, None] * 0.55 + np.array((60, 70, 90)) * 0.45
    shown = np.asarray(cv2.LUT(tissue.picture, dimmed.astype(np.uint8)[None]), np.uint8)
    np.copyto(shown, tissue.picture, where=tissue.mask[..., None])
    border = cv2.morphologyEx(
        tissue.mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)
    )
    shown[border > 0] = (0, 140, 90)
    return Image.fromarray(shown)


def _glass(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The colour of this slide's glass: (3,)."""
    bright = rgb[(rgb.min(axis=2) >= _GLASS) & (np.ptp(rgb, axis=2) <= 25)]
    # A scanner's filling between scanned parts is pure white, and no glass.
    bright = bright[bright.min(axis=1) < 255]
    if len(bright) < max(64, rgb.shape[0] * rgb.shape[1] // 200):
        return np.full(3, _USUAL_GLASS, np.float32)
    # Pale tissue may be among the bright pixels, and more of it than glass.
    return np.asarray(np.percentile(bright, 95, axis=0), np.float32)


def _density(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density of each pixel's darkest channel against glass: (height, width)."""
    glass = _glass(rgb) + 1
    density = np.empty(rgb.shape[:2], np.float32)
    for row in range(0, len(rgb), _BAND):
        band = rgb[row : row + _BAND].astype(np.float32) + 1
        density[row : row + _BAND] = np.log10(glass / band).max(axis=2)
    return density


def _otsu(density: NDArray[np.float32]) -> float:
    levels = np.clip(density * 255, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(threshold) / 255


def _pen(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Pixels of a green or blue pen: no stain of tissue is as green or as blue.

    Ink thins out at the rim of a stroke, so what is near a stroke counts with less colour.
    """
    stroke, rim = np.empty(rgb.shape[:2], np.uint8), np.empty(rgb.shape[:2], bool)
    for row in range(0, len(rgb), _BAND):
        red, green, blue = (rgb[row : row + _BAND, :, i].astype(np.int16) for i in range(3))
        greener, bluer = green - np.maximum(red, blue), np.minimum(blue - red, 2 * (blue - green))
        stroke[row : row + _BAND] = (greener > 25) | (bluer > 110)
        rim[row : row + _BAND] = (greener > 4) | (bluer > 12)
    if not stroke.any():
        return np.zeros_like(rim)
    near = cv2.dilate(stroke, _disk(_RIM_UM / mpp)) > 0
    return np.asarray(near & rim, bool)


def _tidy(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Gaps closed, small holes filled, specks dropped, the outline widened."""
    area = mpp * mpp
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _disk(_GAP_UM / mpp))
    tidy = _without_small(np.asarray(closed, np.uint8), _FRAGMENT_UM2 / area)
    holes = (1 - tidy).astype(np.uint8)
    tidy |= holes - _without_small(holes, _HOLE_UM2 / area)
    return np.asarray(cv2.dilate(tidy, _disk(_MARGIN_UM / mpp)), bool)


def _without_small(mask: NDArray[np.uint8], least: float) -> NDArray[np.uint8]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= least
    large[0] = False
    return np.asarray(large[labels], np.uint8)


def _disk(radius: float) -> NDArray[np.uint8]:
    side = 2 * max(1, math.ceil(radius)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)
