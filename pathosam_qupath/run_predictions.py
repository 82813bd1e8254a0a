"""An image's nuclei in a run's record, as GeoParquet, written and read some at a time.

A slide has a million nuclei, and a frame of them takes gigabytes. They come from the ledger
in batches, each of which becomes a row group here; what goes into ``data.qpdata`` then is
read from these row groups. The file is what ``geopandas.read_parquet`` expects (GeoParquet
1.0.0: geometry as WKB, no CRS, since pixels are no place on earth).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import shapely

from pathosam_qupath.qupath.atomic import replace_file
from pathosam_qupath.qupath.objects import FRAME_COLUMNS

if TYPE_CHECKING:
    import geopandas as gpd
    import pyarrow as pa

_GEO = {
    "version": "1.0.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": [], "crs": None}},
}


@dataclass(eq=False)
class StoredNuclei:
    """The nuclei in a file that :func:`store_nuclei` wrote; ``DetectionBatches`` of a change.

    Attributes
    ----------
    groups : how many nuclei each row group has under each parent.
    classes : the classes that occur.
    """

    path: Path
    groups: tuple[Mapping[str | None, int], ...]
    classes: Collection[str]
    _last: tuple[int, gpd.GeoDataFrame] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return sum(sum(group.values()) for group in self.groups)

    @property
    def counts(self) -> Mapping[str | None, int]:
        """How many nuclei there are under each parent."""
        counts: dict[str | None, int] = {}
        for group in self.groups:
            for parent, count in group.items():
                counts[parent] = counts.get(parent, 0) + count
        return counts

    def under(self, parent: str | None, /) -> Iterator[gpd.GeoDataFrame]:
        """The nuclei of a parent, a row group at a time."""
        for number, group in enumerate(self.groups):
            if parent in group:
                frame = self._group(number)
                if len(group) > 1:
                    parents = frame["parent"]
                    of_parent = parents.isna() if parent is None else parents == parent
                    frame = frame[of_parent.to_numpy()]
                yield frame

    def _group(self, number: int) -> gpd.GeoDataFrame:
        """A row group; the last one is kept, since its other parents are asked for next."""
        import geopandas as gpd
        import pyarrow.parquet as pq

        if self._last is None or self._last[0] != number:
            self._last = None
            with pq.ParquetFile(self.path) as file:
                table = file.read_row_group(number, use_pandas_metadata=False)
            columns = {name: table[name].to_numpy() for name in table.column_names}
            columns["geometry"] = shapely.from_wkb(columns["geometry"])
            self._last = (number, gpd.GeoDataFrame(columns, geometry="geometry"))
        return self._last[1]


def store_nuclei(path: Path, frames: Iterable[gpd.GeoDataFrame]) -> StoredNuclei:
    """Write frames of nuclei as the row groups of one file, atomically.

    Parameters
    ----------
    frames : at least one; every one has ``FRAME_COLUMNS`` without colours of their own, and
        the same measurements. An empty one makes no row group.
    """
    groups: list[Mapping[str | None, int]] = []
    classes: set[str] = set()

    def write(file: BinaryIO) -> None:
        import pyarrow.parquet as pq

        writer: Any = None
        try:
            for frame in frames:
                table = _table(frame)
                if writer is None:
                    writer = pq.ParquetWriter(file, table.schema, compression="zstd")
                if len(frame):
                    writer.write_table(table, row_group_size=len(frame))
                    counts = frame["parent"].value_counts(dropna=False)
                    groups.append(
                        {None if p != p or p is None else str(p): int(n) for p, n in counts.items()}
                    )
                    classes.update(frame["classification"].dropna())
        finally:
            if writer is not None:
                writer.close()

    replace_file(path, write)
    return StoredNuclei(path, tuple(groups), frozenset(classes))


def _table(frame: gpd.GeoDataFrame) -> pa.Table:
    """A frame as a table whose columns have the same types whatever is in them."""
    import pyarrow as pa

    texts = {"id", "object_type", "classification", "name", "color", "parent", "run"}
    arrays: dict[str, pa.Array] = {}
    for name in (*FRAME_COLUMNS, *(c for c in frame.columns if c not in FRAME_COLUMNS)):
        if name == "geometry":
            arrays[name] = pa.array(shapely.to_wkb(frame.geometry.to_numpy()), pa.binary())
        elif name in texts:
            arrays[name] = pa.array(frame[name], pa.string(), from_pandas=True)
        elif name == "locked":
            arrays[name] = pa.array(frame[name].to_numpy(bool))
        else:
            arrays[name] = pa.array(np.asarray(frame[name], np.float64))
    table = pa.Table.from_pydict(arrays)
    return table.replace_schema_metadata({"geo": json.dumps(_GEO)})
