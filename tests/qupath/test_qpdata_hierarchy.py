"""Objects taken out of and put into the hierarchy leave everything else as it was."""

from __future__ import annotations

import struct
from dataclasses import fields
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import geopandas as gpd
import numpy as np
import pytest
import shapely
from judge import judged_entries

from pathosam_qupath.errors import FormatError, ProjectError
from pathosam_qupath.qupath.java_objects import (
    BlockData,
    ClassData,
    JavaClass,
    JavaField,
    JavaObject,
    JavaString,
    Node,
)
from pathosam_qupath.qupath.java_runs import ObjectRun
from pathosam_qupath.qupath.java_serialization import read_stream
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.qpdata import QpData
from pathosam_qupath.qupath.qpdata_build import walk_nodes
from pathosam_qupath.qupath.qpdata_objects import DETECTION, METADATA, PATH_OBJECT

ENTRIES = judged_entries()
PATHS = {name: path for name, path, _ in ENTRIES}
CELLS = PATHS["0.6.0/cells/1"]
TMA = PATHS["0.6.0/cells/2"]
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def nuclei(count: int, parent: UUID | None = None, **columns: Any) -> gpd.GeoDataFrame:
    random = np.random.default_rng(count)
    centres = random.uniform(10, 500, (count, 2)).round(1)
    polygons = [
        shapely.Point(*c).buffer(4, quad_segs=q)
        for c, q in zip(centres, cycle([2, 3]), strict=False)
    ]
    vertices = [np.float32(shapely.get_coordinates(p)).astype(float) for p in polygons]
    return gpd.GeoDataFrame(
        {
            "id": [str(uuid4()) for _ in range(count)],
            "classification": ["Tumor", "Brand: new"] * (count // 2) + ["Tumor"] * (count % 2),
            "probability": random.random(count),
            "parent": None if parent is None else str(parent),
            "run": "20260101-000000-abcd",
            "Area µm^2": random.random(count),
            "Solidity": random.random(count),
            **columns,
        },
        geometry=[shapely.Polygon(v) for v in vertices],
    )


def same(value: PathObject, other: PathObject) -> bool:
    for field in fields(PathObject):
        a, b = getattr(value, field.name), getattr(other, field.name)
        if field.name == "measurements":
            a, b = ({k: None if v != v else v for k, v in m.items()} for m in (a, b))
        if hasattr(a, "geom_type"):
            a, b = shapely.to_wkb(a), shapely.to_wkb(b)
        if a != b:
            return False
    return True


def assert_same(objects: list[PathObject], others: list[PathObject]) -> None:
    assert [o.id for o in objects] == [o.id for o in others]
    assert all(same(a, b) for a, b in zip(objects, others, strict=True))


@each_path
def test_adding_and_removing_gives_the_same_bytes(path: Path) -> None:
    data = QpData.read(path)
    annotations = data.annotations()
    frame = nuclei(200, annotations[-1].id if annotations else None)
    data.add_detections(frame, {"Tumor": (1, 2, 3)})
    again = QpData.read(data.to_bytes())
    assert again.remove([UUID(i) for i in frame["id"]]) == 200
    assert again.to_bytes() == path.read_bytes()


def test_ten_thousand_detections_come_and_go() -> None:
    before = QpData.read(CELLS)
    parent = before.annotations()[0].id
    frame = nuclei(10_000, parent)
    data = QpData.read(CELLS)
    data.add_detections(frame)
    with_them = QpData.read(data.to_bytes())
    added = set(frame["id"])
    kept = [o for o in with_them.objects() if str(o.id) not in added]
    assert_same(kept, before.objects())
    with_them.remove({UUID(i) for i in added})
    after = QpData.read(with_them.to_bytes())
    assert_same(after.objects(), before.objects())
    assert after.to_bytes() == CELLS.read_bytes()


@each_path
def test_any_half_can_be_removed(path: Path) -> None:
    for half in (0, 1):
        data = QpData.read(path)
        before = data.objects()
        gone = {o.id for o in before[half::2] if o.object_type != "tma_core"}
        assert data.remove(gone) == len(gone)
        after = QpData.read(data.to_bytes())
        left = {o.id: o for o in after.objects()}
        assert set(left) == {o.id for o in before} - gone
        parents = {o.id: o.parent for o in before}
        for value in before:
            if value.id in gone:
                continue
            parent = value.parent
            while parent in gone:
                parent = parents[parent]
            assert left[value.id].parent == parent
            assert left[value.id].measurements.keys() == value.measurements.keys()
            assert left[value.id].classification == value.classification
        assert (after.image_type, after.stains, after.properties) == (
            data.image_type,
            data.stains,
            data.properties,
        )


@each_path
def test_removing_from_bytes_is_removing_from_nodes(path: Path) -> None:
    compact, plain = QpData.read(path), QpData(read_stream(path.read_bytes()))
    assert_same(compact.objects(), plain.objects())
    gone = [o.id for o in plain.objects() if o.object_type != "tma_core"][::3]
    assert compact.remove(gone) == plain.remove(gone)
    assert compact.to_bytes() == plain.to_bytes()


def test_children_of_a_removed_object_move_to_its_parent_at_the_end() -> None:
    data = QpData.read(CELLS)
    region, tumor, stroma = data.annotations()
    children = [o.id for o in data.objects() if o.parent == tumor.id]
    others = [o.id for o in data.objects() if o.parent == region.id and o.id != tumor.id]
    data.remove([tumor.id])
    moved = [o.id for o in QpData.read(data.to_bytes()).objects() if o.parent == region.id]
    assert moved == others + children
    assert stroma.id in others


def test_all_objects_can_be_removed() -> None:
    data = QpData.read(CELLS)
    data.remove([o.id for o in data.objects()])
    assert QpData.read(data.to_bytes()).objects() == []


def test_unknown_ids_are_no_objects() -> None:
    data = QpData.read(CELLS)
    assert data.remove([uuid4()]) == 0
    assert data.to_bytes() == CELLS.read_bytes()


def test_tma_cores_stay() -> None:
    data = QpData.read(TMA)
    grid = data.tma_grid
    assert grid is not None
    assert (grid.width, grid.height) == (3, 2)
    cores = {o.id: o.name for o in data.objects() if o.object_type == "tma_core"}
    assert [cores[i] for i in grid.cores] == ["A-1", "A-2", "A-3", "B-1", "B-2", "B-3"]
    judged = next(j for name, _, j in ENTRIES if name == "0.6.0/cells/2")
    missing = {j["id"]: j["missing"] for j in judged["objects"] if j["type"] == "tmacore"}
    assert [missing[str(i)] for i in grid.cores] == list(grid.missing)
    with pytest.raises(ProjectError, match="TMA"):
        data.remove([grid.cores[0]])
    assert data.to_bytes() == TMA.read_bytes()


def test_detections_under_a_core_and_the_root() -> None:
    data = QpData.read(TMA)
    core = data.tma_grid.cores[1]  # type: ignore[union-attr]
    data.add_detections(nuclei(4, core))
    data.add_detections(nuclei(4))
    parents = QpData.read(data.to_bytes()).detections()["parent"].value_counts(dropna=False)
    before = QpData.read(TMA).detections()["parent"].value_counts(dropna=False)
    assert parents[str(core)] == before[str(core)] + 4
    assert parents[None] == before[None] + 4


def test_an_unknown_parent_changes_nothing() -> None:
    data = QpData.read(CELLS)
    missing = uuid4()
    with pytest.raises(ProjectError, match=str(missing)):
        data.add_detections(nuclei(3, missing))
    assert data.to_bytes() == CELLS.read_bytes()


def test_detections_may_be_put_under_a_detection() -> None:
    data = QpData.read(CELLS)
    cell = data.objects()[-60]
    assert cell.object_type in ("cell", "detection")
    data.add_detections(nuclei(3, cell.id))
    below = [o for o in QpData.read(data.to_bytes()).objects() if o.parent == cell.id]
    assert len(below) == 3


def objects_of(nodes: list[Node], class_name: str) -> list[JavaObject]:
    return [n for n in walk_nodes(nodes) if isinstance(n, JavaObject) and n.of.is_a(class_name)]


def test_ids_as_objects_of_their_own_are_read() -> None:
    nodes = read_stream(CELLS.read_bytes())
    expected = QpData.read(CELLS).objects()
    longs = [JavaField("J", b"leastSigBits"), JavaField("J", b"mostSigBits")]
    uuid_class = JavaClass("java.util.UUID", -4856846361193249489, fields=longs)
    for node in objects_of(nodes, PATH_OBJECT):
        metadata = node.contents[2]
        assert isinstance(metadata, JavaObject)
        keys, values = metadata.contents[1:]
        number = UUID(str(values.items[-1])).int  # type: ignore[union-attr]
        bits = [(number & (2**64 - 1)).to_bytes(8, "big"), (number >> 64).to_bytes(8, "big")]
        identifier = JavaObject(uuid_class, [ClassData(uuid_class, bits)])
        del keys.items[-1], values.items[-1]  # type: ignore[union-attr]
        count = BlockData(struct.pack(">i", 2))
        node.contents[2:4] = [identifier, count, metadata, node.contents[3]]
    data = QpData(nodes)
    assert_same(data.objects(), expected)
    assert_same(QpData.read(data.to_bytes()).objects(), expected)
    gone = {o.id for o in expected[::2]}
    again = QpData.read(data.to_bytes())
    assert again.remove(gone) == len(gone)
    assert {o.id for o in again.objects()} == {o.id for o in expected[1::2]}


def test_objects_without_ids_can_be_read_and_removed() -> None:
    nodes = read_stream(CELLS.read_bytes())
    for node in objects_of(nodes, PATH_OBJECT):
        assert isinstance(node.contents[2], JavaObject)
        assert node.contents[2].of.name == METADATA
        del node.contents[2]
    raw = QpData(nodes).to_bytes()
    data = QpData.read(raw)
    assert data.to_bytes() == raw
    ids = [o.id for o in data.objects()]
    assert len(set(ids)) == 112
    assert [o.id for o in data.objects()] == ids
    assert data.remove(ids[-10:]) == 10
    assert [o.id for o in data.objects()] == ids[:-10]


def test_what_is_unknown_is_kept() -> None:
    nodes = read_stream(CELLS.read_bytes())
    later = JavaClass("qupath.lib.LaterThing", 1, fields=[JavaField("I", b"n")])
    nodes.insert(-1, JavaObject(later, [ClassData(later, [b"\0\0\0\7"])]))
    cell = objects_of(nodes, DETECTION)[7]
    cell.of = JavaClass("qupath.lib.objects.LaterCell", 2, 0x0C, parent=cell.of)
    cell.data[0].of = cell.of
    cell.contents.append(JavaString(b"a later part"))
    first = nodes[0]
    assert isinstance(first, BlockData)
    first.raw = struct.pack(">H", 20) + b"Data file version 12"
    raw = QpData(nodes).to_bytes()
    data = QpData.read(raw)
    assert data.version == 12
    assert_same(data.objects(), QpData.read(CELLS).objects())
    parent = data.annotations()[0].id
    data.add_detections(nuclei(10, parent))
    changed = data.to_bytes()
    assert b"qupath.lib.LaterThing" in changed
    assert b"qupath.lib.objects.LaterCell" in changed
    assert b"a later part" in changed
    data.remove([UUID(i) for i in data.detections()["id"][-10:]])
    assert len(QpData.read(changed).objects()) == 122


def test_an_object_of_an_unknown_kind_keeps_its_children() -> None:
    nodes = read_stream(CELLS.read_bytes())
    region = objects_of(nodes, "qupath.lib.objects.PathAnnotationObject")[0]
    region.of = JavaClass("qupath.lib.objects.PathLaterObject", 1, 0x0C, parent=region.of.parent)
    region.data[0].of = region.of
    data = QpData.read(QpData(nodes).to_bytes())
    assert len(data.objects()) == 111
    data.add_detections(nuclei(4, data.annotations()[0].id))
    assert len(QpData.read(data.to_bytes()).objects()) == 115


def test_a_detection_that_something_else_refers_to_is_not_kept_as_bytes() -> None:
    nodes = read_stream(CELLS.read_bytes())
    chosen = objects_of(nodes, "qupath.lib.objects.PathCellObject")[30:33]
    holder = JavaClass("Connections", 1, 3)
    nodes.insert(-1, JavaObject(holder, [ClassData(holder, [], list(chosen))]))
    raw = QpData(nodes).to_bytes()
    data = QpData.read(raw)
    assert data.to_bytes() == raw
    expected = QpData.read(CELLS).objects()
    assert_same(data.objects(), expected)
    gone = [o.id for o in expected if o.object_type == "cell"]
    assert data.remove(gone) == 60
    again = QpData.read(data.to_bytes())
    assert len(again.objects()) == 52
    connections = again._nodes[-2]
    assert isinstance(connections, JavaObject)
    assert all(isinstance(n, JavaObject) and n.of.is_a(DETECTION) for n in connections.contents)


def test_strings_shared_between_detections_do_not_tie_them_together() -> None:
    nodes = read_stream(CELLS.read_bytes())
    shared: dict[int, JavaString] = {}
    for i, node in enumerate(objects_of(nodes, "qupath.lib.objects.PathCellObject")):
        node.contents[0] = shared.setdefault(i % 7, JavaString(f"cell {i % 7}".encode()))
    raw = QpData(nodes).to_bytes()
    data = QpData.read(raw)
    assert data.to_bytes() == raw
    names = [o.name for o in data.objects() if o.object_type == "cell"]
    assert names == [f"cell {i % 7}" for i in range(60)]
    gone = [o.id for o in data.objects() if o.object_type == "cell"][:20]
    data.remove(gone)
    left = [o.name for o in QpData.read(data.to_bytes()).objects() if o.object_type == "cell"]
    assert left == names[20:]


def test_a_hierarchy_that_holds_itself_is_refused() -> None:
    nodes = read_stream(CELLS.read_bytes())
    outer, inner = objects_of(nodes, "qupath.lib.objects.PathAnnotationObject")[:2]
    at = next(i for i, n in enumerate(inner.contents) if isinstance(n, BlockData)) + 1
    inner.contents[at] = outer
    with pytest.raises(FormatError, match="twice"):
        QpData(nodes).objects()


def test_runs_are_used_for_what_qupath_writes() -> None:
    places = list(QpData.read(CELLS)._hierarchy.walk())
    compact = sum(len(p.node) for p in places if isinstance(p.node, ObjectRun))
    assert compact > 80
