"""Nuclei go under the smallest annotation that contains their centroid."""

from __future__ import annotations

from uuid import UUID, uuid4

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import LineString, MultiPoint, MultiPolygon, Point, Polygon, box

from pathosam_qupath.qupath.objects import PathObject, Plane
from pathosam_qupath.qupath.placement import smallest_containing, smallest_holding


def annotation(geometry: shapely.Geometry, z: int = 0) -> PathObject:
    return PathObject(uuid4(), "annotation", geometry, "Geometry", plane=Plane(z=z))


def test_the_smallest_of_nested_annotations_holds_a_nucleus() -> None:
    outer, inner, aside = box(0, 0, 100, 100), box(10, 10, 50, 50), box(200, 0, 210, 10)
    points = [Point(20, 20), Point(80, 80), Point(205, 5), Point(150, 150)]
    for areas in ([outer, inner, aside], [aside, inner, outer]):
        index = smallest_containing(points, areas)
        found = [areas[i] if i >= 0 else None for i in index]
        assert found == [inner, outer, aside, None]


def test_holes_and_parts_count() -> None:
    ring = Polygon([(0, 0), (90, 0), (90, 90), (0, 90)], [[(30, 30), (60, 30), (60, 60), (30, 60)]])
    parts = MultiPolygon([box(40, 40, 50, 50), box(200, 200, 300, 300)])
    points = [Point(45, 45), Point(35, 35), Point(5, 5), Point(250, 250)]
    assert smallest_containing(points, [ring, parts]).tolist() == [1, -1, 0, 1]


def test_of_equal_areas_the_deeper_one_counts() -> None:
    assert smallest_containing([Point(5, 5)], [box(0, 0, 9, 9), box(0, 0, 9, 9)]).tolist() == [1]


def test_lines_points_and_empty_shapes_hold_nothing() -> None:
    areas = [LineString([(0, 0), (9, 9)]), MultiPoint([(5, 5)]), Polygon()]
    assert smallest_containing([Point(5, 5)], areas).tolist() == [-1]
    assert smallest_containing([], [box(0, 0, 1, 1)]).tolist() == []
    assert smallest_containing([Point(5, 5)], []).tolist() == [-1]


def test_parents_are_annotations_of_the_first_plane() -> None:
    outer, inner = annotation(box(0, 0, 100, 100)), annotation(box(0, 0, 50, 50))
    cell = PathObject(UUID(int=1), "cell", box(0, 0, 20, 20), "Polygon")
    other_plane = annotation(box(0, 0, 30, 30), z=1)
    nuclei = [
        Point(10, 10).buffer(3),
        Point(70, 70).buffer(3),
        Point(49, 10).buffer(8),
        Point(-9, 0),
    ]
    parents = smallest_holding(nuclei, [outer, inner, cell, other_plane])
    assert parents.tolist() == [str(inner.id), str(outer.id), str(inner.id), None]
    assert smallest_holding(nuclei, []).tolist() == [None] * 4


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_choice_equals_an_exhaustive_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    areas = [
        Point(rng.uniform(0, 100, 2)).buffer(rng.uniform(5, 60), quad_segs=3) for _ in range(8)
    ]
    points = shapely.points(rng.uniform(-10, 110, (60, 2)))
    for point, index in zip(points, smallest_containing(points, areas), strict=True):
        holding = [i for i, area in enumerate(areas) if area.covers(point)]
        assert index == min(holding, key=lambda i: areas[i].area, default=-1)
