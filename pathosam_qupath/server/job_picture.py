"""A picture of what a segment job found, for the server's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import geopandas as gpd

    from pathosam_qupath.qupath.project import Color
    from pathosam_qupath.server.open_image import OpenImage

PICTURED = 4_000
"""Nuclei that are kept for a picture."""

PICTURE_WIDTH = 640
_PICTURE_SIDE = 400.0
"""µm that a picture shows at most."""

_MARGIN = 1.2
"""How much larger than what its nuclei cover a picture is."""


def draw_picture(
    path: Path,
    image: OpenImage,
    frames: list[gpd.GeoDataFrame],
    colors: Mapping[str, Color],
) -> None:
    """Draw where the nuclei are densest, as PNG.

    Parameters
    ----------
    frames : nuclei in coordinates of the image's own pixels.
    """
    import pandas as pd

    from pathosam_qupath.picture import busiest, overlay

    nuclei = pd.concat(frames, ignore_index=True)
    side = min(_PICTURE_SIDE / image.slide.mpp[0], image.slide.width, image.slide.height)
    box = _around(nuclei, side) or busiest(nuclei, side)
    picture = overlay(image.slide, nuclei, box=box, colors=colors, width=PICTURE_WIDTH)
    unfinished = path.with_suffix(".tmp")
    try:
        picture.save(unfinished, format="PNG")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _around(nuclei: gpd.GeoDataFrame, side: float) -> tuple[float, float, float, float] | None:
    """A square with all nuclei and some margin, where one smaller than ``side`` holds them."""
    if len(nuclei) == 0:
        return None
    left, top, right, bottom = nuclei.total_bounds.tolist()
    wanted = _MARGIN * max(right - left, bottom - top)
    if wanted > side:
        return None
    x, y = (left + right - wanted) / 2, (top + bottom - wanted) / 2
    return x, y, x + wanted, y + wanted
