"""Detections written from a frame are read as they were given."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from judge import judged_entries

from pathosam_qupath.errors import PathosamError, UsageError
from pathosam_qupath.qupath.java_objects import JavaObject
from pathosam_qupath.qupath.java_serialization import read_stream
from pathosam_qupath.qupath.qpdata import QpData
from pathosam_qupath.qupath.qpdata_build import PATH_CLASS, walk_nodes
from pathosam_qupath.qupath.qpdata_objects import boxed, classification

PATHS = {name: path for name, path, _ in judged_entries()}
CELLS = PATHS["0.6.0/cells/1"]
SQUARE = shapely.Polygon([(10, 10), (10, 20.5), (20, 20), (20.25, 10)])


def frame(*polygons: shapely.Geometry, **columns: object) -> gpd.GeoDataFrame:
    ids = [str(uuid4()) for _ in polygons]
    return gpd.GeoDataFrame({"id": ids, **columns}, geometry=list(polygons or [SQUARE]))


def written(data: QpData) -> QpData:
    return QpData.read(data.to_bytes())


def new() -> QpData:
    return QpData.new({"builderType": "uri"}, identifier="data.qpdata")


def test_every_column_comes_back() -> None:
    given = gpd.GeoDataFrame(
        {
            "id": [str(uuid4()) for _ in range(4)],
            "object_type": "detection",
            "classification": ["Tumor", None, "Tumor: Positive", "Größe/µ 🧬"],
            "probability": [0.25, np.nan, 1.0, 0.0],
            "name": [None, "nucleus ü", None, "nucleus ü"],
            "color": [None, (1, 2, 3), None, None],
            "locked": [False, True, False, True],
            "parent": None,
            "run": ["r1", "r2", None, "r1"],
            "Area µm^2": [1.5, np.nan, np.inf, 1e-300],
            "n": [1, 2, 3, 4],
        },
        geometry=[SQUARE, shapely.Point(5, 5).buffer(3), SQUARE, SQUARE],
    )
    data = new()
    data.add_detections(given, {"Tumor": (200, 0, 0)})
    read = written(data).detections()
    for column in given.columns:
        if column == "geometry":
            continue
        expected = given[column].astype(object).where(given[column].notna(), None).tolist()
        assert read[column].astype(object).where(read[column].notna(), None).tolist() == expected
    rounded = [np.float32(shapely.get_coordinates(g)) for g in given.geometry]
    assert all(
        np.array_equal(shapely.get_coordinates(g), r)
        for g, r in zip(read.geometry, rounded, strict=True)
    )


def test_a_frame_read_can_be_written_again() -> None:
    data = QpData.read(CELLS)
    read = data.detections()
    read = read[read["object_type"] == "detection"]
    other = new()
    other.add_detections(read.assign(parent=None))
    again = written(other).detections()
    pd.testing.assert_frame_equal(
        pd.DataFrame(again.drop(columns=["geometry", "parent"])),
        pd.DataFrame(read.drop(columns=["geometry", "parent"])).reset_index(drop=True)[
            again.columns.drop(["geometry", "parent"])
        ],
    )
    assert shapely.equals_exact(again.geometry.values, read.geometry.values, 0.01).all()


def test_only_geometries_are_needed() -> None:
    data = new()
    data.add_detections(gpd.GeoDataFrame(geometry=[SQUARE] * 3))
    read = written(data).detections()
    assert len(set(read["id"])) == 3
    assert read["classification"].tolist() == [None] * 3


def test_an_empty_frame_changes_nothing() -> None:
    data = QpData.read(CELLS)
    data.add_detections(gpd.GeoDataFrame({"id": []}, geometry=[]))
    assert data.to_bytes() == CELLS.read_bytes()


def test_holes_and_several_parts_are_kept_and_the_order_too() -> None:
    ring = shapely.Point(50, 50).buffer(10) - shapely.Point(50, 50).buffer(5)
    parts = shapely.MultiPolygon([SQUARE, shapely.box(30, 30, 40, 40)])
    given = frame(SQUARE, ring, SQUARE, parts, SQUARE, run="r", A=[1, 2, 3, 4, 5])
    data = new()
    data.add_detections(given)
    objects = written(data).objects()
    assert [str(o.id) for o in objects] == given["id"].tolist()
    assert [o.roi for o in objects] == ["Polygon", "Geometry", "Polygon", "Geometry", "Polygon"]
    assert [o.measurements for o in objects] == [{"A": float(n)} for n in (1, 2, 3, 4, 5)]
    assert objects[1].geometry.equals(ring)
    assert objects[3].geometry.equals(parts)
    assert all(o.run == "r" for o in objects)


def test_many_polygons_of_many_vertex_counts() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(3, 60, 3000)
    polygons = []
    for count in counts:
        angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
        centre = random.uniform(0, 1e5, 2)
        polygons.append(shapely.Polygon(centre + 9 * np.stack([np.cos(angle), np.sin(angle)], 1)))
    given = frame(*polygons, A=random.random(3000), run="r", classification="Tumor")
    data = new()
    data.add_detections(given)
    read = written(data)
    assert read.to_bytes() == data.to_bytes()
    back = read.detections()
    assert back["id"].tolist() == given["id"].tolist()
    assert np.array_equal(back["A"], given["A"])
    expected = np.float32(shapely.get_coordinates(polygons))
    assert np.array_equal(shapely.get_coordinates(back.geometry.values), expected)
    values = read.objects()
    assert [v.geometry.wkb for v in values] == shapely.to_wkb(back.geometry.values).tolist()
    gone = {UUID(i) for i in back["id"][::3]}
    assert read.remove(gone) == 1000
    left = QpData.read(read.to_bytes()).detections()
    assert left["id"].tolist() == [i for i in given["id"] if UUID(i) not in gone]


def colors(data: QpData) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for node in walk_nodes(read_stream(data.to_bytes())):
        if isinstance(node, JavaObject) and node.of.name == PATH_CLASS:
            name = classification(node, "test")
            found.setdefault(name, []).append(boxed(node.get("colorRGB")) & 0xFFFFFF)
    return found


def test_classes_of_the_file_keep_their_colour_and_new_ones_get_theirs() -> None:
    data = QpData.read(CELLS)
    before = colors(data)
    names = ["Tumor", "Tumor: Positive", "Brand new", "Brand new: Negative", "Tumor: Odd"]
    given = frame(*[SQUARE] * 5, classification=names)
    wanted = {"Tumor": (1, 1, 1), "Brand new": (2, 3, 4), "Tumor: Odd": (5, 6, 7)}
    data.add_detections(given, wanted)
    after = colors(data)
    assert after["Tumor"] == before["Tumor"]
    assert after["Tumor: Positive"] == before["Tumor: Positive"]
    assert after["Brand new"] == [0x020304]
    assert after["Tumor: Odd"] == [0x050607]
    assert len(after["Brand new: Negative"]) == 1
    assert written(data).detections()["classification"].tolist()[-5:] == names


def test_names_of_measurements_are_written_once() -> None:
    data = new()
    data.add_detections(frame(*[SQUARE] * 50, **{"A long measurement's name": 1.0}))
    assert data.to_bytes().count(b"A long measurement's name") == 1


def test_two_additions_make_one_file() -> None:
    data = new()
    first, second = frame(*[SQUARE] * 3, A=1.0), frame(*[SQUARE] * 4, A=2.0, B=3.0)
    data.add_detections(first)
    data = written(data)
    data.add_detections(second)
    read = written(data).detections()
    assert read["id"].tolist() == first["id"].tolist() + second["id"].tolist()
    assert read["A"].tolist() == [1.0] * 3 + [2.0] * 4
    assert read["B"].isna().tolist() == [True] * 3 + [False] * 4


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"object_type": "cell"}, "cell"),
        ({"id": "no uuid"}, "no uuid"),
        ({"parent": "nobody"}, "nobody"),
        ({"A": "text"}, "'A'"),
        ({"geometry": [shapely.Polygon()]}, "geometry"),
        ({"geometry": [None]}, "geometry"),
        ({"geometry": [shapely.Polygon([(0, 0), (1, np.inf), (1, 1)])]}, "finite"),
        ({"geometry": [shapely.Point(1, 1)]}, "Point"),
        ({"color": "red"}, "red"),
    ],
)
def test_what_cannot_be_written_is_refused(columns: dict[str, object], text: str) -> None:
    given = frame(SQUARE, run="r")
    for name, value in columns.items():
        given[name] = value
    data = QpData.read(CELLS)
    with pytest.raises(PathosamError, match=text) as info:
        data.add_detections(given)
    assert isinstance(info.value, UsageError)
    assert data.to_bytes() == CELLS.read_bytes()


def test_a_new_file_has_what_qupath_needs() -> None:
    server = {"builderType": "uri", "uri": "file:/ä.svs"}
    data = QpData.new(
        server,
        identifier="/p/data/1/data.qpdata",
        image_type="BRIGHTFIELD_H_E",
        properties={"PROJECT_ENTRY_ID": "/p/project.qpproj::1"},
    )
    read = written(data)
    assert read.version == 3
    assert read.image_type == "BRIGHTFIELD_H_E"
    assert read.server == {
        "dataVersion": 3,
        "qupathVersion": "0.6.0",
        "server": server,
        "id": "/p/data/1/data.qpdata",
    }
    assert read.properties == {"PROJECT_ENTRY_ID": "/p/project.qpproj::1"}
    assert (read.objects(), read.workflow, read.stains, read.tma_grid) == ([], [], None, None)
    assert read.detections().empty


def test_a_new_file_is_laid_out_as_qupath_does() -> None:
    """The fixture without objects, but for its history, version and root id."""
    path = PATHS["0.6.0/awkward projekt/5"]
    fixture = QpData.read(path)
    assert fixture.server is not None
    data = QpData.new(
        fixture.server["server"],
        identifier=fixture.server.get("id"),
        image_type=fixture.image_type or "",
        properties=fixture.properties,
    )
    ours, theirs = read_stream(data.to_bytes()), read_stream(path.read_bytes())
    workflow = 5
    for nodes in (ours, theirs):
        del nodes[workflow]
    raw = [QpData(nodes).to_bytes() for nodes in (ours, theirs)]
    roots = [node.get("rootObject") for nodes in (ours, theirs) for node in nodes[5:6]]
    ids = [str(root.contents[2].contents[2].items[0]).encode() for root in roots]
    texts = [str(nodes[1]).encode() for nodes in (ours, theirs)]
    assert json.loads(texts[0]) == json.loads(texts[1])
    assert (
        raw[0].replace(ids[0], b"").split(texts[0])[1]
        == raw[1].replace(ids[1], b"").split(texts[1])[1]
    )
