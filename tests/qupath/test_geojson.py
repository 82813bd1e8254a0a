"""GeoJSON as QuPath writes and reads it, checked against what QuPath exports."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import shapely
from fixture_projects import FIXTURES, judged_project, nuclei
from judge import assert_close
from shapely.geometry import shape

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.geojson import read_geojson, write_geojson
from pathosam_qupath.qupath.jvm import find_installation, start_qupath
from pathosam_qupath.qupath.objects import RUN_KEY, PathObject, Plane
from pathosam_qupath.qupath.project import open_project

EXPORTS = sorted((FIXTURES.parent / "geojson").glob("*.geojson"))
SPIKY = "big blob"
"""An outline that touches itself once QuPath has rounded it to 0.01 px; what QuPath makes
of it on export has lost more than half of its area. Here it is written as it is."""

each_export = pytest.mark.parametrize("export", EXPORTS, ids=[path.stem for path in EXPORTS])


def fixture_objects(export: Path) -> list[PathObject]:
    """The objects of the project entry that QuPath exported."""
    name, entry, version = export.stem.split("-")
    with open_project(FIXTURES / version / name, "embedded") as project:
        return next(e for e in project.entries if e.id == entry).objects()


def features(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    document = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    assert document["type"] == "FeatureCollection"
    return document["features"]


@each_export
def test_objects_are_written_as_qupath_exports_them(export: Path, tmp_path: Path) -> None:
    colors = read_geojson(export).class_colors
    path = tmp_path / "own.geojson"
    assert write_geojson(path, fixture_objects(export), class_colors=colors) > 0
    theirs = {feature["id"]: feature for feature in features(export)}
    for own in features(path):
        expected = theirs.pop(own["id"])
        assert list(own) == list(expected)
        assert own["properties"] == expected["properties"]
        assert list(own["properties"]) == list(expected["properties"])
        for part in ("geometry", "nucleusGeometry"):
            if part in expected and own["properties"].get("name") != SPIKY:
                assert_close(shape(own[part]), shape(expected[part]), own["id"])
                extra = [
                    {k: v for k, v in f[part].items() if k != "coordinates"}
                    for f in (own, expected)
                ]
                assert extra[0] == extra[1]
    assert not theirs


@each_export
def test_what_qupath_exports_is_read(export: Path) -> None:
    found = {item.id: item for item in read_geojson(export).objects}
    for expected in fixture_objects(export):
        item = found.pop(expected.id)
        assert item.object_type == expected.object_type
        assert item.classification == expected.classification
        assert (item.name, item.color, item.locked) == (
            expected.name,
            expected.color,
            expected.locked,
        )
        assert item.measurements == pytest.approx(dict(expected.measurements), nan_ok=True)
        assert item.metadata == expected.metadata
        assert item.plane == expected.plane
        assert (item.roi == "Ellipse") == (expected.roi == "Ellipse")
        if item.name != SPIKY:
            assert_close(expected.geometry, item.geometry, str(item.id))
        assert (item.nucleus is None) == (expected.nucleus is None)
    assert not found


@pytest.mark.qupath
@each_export
def test_qupath_reads_what_is_written(export: Path, tmp_path: Path) -> None:
    if find_installation() is None:
        pytest.skip("no QuPath found; install QuPath 0.5 or newer and set PAQUO_QUPATH_DIR")
    start_qupath()
    import jpype

    path = tmp_path / "own.geojson.gz"
    objects = fixture_objects(export)
    write_geojson(path, objects, nuclei(100, [None]))
    java_path = jpype.JClass("java.nio.file.Paths").get(str(path))
    read = jpype.JClass("qupath.lib.io.PathIO").readObjects(java_path)
    found = {str(item.getID()): item for item in read}
    assert len(found) == len(objects) + 100
    for expected in objects:
        item = found[str(expected.id)]
        label = item.getPathClass()
        assert (None if label is None else str(label)) == expected.classification
        assert bool(item.isLocked()) == expected.locked
        assert bool(item.isDetection()) == (expected.object_type in ("detection", "cell", "tile"))
        area = float(item.getROI().getArea())
        if expected.name != SPIKY:
            assert area == pytest.approx(expected.geometry.area, rel=0.02, abs=0.1)


@pytest.mark.parametrize("name", ["nuclei.geojson", "nuclei.geojson.gz"])
def test_a_frame_is_written_row_by_row_and_read_back(tmp_path: Path, name: str) -> None:
    frame = nuclei(17_000, [None])
    frame.loc[0, "Area µm^2"] = np.nan
    frame.loc[1, "classification"] = None
    frame.loc[2, "locked"] = True
    frame.at[3, "color"] = (1, 2, 3)
    frame.loc[4, "name"] = 'a "name"\n'
    path = tmp_path / name
    colors = {"Lymphocyte": (1, 2, 3)}
    assert write_geojson(path, detections=frame, class_colors=colors) == len(frame)
    result = read_geojson(path)
    assert result.class_colors["Lymphocyte"] == (1, 2, 3)
    assert [str(item.id) for item in result.objects] == frame["id"].tolist()
    for index, item in list(enumerate(result.objects))[:50]:
        row = frame.iloc[index]
        assert item.object_type == "detection"
        assert (item.classification or "") == (row["classification"] if index != 1 else "")
        assert item.metadata == {RUN_KEY: row["run"]}
        assert item.locked == row["locked"]
        assert item.color == ((1, 2, 3) if index == 3 else None)
        assert item.name == ('a "name"\n' if index == 4 else None)
        assert item.measurements.get("Area µm^2", np.nan) == pytest.approx(
            row["Area µm^2"], nan_ok=True
        )
        assert (
            np.abs(
                shapely.get_coordinates(item.geometry) - shapely.get_coordinates(row.geometry)
            ).max()
            <= 0.005 + 1e-9
        )


def test_several_frames_and_objects_make_one_collection(tmp_path: Path) -> None:
    path = tmp_path / "all.geojson"
    first, second = nuclei(10, [None], seed=1), nuclei(10, [None], seed=2)
    objects = fixture_objects(EXPORTS[0])
    count = write_geojson(path, objects, (frame for frame in (first, second)))
    ids = [feature["id"] for feature in features(path)]
    assert len(ids) == count
    assert ids == [str(item.id) for item in objects] + [*first["id"], *second["id"]]


def test_nothing_is_an_empty_collection(tmp_path: Path) -> None:
    assert write_geojson(tmp_path / "empty.geojson") == 0
    assert features(tmp_path / "empty.geojson") == []
    assert write_geojson(tmp_path / "empty.geojson", detections=nuclei(3, [None]).iloc[:0]) == 0


def test_the_same_objects_give_the_same_bytes(tmp_path: Path) -> None:
    contents = set()
    for name in ("a.geojson.gz", "b.geojson.gz"):
        write_geojson(tmp_path / name, detections=nuclei(50, [None]))
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1


def test_odd_numbers_planes_and_missing_geometry_survive(tmp_path: Path) -> None:
    item = PathObject(
        UUID(int=7),
        "tma_core",
        shapely.box(0, 0, 1, 1),
        "Ellipse",
        measurements={"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1e-300},
        plane=Plane(1, 2, 3),
    )
    nothing = PathObject(UUID(int=8), "annotation", shapely.Polygon(), "none")
    path = tmp_path / "odd.geojson"
    write_geojson(path, [item, nothing])
    found, empty = read_geojson(path).objects
    assert found.object_type == "tma_core"
    assert found.plane == Plane(1, 2, 3)
    assert found.roi == "Ellipse"
    assert found.measurements == pytest.approx(dict(item.measurements), nan_ok=True)
    assert empty.geometry.is_empty
    assert features(path)[0]["properties"]["objectType"] == "tmaCore"


SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]}


def read_one(tmp_path: Path, document: object) -> PathObject:
    path = tmp_path / "in.geojson"
    path.write_text(json.dumps(document), "utf-8")
    (item,) = read_geojson(path).objects
    return item


@pytest.mark.parametrize(
    ("properties", "kind"),
    [
        ({"objectType": "detection"}, "detection"),
        ({"object_type": "cell"}, "cell"),
        ({"type": "tile"}, "tile"),
        ({"objectType": "tmaCore"}, "tma_core"),
        ({"objectType": "tma_core"}, "tma_core"),
        ({"objectType": "unheard of"}, "annotation"),
        ({}, "annotation"),
        (None, "annotation"),
    ],
)
def test_object_types_of_all_versions(tmp_path: Path, properties: Any, kind: str) -> None:
    feature = {"type": "Feature", "geometry": SQUARE, "properties": properties}
    assert read_one(tmp_path, feature).object_type == kind


def test_the_type_that_qupath_02_put_into_the_id(tmp_path: Path) -> None:
    feature = {"type": "Feature", "id": "PathDetectionObject", "geometry": SQUARE}
    first = read_one(tmp_path, feature)
    assert first.object_type == "detection"
    assert first.id != read_one(tmp_path, feature).id


@pytest.mark.parametrize(
    ("value", "name", "color"),
    [
        ("Tumor:Positive", "Tumor: Positive", None),
        ({"name": "Tumor", "color": [1, 2, 3]}, "Tumor", (1, 2, 3)),
        ({"name": "Tumor", "color": [1, 2, 3, 128]}, "Tumor", (1, 2, 3)),
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, "Tumor: Positive", (1, 2, 3)),
        ({"name": "Tumor"}, "Tumor", None),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor", (200, 0, 0)),
        (
            {"parentClass": {"name": "Tumor", "colorRGB": -1}, "name": "3+", "colorRGB": -3670016},
            "Tumor: 3+",
            (200, 0, 0),
        ),
        ({}, None, None),
        (None, None, None),
        ("", None, None),
    ],
)
def test_classifications_of_all_versions(
    tmp_path: Path, value: Any, name: str | None, color: Any
) -> None:
    feature = {"type": "Feature", "geometry": SQUARE, "properties": {"classification": value}}
    path = tmp_path / "in.geojson"
    path.write_text(json.dumps([feature]), "utf-8")
    result = read_geojson(path)
    assert result.objects[0].classification == name
    assert result.class_colors.get(name or "") == color


def test_measurements_of_all_versions(tmp_path: Path) -> None:
    for value in (
        [{"name": "a", "value": 1.5}, {"name": "b", "value": "NaN"}],
        {"a": 1.5, "b": "NaN"},
        {"a": "1.5", "b": "nan", "c": None},
    ):
        feature = {"type": "Feature", "geometry": SQUARE, "properties": {"measurements": value}}
        item = read_one(tmp_path, feature)
        assert item.measurements == pytest.approx({"a": 1.5, "b": np.nan}, nan_ok=True)


def test_colours_and_nesting(tmp_path: Path) -> None:
    child = {"type": "Feature", "geometry": SQUARE, "properties": {"color": -3670016}}
    parent = {
        "type": "Feature",
        "geometry": SQUARE,
        "properties": {"color": [9, 8, 7], "isLocked": True, "childObjects": [child]},
    }
    root = {"type": "Feature", "properties": {"objectType": "root", "childObjects": [parent]}}
    path = tmp_path / "in.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [root]}), "utf-8")
    outer, inner = read_geojson(path).objects
    assert (outer.color, inner.color) == ((9, 8, 7), (200, 0, 0))
    assert (outer.parent, inner.parent) == (None, outer.id)
    assert outer.locked


@pytest.mark.parametrize(
    ("geometry", "roi"),
    [
        (SQUARE, "Rectangle"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [4, 1], [4, 4], [0, 0]]]}, "Polygon"),
        ({**SQUARE, "isEllipse": True}, "Ellipse"),
        ({"type": "Point", "coordinates": [1, 2, 3]}, "Points"),
        ({"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}, "Points"),
        ({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}, "Line"),
        ({"type": "LineString", "coordinates": [[1, 2], [3, 4], [5, 5]]}, "Polyline"),
        ({"type": "MultiPolygon", "coordinates": [SQUARE["coordinates"]]}, "Geometry"),
    ],
)
def test_kinds_of_geometry(tmp_path: Path, geometry: dict[str, Any], roi: str) -> None:
    item = read_one(tmp_path, geometry)
    assert item.roi == roi
    assert not item.geometry.has_z


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"3",
        b'{"type": "Topology"}',
        b'{"features": 3}',
        b'{"features": [3]}',
        b'{"features": [{"geometry": {"type": "Polygon"}}]}',
        b'{"features": [{"geometry": {"type": "Blob", "coordinates": []}}]}',
        b'{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1]]]}}]}',
        b'{"features": [{"properties": {"measurements": {"a": "much"}}}]}',
        b"[" * 100_000,
        b"\x1f\x8b\x08\x00broken",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_geojson_is_a_format_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.geojson"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"in\.geojson"):
        read_geojson(path)


def test_judged_counts_are_exported(tmp_path: Path) -> None:
    for export in EXPORTS:
        name, entry, version = export.stem.split("-")
        judged = next(e for e in judged_project(f"{version}/{name}")["entries"] if e["id"] == entry)
        assert len(features(export)) == judged["n_objects"]
