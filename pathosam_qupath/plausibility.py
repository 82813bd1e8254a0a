"""What a run's numbers say against it: wrong pixel size, strange stain, no focus, no tissue.

Nuclei of human tissue have a median area between about 20 µm² (lymphocytes) and 90 µm²
(large carcinoma cells). A pixel size that is wrong by a factor of two makes areas wrong by
four, which leaves that range in most tissues: 20× read as 40× gives areas of a quarter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST, LARGEST = 17.0, 130.0
"""µm²; medians outside are told. With the bundled model on seven images of six tissues, six
lay between 20 and 82 at their own pixel size; at half of it four of seven fell below 17, at
twice of it two rose above 130. The magnification that a file names is the surer sign."""

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
        median = float(np.median(areas))
        if median < SMALLEST:
            said.append(
                f"the median nucleus has {median:.0f} µm², less than nuclei have: the image may "
                f"be coarser than {mpp[0]:.3g} µm/px (20x read as 40x?). Check its pixel size, or "
                f"try --mpp {2 * mpp[0]:.3g}"
            )
        elif median > LARGEST:
            said.append(
                f"the median nucleus has {median:.0f} µm², more than nuclei have: the image may "
                f"be finer than {mpp[0]:.3g} µm/px (40x read as 20x?). Check its pixel size, or "
                f"try --mpp {mpp[0] / 2:.3g}"
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
