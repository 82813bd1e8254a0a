"""Compare what was read from a fixture project with what QuPath reads from it.

Beside each project of the fixtures lies ``<name>.judge.json``, made with QuPath's own
classes: for each entry the objects in order, with ids, classes, ROIs, measurements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from pathosam_qupath.qupath.objects import FRAME_COLUMNS, PathObject

ROUNDED = 0.005 * (1 + 1e-6)
"""QuPath's geometries, and so the judge's texts, have two decimals."""

FIXTURES = Path(__file__).resolve().parents[1] / "data" / "fixtures"
SHARED_FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures"


def fixtures_folder() -> Path:
    """Where the fixture projects are: in the repository, or beside it."""
    return FIXTURES if FIXTURES.is_dir() else SHARED_FIXTURES


def judged_entries() -> list[tuple[str, Path, dict[str, Any]]]:
    """A name, the ``data.qpdata``, and the judge's entry, for each entry that has data."""
    found = []
    folder = fixtures_folder()
    for judge in sorted(folder.glob("*/*.judge.json")):
        project = judge.with_name(judge.name.removesuffix(".judge.json"))
        for entry in json.loads(judge.read_text("utf-8"))["entries"]:
            path = project / "data" / str(entry["id"]) / "data.qpdata"
            if path.is_file():
                name = f"{judge.parent.name}/{project.name}/{entry['id']}"
                found.append((name, path, entry))
    return found


def assert_objects_equal(
    objects: Sequence[PathObject], judged: Sequence[Mapping[str, Any]]
) -> None:
    """Every object equals the judge's, order and ids included; the root is in neither."""
    assert [str(o.id) for o in objects] == [j["id"] for j in judged]
    for value, expected in zip(objects, judged, strict=True):
        assert_object_equal(value, expected)


def assert_object_equal(value: PathObject, expected: Mapping[str, Any]) -> None:
    """One object equals the judge's."""
    what = expected["id"]
    assert value.object_type.replace("_", "") == expected["type"], what
    assert value.name == expected["name"], what
    assert value.classification == expected["cls"], what
    assert_number_equal(value.probability, expected["prob"], what)
    assert packed(value.color) == expected["color"], what
    assert value.locked == expected["locked"], what
    assert (str(value.parent) if value.parent else "root") == expected["parent"], what
    assert [value.plane.c, value.plane.z, value.plane.t] == expected["plane"], what
    assert value.roi + "ROI" == expected["roi_class"], what
    assert list(value.measurements) == list(expected["measurements"]), what
    for name, number in expected["measurements"].items():
        assert_number_equal(value.measurements[name], number, f"{what} {name}")
    assert dict(value.metadata) == expected["metadata"], what
    assert_geometry_equal(value.geometry, expected, what)
    nucleus = expected.get("nucleus_wkt")
    assert (value.nucleus is None) == (nucleus is None), what
    if value.nucleus is not None:
        assert_close(value.nucleus, shapely.from_wkt(nucleus), what)


def assert_frame_equal(frame: Any, judged: Iterable[Mapping[str, Any]]) -> None:
    """A frame's rows equal the judge's detections, cells and tiles."""
    kinds = {"detection", "cell", "tile"}
    rows = [j for j in judged if j["type"] in kinds]
    assert frame["id"].tolist() == [j["id"] for j in rows]
    assert set(FRAME_COLUMNS) <= set(frame.columns)
    measured = [c for c in frame.columns if c not in FRAME_COLUMNS]
    assert set(measured) == {name for j in rows for name in j["measurements"]}
    for row, expected in zip(frame.to_dict("records"), rows, strict=True):
        what = expected["id"]
        assert row["object_type"] == expected["type"], what
        assert row["name"] == expected["name"], what
        assert row["classification"] == expected["cls"], what
        assert_number_equal(row["probability"], expected["prob"], what)
        assert packed(row["color"]) == expected["color"], what
        assert row["locked"] == expected["locked"], what
        assert (row["parent"] or "root") == expected["parent"], what
        assert row["run"] == expected["metadata"].get("PathoSAM run"), what
        for name in measured:
            assert_number_equal(row[name], expected["measurements"].get(name), f"{what} {name}")
        assert_geometry_equal(row["geometry"], expected, what)


def assert_geometry_equal(value: Any, expected: Mapping[str, Any], what: str) -> None:
    """The stored vertices are the same; where the judge has none, its rounded text is."""
    if expected["roi_class"] in ("PolygonROI", "PolylineROI", "PointsROI"):
        vertices, points = shapely.get_coordinates(value), expected["points"]
        if value.geom_type == "Polygon" and points[0] != points[-1]:
            points = [*points, points[0]]
        assert np.array_equal(vertices, np.array(points)), what
    else:
        assert_close(value, shapely.from_wkt(expected["roi_wkt"]), what)


def assert_close(value: Any, expected: Any, what: str) -> None:
    """The same vertices, to the judge's two decimals, wherever the rings begin."""
    rounded = shapely.transform(value, lambda xy: np.floor(xy * 100 + 0.5) / 100)
    same = shapely.equals_exact(
        shapely.normalize(rounded), shapely.normalize(expected), tolerance=1e-9
    )
    if not same:  # a half that one side rounds up and the other down
        assert value.geom_type == expected.geom_type, what
        assert len(shapely.get_coordinates(value)) == len(shapely.get_coordinates(expected)), what
        assert shapely.hausdorff_distance(value, expected) <= ROUNDED * math.sqrt(2), what


def assert_number_equal(value: float | None, expected: float | None, what: str) -> None:
    """Equal numbers; the judge writes null for NaN and for what is absent."""
    if expected is None:
        assert value is None or math.isnan(value), what
    else:
        assert value is not None, what
        assert value == expected, what


def packed(color: tuple[int, int, int] | None) -> int | None:
    """A colour as the judge has it, Java's signed ARGB."""
    if not isinstance(color, tuple):
        return None
    red, green, blue = color
    return ((red << 16) | (green << 8) | blue) - (1 << 24)
