"""Projects through both backends: one suite, since both must give and keep the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import shapely
from fixture_projects import FIXTURES, PROJECTS, images_map, judged_project, nuclei
from judge import assert_frame_equal, assert_objects_equal, packed

from pathosam_qupath.errors import (
    BackendError,
    ChangedSinceReadError,
    ProjectError,
    UsageError,
)
from pathosam_qupath.qupath.objects import FRAME_COLUMNS
from pathosam_qupath.qupath.project import HierarchyChange, PathMap, open_project
from pathosam_qupath.qupath.qpdata import QpData

Copy = Callable[[str], Path]
CELLS = [name for name in PROJECTS if name.endswith("/cells")]
each_project = pytest.mark.parametrize("name", PROJECTS)


@each_project
def test_entries_are_what_qupath_reads(backend: str, name: str, copied: Copy) -> None:
    judged = judged_project(name)
    with open_project(copied(name), backend) as project:
        assert project.backend == backend
        assert project.qupath_version == judged["version"]
        assert [entry.id for entry in project.entries] == [e["id"] for e in judged["entries"]]
        for entry, expected in zip(project.entries, judged["entries"], strict=True):
            assert entry.name == expected["name"]
            assert entry.description == expected["description"]
            assert dict(entry.metadata) == expected["metadata"]
            assert list(entry.tags) == expected.get("tags", [])
            assert [entry.image.uri] == expected["uris"]
            if "image_type" in expected:
                assert entry.image_type == expected["image_type"]
            assert entry.data_path.is_file() == expected["has_data"]


@each_project
def test_objects_are_what_qupath_reads(backend: str, name: str, copied: Copy) -> None:
    with open_project(copied(name), backend) as project:
        for entry, expected in zip(project.entries, judged_project(name)["entries"], strict=True):
            assert_objects_equal(entry.objects(), expected["objects"])
            annotations = [o for o in expected["objects"] if o["type"] == "annotation"]
            assert_objects_equal(entry.annotations(), annotations)
            assert_frame_equal(entry.detections(), expected["objects"])


@each_project
def test_classes_are_what_qupath_reads(backend: str, name: str, copied: Copy) -> None:
    with open_project(copied(name), backend) as project:
        classes = [[name, packed(color)] for name, color in project.classes.items()]
        assert classes == judged_project(name)["path_classes"]


@each_project
def test_reading_changes_no_file(backend: str, name: str, copied: Copy) -> None:
    folder = copied(name)
    with open_project(folder, backend, path_map=images_map(name)) as project:
        for entry in project.entries:
            entry.objects()
    assert _contents(folder) == _contents(FIXTURES / name)


@pytest.mark.parametrize("name", CELLS)
def test_ten_thousand_detections_come_and_go_and_nothing_else_changes(
    backend: str, name: str, copied: Copy
) -> None:
    folder = copied(name)
    judged = judged_project(name)["entries"][0]["objects"]
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        parents = [str(o.id) for o in entry.annotations()] + [None]
        before = QpData.read(entry.data_path)
        frame = nuclei(10_000, parents)
        entry.write(HierarchyChange(add=frame))
        path = entry.data_path

    with open_project(folder, backend) as project:
        entry = project.entries[0]
        added = set(frame["id"])
        assert_objects_equal(
            [o for o in entry.objects() if str(o.id) not in added], _without_child_counts(judged)
        )
        _assert_same_nuclei(entry.detections(), frame)
        _assert_same_image_data(QpData.read(path), before, backend)
        entry.write(HierarchyChange(remove=frozenset(UUID(i) for i in added)))

    with open_project(folder, backend) as project:
        assert_objects_equal(project.entries[0].objects(), judged)
    _assert_same_image_data(QpData.read(path), before, backend)
    changed = {p for p, c in _contents(folder).items() if c != _contents(FIXTURES / name).get(p)}
    assert changed <= {"data/1/data.qpdata", "data/1/data.qpdata.bkp", "data/1/summary.json"}


def test_children_of_a_removed_object_move_to_its_parent(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/cells")
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        objects = entry.objects()
        tumor = next(o for o in objects if o.name == "tumor")
        children = {o.id for o in objects if o.parent == tumor.id}
        assert children
        entry.write(HierarchyChange(remove=frozenset([tumor.id])))
    with open_project(folder, backend) as project:
        after = {o.id: o for o in project.entries[0].objects()}
    assert set(after) == {o.id for o in objects} - {tumor.id}
    assert {after[i].parent for i in children} == {tumor.parent}


def test_an_entry_without_data_gets_its_first(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/awkward projekt")
    frame = nuclei(50, [None])
    with open_project(folder, backend) as project:
        entry = next(e for e in project.entries if e.name == "no data")
        assert entry.objects() == []
        entry.write(HierarchyChange(add=frame))
        path = entry.data_path
    with open_project(folder, backend) as project:
        entry = next(e for e in project.entries if e.name == "no data")
        _assert_same_nuclei(entry.detections(), frame)
        assert entry.image_type == "UNSET"
    assert path == folder / "data" / "2" / "data.qpdata"
    assert not path.with_name("data.qpdata.bkp").exists()


def test_two_writes_in_a_row_need_no_reading_in_between(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    first, second = nuclei(20, [None], seed=1), nuclei(20, [None], seed=2)
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        entry.write(HierarchyChange(add=first))
        entry.write(HierarchyChange(add=second, remove=frozenset(UUID(i) for i in first["id"])))
        _assert_same_nuclei(entry.detections(), second)
    with open_project(folder, backend) as project:
        _assert_same_nuclei(project.entries[0].detections(), second)


def test_entries_are_kept_apart(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/cells")
    judged = judged_project("0.6.0/cells")["entries"]
    with open_project(folder, backend) as project:
        first, second = project.entries
        first.objects()
        second.objects()
        first.write(HierarchyChange(add=nuclei(5, [None])))
        assert len(first.objects()) == len(judged[0]["objects"]) + 5
        assert_objects_equal(second.objects(), judged[1]["objects"])


def test_the_previous_file_stays_as_backup(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        old = entry.data_path.read_bytes()
        entry.write(HierarchyChange(add=nuclei(5, [None])))
        assert entry.data_path.read_bytes() != old
        assert entry.data_path.with_name("data.qpdata.bkp").read_bytes() == old
        assert sorted(p.name for p in entry.data_path.parent.iterdir()) == [
            "data.qpdata",
            "data.qpdata.bkp",
            "server.json",
            "summary.json",
            "thumbnail.jpg",
        ]


def test_a_file_that_changed_since_it_was_read_is_not_overwritten(
    backend: str, copied: Copy
) -> None:
    folder = copied("0.6.0/rois")
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        entry.annotations()
        with open_project(folder, "embedded") as other:
            other.entries[0].write(HierarchyChange(add=nuclei(3, [None])))
        saved = entry.data_path.read_bytes()
        with pytest.raises(ChangedSinceReadError, match="changed after it was read"):
            entry.write(HierarchyChange(add=nuclei(4, [None])))
        assert entry.data_path.read_bytes() == saved


def test_a_removed_file_is_not_written_again(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        entry.annotations()
        entry.data_path.unlink()
        with pytest.raises(ChangedSinceReadError, match="removed"):
            entry.write(HierarchyChange(add=nuclei(4, [None])))
        assert not entry.data_path.exists()


def test_data_that_appeared_since_are_not_overwritten(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/awkward projekt")
    with open_project(folder, backend) as project:
        entry = project.entries[1]
        assert entry.annotations() == []
        entry.data_path.parent.mkdir(exist_ok=True)
        shutil.copy(folder / "data" / "4" / "data.qpdata", entry.data_path)
        saved = entry.data_path.read_bytes()
        with pytest.raises(ChangedSinceReadError, match="created"):
            entry.write(HierarchyChange(add=nuclei(4, [None])))
        assert entry.data_path.read_bytes() == saved


def test_a_touched_file_with_the_same_content_may_be_written(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        entry.annotations()
        entry.data_path.touch()
        entry.write(HierarchyChange(add=nuclei(4, [None])))
        assert len(entry.detections()) == 4


def test_a_parent_that_is_not_there_is_an_error_and_changes_nothing(
    backend: str, copied: Copy
) -> None:
    folder = copied("0.6.0/rois")
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        frame = nuclei(4, ["00000000-0000-4000-8000-000000000000"])
        with pytest.raises(ProjectError):
            entry.write(HierarchyChange(add=frame))
        judged = judged_project("0.6.0/rois")["entries"][0]["objects"]
        assert_objects_equal(entry.objects(), judged)
    assert _contents(folder) == _contents(FIXTURES / "0.6.0/rois")


def test_damaged_data_are_read_from_the_backup_and_kept(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    path = folder / "data" / "1" / "data.qpdata"
    good = path.read_bytes()
    path.with_name("data.qpdata.bkp").write_bytes(good)
    damaged = good[: len(good) // 2]
    path.write_bytes(damaged)
    judged = judged_project("0.6.0/rois")["entries"][0]["objects"]
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        with pytest.warns(UserWarning, match="backup"):
            assert_objects_equal(entry.objects(), judged)
        entry.write(HierarchyChange(add=nuclei(4, [None])))
    assert path.with_name("data.qpdata.bkp").read_bytes() == good
    assert path.with_name("data.qpdata.damaged").read_bytes() == damaged
    with open_project(folder, backend) as project:
        assert len(project.entries[0].objects()) == len(judged) + 4


def test_damaged_data_without_a_backup_are_an_error(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    path = folder / "data" / "1" / "data.qpdata"
    path.write_bytes(path.read_bytes()[:1000])
    with open_project(folder, backend) as project:
        with pytest.raises(ProjectError, match=r"data\.qpdata"):
            project.entries[0].objects()
        with pytest.raises(ProjectError, match=r"data\.qpdata"):
            project.entries[0].write(HierarchyChange(add=nuclei(4, [None])))
    assert path.stat().st_size == 1000


def test_classes_are_appended_and_known_ones_keep_their_colour(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    with open_project(folder, backend) as project:
        project.add_classes({"Tumor": (1, 1, 1), "Lymphocyte": (10, 20, 30)})
        expected = {
            "Tumor": (200, 0, 0),
            "Nucleus: Tumor": (17, 5, 246),
            "Größe/µ": (1, 2, 3),
            "Lymphocyte": (10, 20, 30),
        }
        assert list(project.classes.items()) == list(expected.items())
    with open_project(folder, backend) as project:
        assert list(project.classes.items()) == list(expected.items())


def test_a_project_without_classes_keeps_those_that_qupath_offers(
    backend: str, copied: Copy
) -> None:
    folder = copied("0.6.0/cells")
    with open_project(folder, backend) as project:
        assert project.classes == {}
        project.add_classes({"Lymphocyte": (10, 20, 30), "Stroma": (1, 1, 1)})
    with open_project(folder, "embedded") as project:
        assert list(project.classes)[:2] == ["Tumor", "Stroma"]
        assert list(project.classes)[-1] == "Lymphocyte"
        assert project.classes["Tumor"] == (200, 0, 0)
        assert project.classes["Lymphocyte"] == (10, 20, 30)


def test_a_path_map_finds_the_images(backend: str, copied: Copy) -> None:
    folder = copied("0.7.0/rois")
    with open_project(folder, backend, path_map=images_map("0.7.0/rois")) as project:
        found = {entry.name: entry.image for entry in project.entries}
    assert found["ihc.png"].path == FIXTURES / "0.6.0" / "images" / "ihc.png"
    assert found["ihc.png"].problem is None
    assert found["ihc.png"].mpp is None
    assert found["fluor3ch.ome.tif - Image0"].mpp == (0.325, 0.325)
    assert found["renamed slide"].path is None
    assert "--path-map" in (found["renamed slide"].problem or "")


def test_images_that_moved_with_the_project_are_found(backend: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "0.6.0" / "rois", tmp_path / "moved" / "rois")
    shutil.copytree(FIXTURES / "0.6.0" / "images", tmp_path / "moved" / "images")
    with open_project(tmp_path / "moved" / "rois", backend) as project:
        found = {entry.name: entry.image.path for entry in project.entries}
    assert found["ihc.png"] == tmp_path / "moved" / "images" / "ihc.png"


def test_probabilities_and_measurements_survive_as_they_were(backend: str, copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    frame = nuclei(20, [None])
    frame.loc[3, "Area µm^2"] = np.nan
    frame.loc[4, "probability"] = np.nan
    frame.loc[5, "classification"] = None
    with open_project(folder, backend) as project:
        project.entries[0].write(HierarchyChange(add=frame))
    with open_project(folder, backend) as project:
        _assert_same_nuclei(project.entries[0].detections(), frame)


def test_auto_takes_the_embedded_backend_where_no_qupath_is_found(
    copied: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathosam_qupath.qupath.jvm.find_installation", lambda: None)
    with open_project(copied("0.6.0/rois")) as project:
        assert project.backend == "embedded"


def test_paquo_without_a_qupath_says_how_to_get_one(
    copied: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathosam_qupath.qupath.jvm import find_installation

    if find_installation() is not None:
        pytest.skip("a QuPath is found here")
    with pytest.raises(BackendError, match="PAQUO_QUPATH_DIR"):
        open_project(copied("0.6.0/rois"), "paquo")


def test_path_maps_are_parsed() -> None:
    assert PathMap.parse(["/a=/b", " C:\\x = /y=z "]).pairs == (("/a", "/b"), ("C:\\x", "/y=z"))
    for text in ("nothing", "=/b", "/a="):
        with pytest.raises(UsageError, match="FROM=TO"):
            PathMap.parse([text])


def test_an_unknown_backend_is_an_error(copied: Copy) -> None:
    with pytest.raises(UsageError, match="auto, paquo or embedded"):
        open_project(copied("0.6.0/rois"), "groovy")  # type: ignore[arg-type]


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _without_child_counts(judged: list[dict]) -> list[dict]:
    return [{k: v for k, v in item.items() if k != "n_children"} for item in judged]


def _assert_same_nuclei(found, frame) -> None:
    """The rows of a frame are in a file, in their parents' order, with all their values."""
    found = found[found["id"].isin(set(frame["id"]))]
    assert set(found["id"]) == set(frame["id"])
    assert len(found) == len(frame)
    for parent in set(frame["parent"]):
        same = [p == parent for p in found["parent"]], [p == parent for p in frame["parent"]]
        assert found["id"][same[0]].tolist() == frame["id"][same[1]].tolist()
    found = found.set_index("id").loc[frame["id"]].reset_index()
    frame = frame.reset_index(drop=True)
    assert all(shapely.equals_exact(found.geometry.array, frame.geometry.array))
    assert (found["object_type"] == "detection").all()
    for column in ("classification", "parent", "run"):
        assert [v if isinstance(v, str) else None for v in found[column]] == [
            v if isinstance(v, str) else None for v in frame[column]
        ]
    for column in ["probability", *(c for c in frame.columns if c not in FRAME_COLUMNS)]:
        assert np.array_equal(
            found[column].to_numpy(float), frame[column].to_numpy(float), equal_nan=True
        )


def _assert_same_image_data(data: QpData, before: QpData, backend: str) -> None:
    for what in ("version", "image_type", "properties", "tma_grid", "server"):
        assert getattr(data, what) == getattr(before, what), what
    assert data.workflow == before.workflow
    if backend == "embedded":
        assert data.stains == before.stains
    else:  # QuPath brings the vectors to length 1 when it reads them: the last digits move
        assert _stain_numbers(data) == pytest.approx(_stain_numbers(before), rel=1e-8)


def _stain_numbers(data: QpData) -> list[float]:
    values = [v for k, v in (data.stains or {}).items() if k.startswith(("Values", "Background"))]
    return [float(number) for value in values for number in value.split()]
