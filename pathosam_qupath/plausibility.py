"""What a run's numbers say against it: wrong pixel size, strange stain, no focus, no tissue.

Nuclei of most tissues have a median area between about 20 µm² (lymphocytes) and 90 µm² (large
carcinoma cells). A pixel size that is wrong by a factor of two makes areas wrong by four. Read
that way, large nuclei have the median of small ones; but in hardly a tissue are all nuclei
small, so what the largest of them measure tells 20× read as 40× better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST, LARGEST = 16.0, 110.0
"""µm²; medians outside are told. Medians of 35 tissues lay between 16 and 76, as the bundled
model finds nuclei (``benchmarks/pixel_size_guard.py``)."""

LARGE = 95
"""The percentile of the areas that stands for the large nuclei."""

LEAST_LARGE, MOST_LARGE = 46.0, 180.0
"""µm²; large nuclei outside are told. Of 33 tissues read at half their pixel size all are below
(20× read as 40×), of 9 at twice theirs five are above; of 35 at their own none is above and two
are below, both with medians of 16 to 21 µm². The magnification that a file names is the surer
sign."""

_OBJECTIVE = 10.0
"""µm/px times objective power, nearly so for every scanner: 40x is 0.25 µm/px."""

_ENOUGH = 30
"""Nuclei from which a median says something."""

BLURRED_SHARE = 0.2
"""Of the tiles that show something, from which lack of focus is told."""


def warnings_of(
    areas: NDArray[np.float64],
    mpp: tuple[float, float],
    *,
    tiles: int,
    blank: int,
    blurred: int,
    magnification: float | None = None,
    stain: float | None = None,
) -> tuple[str, ...]:
    """What a reader should doubt about an image, each with its remedy.

    Parameters
    ----------
    areas : (n,) of the nuclei found, µm².
    mpp : µm/px (x, y) that the areas rest on.
    tiles, blank, blurred : tiles looked at, and how many were empty or out of focus.
    magnification : objective power that the image file names, where it does.
    stain : how far the stain is from that of the training images (``segmentation.stain``).
    """
    said = []
    if magnification and not 0.6 < mpp[0] * magnification / _OBJECTIVE < 1.7:
        said.append(
            f"the file was scanned at {magnification:g}x, which is about "
            f"{_OBJECTIVE / magnification:.2g} µm/px, but {mpp[0]:.3g} µm/px are used. Check the "
            "pixel size of the image in QuPath, or give it with --mpp"
        )
    elif len(areas) >= _ENOUGH:
        median, large = (float(value) for value in np.percentile(areas, (50, LARGE)))
        if median < SMALLEST or large < LEAST_LARGE:
            said.append(
                f"the nuclei are small: half have less than {median:.0f} µm², nearly all less than "
                f"{large:.0f} µm². The image may be coarser than {mpp[0]:.3g} µm/px (20x read as "
                f"40x?). Check its pixel size, or try --mpp {2 * mpp[0]:.3g}"
            )
        elif median > LARGEST or large > MOST_LARGE:
            said.append(
                f"the nuclei are large: half have more than {median:.0f} µm², some more than "
                f"{large:.0f} µm². The image may be finer than {mpp[0]:.3g} µm/px (40x read as "
                f"20x?). Check its pixel size, or try --mpp {mpp[0] / 2:.3g}"
            )
    if stain is not None and stain > 1:
        said.append(
            "the stain is unlike that of the bundled model's training images (haematoxylin and "
            f"eosin): {stain:.1f} times as far from their middle as the farthest of them. Look at "
            "the nuclei first; `pathosam-qupath finetune` tunes a model to a stain"
        )
    shown = tiles - blank
    if shown > 0 and blurred > BLURRED_SHARE * shown:
        said.append(
            f"{blurred:,} of {shown:,} tiles look out of focus. Look at the image before its "
            "nuclei are counted"
        )
    if tiles and not shown:
        said.append("every tile is blank. Check that the image shows tissue there")
    return tuple(said)
