"""What speaks for an image's numbers or against them, each with what is usual."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from pathosam_qupath.plausibility import (
    BLURRED_SHARE,
    LARGE,
    LARGEST,
    LEAST_LARGE,
    MOST_LARGE,
    SMALLEST,
)

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.run_record import EntryRecord
    from pathosam_qupath.slide import Slide

LOW_CONFIDENCE = 0.5
"""Probability of a nucleus' class below which it is doubtful."""

_CUT_SHARE, _UNSURE_SHARE = 0.02, 0.1
"""Shares of nuclei from which a reader is warned: cut by the border, of doubtful class."""


@dataclass(frozen=True)
class Check:
    """A figure, and between what it lies where there is nothing to doubt.

    Attributes
    ----------
    key : names it in tables.
    value : None where it is not known; a share is 0…1.
    lowest, highest : usual values; None where anything is.
    unit : "µm²", "share", or "" for a figure without one.
    doubt : what to say of an unusual value, with a place for it; None where the run has said it.
    """

    key: str
    name: str
    value: float | None
    lowest: float | None = None
    highest: float | None = None
    unit: str = "share"
    doubt: str | None = None

    @property
    def doubtful(self) -> bool:
        """Whether the value is known and unusual."""
        if self.value is None:
            return False
        too_low = self.lowest is not None and self.value < self.lowest
        return too_low or (self.highest is not None and self.value > self.highest)


def checks_of(
    slide: Slide, nuclei: gpd.GeoDataFrame, areas: NDArray[np.float64], done: EntryRecord
) -> tuple[Check, ...]:
    """The checks of an image.

    Parameters
    ----------
    nuclei : that the run found, ``areas`` (n,) theirs in µm².
    done : what the run recorded of the image.
    """
    bounds = shapely.bounds(nuclei.geometry.to_numpy()).reshape(-1, 4)
    cut = (bounds[:, :2] <= 1).any(axis=1)
    cut |= (bounds[:, 2] >= slide.width - 1) | (bounds[:, 3] >= slide.height - 1)
    probability = nuclei["probability"].dropna().to_numpy()
    shown = done.tiles - done.blank
    large = _of(areas, partial(np.percentile, q=LARGE))
    at = f"median nucleus at {slide.mpp[0]:.3g} µm/px"
    return (
        Check("median", at, _of(areas, np.median), SMALLEST, LARGEST, unit="µm²"),
        Check("large", f"{LARGE} % are smaller than", large, LEAST_LARGE, MOST_LARGE, unit="µm²"),
        Check("stain", "stain, against the training images'", done.stain, highest=1.0, unit=""),
        Check(
            "cut",
            "nuclei at the border of the image",
            _of(cut, np.mean),
            highest=_CUT_SHARE,
            doubt="{:.0%} of the nuclei are cut by the border of the image",
        ),
        Check(
            "unsure",
            "nuclei with a class of less than 50 % probability",
            _of(probability < LOW_CONFIDENCE, np.mean),
            highest=_UNSURE_SHARE,
            doubt="{:.0%} of the nuclei have a class of less than 50 % probability",
        ),
        Check(
            "blurred",
            "tiles out of focus",
            done.blurred / shown if shown > 0 else None,
            highest=BLURRED_SHARE,
        ),
        Check("blank", "blank tiles", done.blank / done.tiles if done.tiles else None),
        Check("tissue", "tissue in the image", done.tissue),
    )


def doubts(checks: Iterable[Check]) -> list[str]:
    """What is to be doubted, in words."""
    return [check.doubt.format(check.value) for check in checks if check.doubtful and check.doubt]


def _of(values: NDArray[np.generic], function: Callable[..., np.floating]) -> float | None:
    return float(function(values)) if len(values) else None
