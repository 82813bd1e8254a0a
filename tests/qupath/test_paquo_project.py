"""QuPath itself reads what the embedded backend writes, and the other way round.

What both backends promise is tested for both in ``test_project``; here are the cross
checks and what is particular to a Java machine inside this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import shapely
from fixture_projects import PROJECTS, nuclei

from pathosam_qupath.errors import FormatError, ProjectError, UsageError
from pathosam_qupath.qupath import jvm
from pathosam_qupath.qupath.objects import FRAME_COLUMNS, PathObject
from pathosam_qupath.qupath.project import HierarchyChange, open_project

Copy = Callable[[str], Path]
ROUNDED = 0.0071
"""QuPath (0.6) rounds the vertices of a GeometryROI to 0.01 px when it reads them."""

pytestmark = pytest.mark.qupath


@pytest.fixture(autouse=True)
def _needs_qupath() -> None:
    if jvm.find_installation() is None:
        pytest.skip("no QuPath found; install QuPath 0.5 or newer and set PAQUO_QUPATH_DIR")


@pytest.mark.parametrize("name", PROJECTS)
@pytest.mark.parametrize(("writer", "reader"), [("embedded", "paquo"), ("paquo", "embedded")])
def test_one_backend_reads_what_the_other_wrote(
    writer: str, reader: str, name: str, copied: Copy
) -> None:
    folder = copied(name)
    with open_project(folder, writer) as project:
        for number, entry in enumerate(project.entries):
            objects = entry.objects()
            leaves = {o.id for o in objects} - {o.parent for o in objects}
            tiles = [o.id for o in objects if o.id in leaves and o.object_type == "tile"]
            parents = [str(o.id) for o in objects if o.object_type == "annotation"]
            added = nuclei(200, [*parents, None], seed=number)
            entry.write(HierarchyChange(remove=frozenset(tiles[::2]), add=added))
            assert len(entry.objects()) == len(objects) - len(tiles[::2]) + 200
    with open_project(folder, writer) as wrote, open_project(folder, reader) as reads:
        for left, right in zip(wrote.entries, reads.entries, strict=True):
            assert left.image_type == right.image_type
            _assert_same_objects(left.objects(), right.objects())
            _assert_same_objects(left.annotations(), right.annotations())
            _assert_same_frames(left.detections(), right.detections())


def test_children_of_removed_objects_end_up_in_the_same_places(copied: Copy) -> None:
    found = []
    for backend in ("embedded", "paquo"):
        with open_project(copied("0.6.0/cells") / "project.qpproj", backend) as project:
            entry = project.entries[0]
            objects = entry.objects()
            parents = {o.parent for o in objects}
            gone = [o.id for o in objects if o.id in parents and o.object_type != "tma_core"]
            assert len(gone) > 1
            entry.write(HierarchyChange(remove=frozenset(gone)))
        with open_project(project.path, "embedded") as project:
            found.append(project.entries[0].objects())
        for path in sorted(project.path.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        project.path.parent.rmdir()
    _assert_same_objects(*found)


@pytest.mark.parametrize("backend", ["embedded", "paquo"])
@pytest.mark.parametrize("name", ["0.6.0/awkward projekt", "0.5.1/cells"])
def test_qupath_opens_the_written_hierarchies_itself(backend: str, name: str, copied: Copy) -> None:
    folder = copied(name)
    expected = []
    with open_project(folder, backend) as project:
        for entry in project.entries:
            entry.write(HierarchyChange(add=nuclei(300, [None])))
            expected.append(
                [(str(o.id), o.classification, dict(o.metadata)) for o in entry.objects()]
            )
    jvm.start_qupath()
    from paquo.projects import QuPathProject

    opened = QuPathProject(folder / "project.qpproj", mode="r")
    for entry, objects in zip(opened.images, expected, strict=True):
        hierarchy = entry.java_object.readHierarchy()
        read = {
            str(o.getID()): (
                None if o.getPathClass() is None else str(o.getPathClass()),
                {str(k): str(o.getMetadata().get(k)) for k in o.getMetadata().keySet()},
            )
            for o in hierarchy.getFlattenedObjectList(None)
            if not o.isRootObject()
        }
        assert read == {identity: (name, metadata) for identity, name, metadata in objects}


def test_a_folder_with_a_dot_in_its_name_opens(copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    dotted = folder.rename(folder.with_name("rois v1.2"))
    with open_project(dotted, "paquo") as project:
        assert len(project.entries[0].objects()) == 13


def test_polygons_with_holes_and_several_parts_are_written(copied: Copy) -> None:
    frame = nuclei(3, [None])
    hole = shapely.Polygon(shapely.box(10, 10, 50, 50).exterior, [[(20, 20), (30, 20), (30, 30)]])
    parts = shapely.MultiPolygon([shapely.box(1, 1, 5, 5), shapely.box(7.5, 1, 9, 5)])
    frame.geometry = [hole, parts, shapely.Polygon([(0, 0), (4, 0), (4.5, 3)])]
    found = []
    for backend in ("embedded", "paquo"):
        with open_project(copied("0.6.0/rois"), backend) as project:
            project.entries[1].write(HierarchyChange(add=frame))
            path = project.path
        with open_project(path, "embedded") as project:
            found.append(project.entries[1].objects()[-3:])
        path.parent.rename(path.parent.with_name(backend))
    assert [o.roi for o in found[0]] == ["Geometry", "Geometry", "Polygon"]
    for left, right in zip(*found, strict=True):
        assert left.roi == right.roi
        assert shapely.equals(left.geometry, right.geometry)


def test_only_given_columns_are_needed(copied: Copy) -> None:
    with open_project(copied("0.6.0/rois"), "paquo") as project:
        entry = project.entries[0]
        before = {o.id for o in entry.objects()}
        entry.write(HierarchyChange(add=nuclei(5, [None])[["geometry"]]))
        added = [o for o in entry.objects() if o.id not in before]
    assert len(added) == 5
    for detection in added:
        assert detection.classification is None
        assert detection.probability is None
        assert not detection.locked
        assert detection.run is None


def test_names_colours_and_locks_are_written(copied: Copy) -> None:
    frame = nuclei(4, [None]).astype({"name": object, "color": object})
    frame["name"] = [None, "äöü", "n2", None]
    frame["color"] = [None, (1, 2, 255), None, (255, 0, 9)]
    frame["locked"] = [False, True, False, False]
    frame["classification"] = [None, "Tumor: Positive", None, "Tumor"]
    with open_project(copied("0.6.0/rois"), "paquo") as project:
        project.entries[0].write(HierarchyChange(add=frame))
        written = project.path
    with open_project(written, "embedded") as project:
        added = project.entries[0].objects()[-4:]
    assert [o.name for o in added] == [None, "äöü", "n2", None]
    assert [o.color for o in added] == [None, (1, 2, 255), None, (255, 0, 9)]
    assert [o.locked for o in added] == [False, True, False, False]
    assert [o.classification for o in added] == [None, "Tumor: Positive", None, "Tumor"]


def test_a_tma_core_is_not_removed(copied: Copy) -> None:
    with open_project(copied("0.6.0/cells"), "paquo") as project:
        for entry in project.entries:
            content = entry.data_path.read_bytes()
            cores = [o.id for o in entry.objects() if o.object_type == "tma_core"]
            if cores:
                with pytest.raises(ProjectError, match="TMA"):
                    entry.write(HierarchyChange(remove=frozenset(cores[:1])))
                assert entry.data_path.read_bytes() == content
                return
    pytest.fail("the fixture has no TMA core")


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_damaged_data_are_a_clear_error(damage: str, copied: Copy) -> None:
    with open_project(copied("0.6.0/rois"), "paquo") as project:
        path = project.entries[0].data_path
        content = path.read_bytes()
        path.write_bytes({"cut": content[:4000], "foreign": b"PK" + content, "empty": b""}[damage])
        with pytest.raises(FormatError, match=r"data\.qpdata"):
            project.entries[0].objects()


def test_java_is_kept_to_a_quarter_of_the_memory() -> None:
    jvm.start_qupath()
    from jpype import JClass

    limit = int(JClass("java.lang.Runtime").getRuntime().maxMemory())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert limit <= min(memory / 4, 8 * 2**30) * 1.01


def test_stdout_stays_clean_and_memory_can_be_set(copied: Copy) -> None:
    script = (
        "import sys; from pathosam_qupath.qupath.project import open_project\n"
        "p = open_project(sys.argv[1], 'paquo'); n = len(p.entries[0].objects())\n"
        "from jpype import JClass\n"
        "print(n, JClass('java.lang.Runtime').getRuntime().maxMemory() >> 20)\n"
    )
    environment = {**os.environ, jvm.MEMORY_VARIABLE: "300m"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(copied("0.6.0/rois"))],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=120,
    )
    number, limit = done.stdout.split()
    assert number == "13"
    assert 250 < int(limit) <= 300


def test_a_memory_limit_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jvm.MEMORY_VARIABLE, "lots")
    with pytest.raises(UsageError, match=jvm.MEMORY_VARIABLE):
        jvm.start_qupath()


def test_a_missing_installation_names_the_way_out(copied: Copy) -> None:
    script = (
        "import sys; from pathosam_qupath.qupath.project import open_project\n"
        "from pathosam_qupath.errors import BackendError\n"
        "try:\n    open_project(sys.argv[1], 'paquo')\n"
        "except BackendError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(copied("0.6.0/rois"))],
        capture_output=True,
        text=True,
        env={**os.environ, "PAQUO_QUPATH_DIR": "/nowhere/qupath"},
        check=True,
        timeout=120,
    )
    assert "PAQUO_QUPATH_DIR" in done.stdout
    assert "embedded" in done.stdout


def _assert_same_objects(left: Sequence[PathObject], right: Sequence[PathObject]) -> None:
    """The same objects in the same order, with the same values."""
    assert [o.id for o in left] == [o.id for o in right]
    for one, other in zip(left, right, strict=True):
        for name in (
            "object_type",
            "roi",
            "classification",
            "probability",
            "name",
            "color",
            "locked",
            "metadata",
            "parent",
            "plane",
        ):
            assert getattr(one, name) == getattr(other, name), (one.id, name)
        assert list(one.measurements) == list(other.measurements), one.id
        assert np.array_equal(
            list(one.measurements.values()), list(other.measurements.values()), equal_nan=True
        ), one.id
        _assert_same_geometry(one.geometry, other.geometry, one.roi)
        assert (one.nucleus is None) == (other.nucleus is None)
        if one.nucleus is not None:
            _assert_same_geometry(one.nucleus, other.nucleus, "Polygon")


def _assert_same_geometry(left: object, right: object, roi: str) -> None:
    tolerance = ROUNDED if roi == "Geometry" else 0
    assert shapely.equals_exact(left, right, tolerance=tolerance), (roi, left, right)


def _assert_same_frames(left, right) -> None:
    assert list(left.columns) == list(right.columns)
    assert left.dtypes.tolist() == right.dtypes.tolist()
    for name in left.columns:
        if name == "geometry":
            same = shapely.equals_exact(left[name].array, right[name].array, tolerance=ROUNDED)
            assert all(same)
        elif name in FRAME_COLUMNS and name != "probability":
            assert left[name].tolist() == right[name].tolist(), name
        else:
            assert np.array_equal(left[name], right[name], equal_nan=True), name
