"""Which of a run's detections a person has edited since.

A detection counts as edited when its geometry, class, name, colour or lock differ from the
run's record, when it has become a cell or a tile, when it has children, or when the record
does not know it. Measurements added later do not count: they can be computed again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

if TYPE_CHECKING:
    import geopandas as gpd

POSITION_TOLERANCE = 0.02
"""Pixels. QuPath 0.6 and later round the vertices of some ROIs to 0.01 px on loading."""


def untouched(
    current: gpd.GeoDataFrame, recorded: gpd.GeoDataFrame | None, parents: Collection[str]
) -> NDArray[np.bool_]:
    """Which rows of ``current`` are as their run wrote them.

    Parameters
    ----------
    current : (n) detections of one run as the project's file has them now.
    recorded : the run's own predictions; None where its record is gone.
    parents : ids of every object of the image that has children.

    Returns
    -------
    untouched : (n,) bool. All False without a record: then nothing can be compared, and
        what cannot be compared is not ours to remove.
    """
    if recorded is None or len(current) == 0:
        return np.zeros(len(current), dtype=bool)
    rows = pd.Index(recorded["id"]).get_indexer(current["id"])
    same: NDArray[np.bool_] = rows >= 0
    same &= (current["object_type"] == "detection").to_numpy()
    same &= ~current["id"].isin(set(parents)).to_numpy()
    same &= ~current["locked"].eq(True).fillna(False).to_numpy(dtype=bool)
    same &= current["name"].isna().to_numpy() & current["color"].isna().to_numpy()
    then = recorded.iloc[np.maximum(rows, 0)] if len(recorded) else recorded.iloc[:0]
    if len(then) == 0:
        return np.zeros(len(current), dtype=bool)
    same &= same_text(current["classification"], then["classification"])
    candidates = np.flatnonzero(same)
    same[candidates] = same_geometry(
        current.geometry.to_numpy()[candidates], then.geometry.to_numpy()[candidates]
    )
    return same


def same_text(one: pd.Series, other: pd.Series) -> NDArray[np.bool_]:
    """Equal, or missing on both sides."""
    left = one.astype(object).where(one.notna(), None).to_numpy()
    right = other.astype(object).where(other.notna(), None).to_numpy()
    return np.asarray(left == right, dtype=bool)


def same_geometry(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Equal up to ``POSITION_TOLERANCE``, wherever the rings begin and whichever way they run."""
    same: NDArray[np.bool_] = shapely.equals_exact(one, other, tolerance=POSITION_TOLERANCE)
    rest = np.flatnonzero(~same)
    distance = shapely.hausdorff_distance(one[rest], other[rest])
    close = distance <= POSITION_TOLERANCE
    # Different outlines through the same vertices lie close to each other; their areas differ.
    area, then = shapely.area(one[rest]), shapely.area(other[rest])
    same[rest] = close & (np.abs(area - then) <= POSITION_TOLERANCE * shapely.length(other[rest]))
    return same
