"""Detections of a ``.qpdata`` stream as a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pathosam_qupath.qupath.objects import PathObject

if TYPE_CHECKING:
    import geopandas as gpd


def objects_frame(objects: Sequence[PathObject]) -> gpd.GeoDataFrame:
    """A row for each object (columns: ``FRAME_COLUMNS``, then measurements)."""
    import geopandas as gpd
    import pandas as pd

    def column(values: list[Any]) -> pd.Series:
        return pd.Series(values, dtype=object)  # None stays None

    names = dict.fromkeys(name for o in objects for name in o.measurements)
    columns: dict[str, Any] = {
        "id": column([str(o.id) for o in objects]),
        "object_type": column([o.object_type for o in objects]),
        "classification": column([o.classification for o in objects]),
        "probability": np.array(
            [np.nan if o.probability is None else o.probability for o in objects], float
        ),
        "name": column([o.name for o in objects]),
        "color": column([o.color for o in objects]),
        "locked": np.array([o.locked for o in objects], bool),
        "parent": column([None if o.parent is None else str(o.parent) for o in objects]),
        "run": column([o.run for o in objects]),
    }
    for name in names:
        columns[name] = np.array([o.measurements.get(name, np.nan) for o in objects], float)
    geometry = np.array([o.geometry for o in objects], object)
    return gpd.GeoDataFrame(columns, geometry=geometry)
