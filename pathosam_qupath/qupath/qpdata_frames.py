"""Detections of a ``.qpdata`` stream as a frame, filled column by column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.qupath.objects import RUN_KEY, PathObject
from pathosam_qupath.qupath.qpdata_batches import RegularBatch, SingleBatch

if TYPE_CHECKING:
    import geopandas as gpd


class FrameBuilder:
    """Takes detections in any order and makes a frame of them.

    Parameters
    ----------
    count : how many rows there will be.
    """

    def __init__(self, count: int) -> None:
        texts = ("id", "object_type", "classification", "name", "color", "parent", "run")
        self._texts: dict[str, NDArray[Any]] = {c: np.full(count, None, object) for c in texts}
        self._probability = np.full(count, np.nan)
        self._locked = np.zeros(count, bool)
        self._geometry = np.full(count, None, object)
        self._measurements: dict[str, NDArray[np.float64]] = {}
        self._count = count

    def put_object(self, row: int, value: PathObject) -> None:
        """Fill one row."""
        self._texts["id"][row] = str(value.id)
        self._texts["object_type"][row] = value.object_type
        self._texts["classification"][row] = value.classification
        self._texts["name"][row] = value.name
        self._texts["color"][row] = value.color
        self._texts["parent"][row] = None if value.parent is None else str(value.parent)
        self._texts["run"][row] = value.run
        self._probability[row] = np.nan if value.probability is None else value.probability
        self._locked[row] = value.locked
        self._geometry[row] = value.geometry
        for name, number in value.measurements.items():
            self._measurement(name)[row] = number

    def put_batches(
        self, row: int, batches: Iterable[RegularBatch | SingleBatch], parent: UUID | None
    ) -> None:
        """Fill the rows of a run that begins at ``row``."""
        for batch in batches:
            rows = batch.indices + row
            if isinstance(batch, SingleBatch):
                self.put_object(int(rows[0]), batch.value)
                continue
            self._texts["id"][rows] = batch.ids()
            self._texts["object_type"][rows] = batch.object_type
            self._texts["classification"][rows] = batch.classifications()
            self._texts["name"][rows] = batch.names()
            for at, color in zip(rows.tolist(), batch.colors(), strict=True):
                self._texts["color"][at] = color
            self._texts["parent"][rows] = None if parent is None else str(parent)
            self._texts["run"][rows] = batch.metadata(RUN_KEY)
            self._probability[rows] = batch.probabilities()
            self._locked[rows] = batch.locked()
            self._geometry[rows] = batch.geometries()
            numbers = batch.measurements()
            for i, name in enumerate(batch.measurement_names):
                self._measurement(name)[rows] = numbers[:, i]

    def _measurement(self, name: str) -> NDArray[np.float64]:
        if name not in self._measurements:
            self._measurements[name] = np.full(self._count, np.nan)
        return self._measurements[name]

    def frame(self) -> gpd.GeoDataFrame:
        """The frame (columns: ``FRAME_COLUMNS``, then measurements)."""
        import geopandas as gpd
        import pandas as pd

        texts = {c: pd.Series(v, dtype=object) for c, v in self._texts.items()}
        columns: dict[str, Any] = {
            "id": texts["id"],
            "object_type": texts["object_type"],
            "classification": texts["classification"],
            "probability": self._probability,
            "name": texts["name"],
            "color": texts["color"],
            "locked": self._locked,
            "parent": texts["parent"],
            "run": texts["run"],
            **self._measurements,
        }
        return gpd.GeoDataFrame(columns, geometry=self._geometry)
