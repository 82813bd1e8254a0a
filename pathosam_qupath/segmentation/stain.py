"""Whether a slide is stained like the images that the bundled model was trained on.

A stain takes each of the three channels by a share of its own (Beer-Lambert: optical
densities add up), whatever its strength: haematoxylin hardly any blue, DAB mostly blue. So
the shares of red and blue in a pixel's optical density say which stains are there. What is
usual of them in an image's tissue, and the strength, are compared with the range of the
training images, which ``stain_reference.json`` keeps; ``benchmarks/stain_reference.py``
computes it from a folder of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.segmentation.focus import is_blank
from pathosam_qupath.segmentation.tiling import Box

if TYPE_CHECKING:
    from pathosam_qupath.segmentation.block_plan import BlockPlan

REFERENCE = "stain_reference.json"

FEATURES = (
    "red share, median",
    "red share, 95th percentile",
    "blue share, 5th percentile",
    "blue share, median",
    "blue share, 95th percentile",
    "log of the median density",
)


_TISSUE = (0.3, 3.5)
"""Sum of the three optical densities of pixels that are looked at: below it shares are
noise, above it are pigment, ink and folds."""

_ENOUGH = 2000
"""Tissue pixels from which the features say something."""

_TILES, _SIDE, _EVERY = 24, 320, 2
"""Tiles of a slide that are looked at, the side of the square in the middle of each that is
read, and every which of its pixels counts in x and y."""


@dataclass(frozen=True)
class StainReference:
    """The stains of a training set: of each feature, the range in which its images lie.

    Attributes
    ----------
    low, high : (6,), in the order of ``FEATURES``.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> StainReference:
        """The reference as JSON keeps it."""
        low, high = np.array([stored["ranges"][name] for name in FEATURES]).T
        return cls(low, high)

    def distance(self, features: NDArray[np.float64]) -> float:
        """How far from the middle of the range the strangest feature is; at its ends 1."""
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return float((np.abs(features - middle) / half).max())


@cache
def training_stains() -> StainReference:
    """The stains of the bundled model's training images."""
    text = (files("pathosam_qupath.segmentation") / REFERENCE).read_text(encoding="utf-8")
    return StainReference.from_dict(json.loads(text))


def stain_features(pixels: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """What is known of an image's stain.

    Parameters
    ----------
    pixels : (..., 3) RGB, glass included.

    Returns
    -------
    features : (6,), named by ``FEATURES``; None where there is too little tissue.
    """
    density = -np.log10((pixels.reshape(-1, 3).astype(np.float64) + 1) / 256)
    total = density.sum(axis=1)
    tissue = (total > _TISSUE[0]) & (total < _TISSUE[1])
    if int(tissue.sum()) < _ENOUGH:
        return None
    density, total = density[tissue], total[tissue]
    red, blue = density[:, 0] / total, density[:, 2] / total
    return np.array(
        [
            *np.percentile(red, (50, 95)),
            *np.percentile(blue, (5, 50, 95)),
            np.log(np.median(total)),
        ]
    )


def stain_distance(plan: BlockPlan) -> float | None:
    """How far a slide's stain is from the training images'; above 1 it is unlike them.

    Looks at tiles that are spread evenly over those that will be segmented.

    Returns
    -------
    distance : None where there is too little tissue to tell.
    """
    pixels = list(_tissue_pixels(plan))
    features = stain_features(np.concatenate(pixels)) if pixels else None
    return None if features is None else training_stains().distance(features)


def _tissue_pixels(plan: BlockPlan) -> Iterator[NDArray[np.uint8]]:
    rows, columns = np.nonzero(plan.wanted)
    for at in np.unique(np.linspace(0, len(rows) - 1, min(_TILES, len(rows))).round().astype(int)):
        tile = plan.grid.tile_box((int(columns[at]), int(rows[at])))
        left, top = max(0, tile.width - _SIDE) // 2, max(0, tile.height - _SIDE) // 2
        middle = Box(tile.x0 + left, tile.y0 + top, tile.x1 - left, tile.y1 - top)
        rgb = plan.pixels.read(middle.x0, middle.y0, middle.width, middle.height)
        if not is_blank(rgb):
            yield rgb[::_EVERY, ::_EVERY].reshape(-1, 3)
