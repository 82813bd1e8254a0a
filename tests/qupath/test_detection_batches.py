"""Detections that are written as they come are those that are written at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from fixture_projects import nuclei
from geopandas.testing import assert_geodataframe_equal

from pathosam_qupath.errors import ProjectError
from pathosam_qupath.qupath.project import HierarchyChange, open_project
from pathosam_qupath.qupath.qpdata import QpData
from pathosam_qupath.run_predictions import StoredNuclei, store_nuclei


class Batches:
    """Frames as batches; ``lost`` rows are missing when they are asked for."""

    def __init__(self, frames: list[gpd.GeoDataFrame], lost: int = 0) -> None:
        self.frames, self.lost = frames, lost
        everything = pd.concat(frames)
        self.counts = {
            parent if isinstance(parent, str) else None: int(count)
            for parent, count in everything["parent"].value_counts(dropna=False).items()
        }
        self.classes = set(everything["classification"].dropna())
        self.held = 0

    def under(self, parent: str | None) -> Iterator[gpd.GeoDataFrame]:
        for frame in self.frames:
            of_parent = frame["parent"].isna() if parent is None else frame["parent"] == parent
            yield frame[of_parent].iloc[self.lost :]


def mixed(count: int, parents: list[str | None], seed: int) -> gpd.GeoDataFrame:
    """Nuclei, some of which have a hole, a name, no class, or no run."""
    frame = nuclei(count, parents, seed=seed)
    shapes = frame.geometry.to_numpy()
    shapes[3] = shapes[3].difference(shapely.centroid(shapes[3]).buffer(1))
    frame = frame.set_geometry(shapes)
    frame.loc[5, ["classification", "run"]] = None
    frame.loc[7, "name"] = "by hand"
    frame.loc[9, "classification"] = f"Class {seed}"
    return frame


def test_batches_give_the_objects_that_one_frame_gives(
    backend: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    found = []
    for name in ("whole", "batches"):
        folder = copied("0.6.0/cells").rename(tmp_path / name)
        with open_project(folder, backend) as project:
            entry = project.entries[0]
            parents = [str(o.id) for o in entry.annotations()] + [None]
            frames = [mixed(60, parents, seed) for seed in range(4)]
            if name == "whole":
                change = HierarchyChange(add=pd.concat(frames, ignore_index=True))
            else:
                change = HierarchyChange(batches=Batches(frames))
            entry.write(change)
            found.append(entry.detections())  # of the file: memory does not have the batches
        with open_project(folder, backend) as project:
            assert_geodataframe_equal(project.entries[0].detections(), found[-1])
    assert len(found[0]) > 240
    assert_geodataframe_equal(*found)


def test_batches_that_shrink_while_they_are_written_leave_the_file(
    copied: Callable[[str], Path],
) -> None:
    folder = copied("0.6.0/cells")
    path = folder / "data" / "1" / "data.qpdata"
    before = path.read_bytes()
    with open_project(folder, "embedded") as project:
        batches = Batches([nuclei(50, [None])], lost=1)
        with pytest.raises(ProjectError, match="49 of them now"):
            project.entries[0].write(HierarchyChange(batches=batches))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob("*tmp*")] == []


def test_a_file_does_not_depend_on_the_size_of_batches() -> None:
    frame = nuclei(500, [None])
    empty = QpData.new({}, identifier="x").to_bytes()
    written = set()
    for size in (500, 100, 7):
        data = QpData.read(empty)
        data.add_batches(Batches([frame[i : i + size] for i in range(0, 500, size)]))
        written.add(data.to_bytes())
    [content] = written
    again = QpData.read(content).detections()
    assert_geodataframe_equal(again[frame.columns], frame, check_dtype=False)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[StoredNuclei, list[gpd.GeoDataFrame]]:
    frames = [nuclei(40, ["a", None, "b"], seed=1), nuclei(10, ["b"], seed=2)]
    empty = frames[0].iloc[:0]
    return store_nuclei(tmp_path / "nuclei.parquet", [empty, *frames]), frames


def test_stored_nuclei_come_back_by_parent_and_as_a_whole(
    stored: tuple[StoredNuclei, list[gpd.GeoDataFrame]],
) -> None:
    found, frames = stored
    assert len(found) == 50
    assert found.counts == {"a": 14, None: 13, "b": 23}
    assert found.classes == {"Nucleus: Tumor", "Lymphocyte"}
    everything = pd.concat(frames, ignore_index=True)
    again = gpd.read_parquet(found.path)
    assert again.crs is None
    assert_geodataframe_equal(again[everything.columns], everything, check_dtype=False)
    for parent in found.counts:
        parts = pd.concat(found.under(parent), ignore_index=True)
        of_parent = everything["parent"].map(lambda p: p if isinstance(p, str) else None)
        expected = everything[np.array([p == parent for p in of_parent])]
        assert_geodataframe_equal(
            parts[everything.columns], expected.reset_index(drop=True), check_dtype=False
        )


def test_no_nuclei_make_a_file_that_can_be_read(tmp_path: Path) -> None:
    found = store_nuclei(tmp_path / "nuclei.parquet", [nuclei(3, [None]).iloc[:0]])
    assert len(found) == 0
    assert found.counts == {}
    again = gpd.read_parquet(found.path)
    assert len(again) == 0
    assert "Area µm^2" in again
