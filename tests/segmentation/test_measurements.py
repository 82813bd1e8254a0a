"""Shape measurements against shapes whose values are known and against brute force."""

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pathosam_qupath.segmentation.measurements import min_widths, names, shape_measurements


def measured(polygon, mpp=(1.0, 1.0)):
    return {k: float(v[0]) for k, v in shape_measurements(np.array([polygon]), mpp).items()}


def test_names_and_units_are_qupaths():
    assert names() == (
        "Area µm^2",
        "Length µm",
        "Circularity",
        "Solidity",
        "Max diameter µm",
        "Min diameter µm",
    )
    assert list(shape_measurements(np.array([shapely.box(0, 0, 1, 1)]), None)) == [
        "Area px^2",
        "Length px",
        "Circularity",
        "Solidity",
        "Max diameter px",
        "Min diameter px",
    ]


def test_a_rectangle():
    found = measured(shapely.box(10, 20, 50, 50), (0.5, 0.5))
    assert found["Area µm^2"] == pytest.approx(300)
    assert found["Length µm"] == pytest.approx(70)
    assert found["Circularity"] == pytest.approx(4 * math.pi * 300 / 70**2)
    assert found["Solidity"] == pytest.approx(1)
    assert found["Max diameter µm"] == pytest.approx(25)
    assert found["Min diameter µm"] == pytest.approx(15)


def test_an_equilateral_triangle():
    triangle = shapely.Polygon([(0, 0), (6, 0), (3, 3 * math.sqrt(3))])
    found = measured(triangle)
    assert found["Max diameter µm"] == pytest.approx(2 * 6 / math.sqrt(3))
    assert found["Min diameter µm"] == pytest.approx(3 * math.sqrt(3))


def test_an_l_shape_is_not_solid():
    found = measured(shapely.Polygon([(0, 0), (4, 0), (4, 1), (1, 1), (1, 4), (0, 4)]))
    assert found["Area µm^2"] == pytest.approx(7)
    assert found["Solidity"] == pytest.approx(7 / 11.5)


def test_a_disc_is_round():
    found = measured(shapely.Point(1000, 2000).buffer(40, quad_segs=64), (0.25, 0.25))
    assert found["Circularity"] == pytest.approx(1, abs=1e-3)
    assert found["Max diameter µm"] == pytest.approx(20, rel=1e-3)
    assert found["Min diameter µm"] == pytest.approx(20, rel=1e-3)


def test_pixels_that_are_not_square_are_scaled_before_measuring():
    found = measured(shapely.box(0, 0, 10, 10), (0.5, 0.2))
    assert found["Area µm^2"] == pytest.approx(10)
    assert found["Length µm"] == pytest.approx(14)
    assert found["Max diameter µm"] == pytest.approx(math.hypot(5, 2))
    assert found["Min diameter µm"] == pytest.approx(2)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 50, width=32), st.floats(0, 50, width=32)), min_size=3, max_size=25
    )
)
def test_the_smallest_width_is_that_of_all_directions(points):
    hull = shapely.convex_hull(shapely.MultiPoint(points))
    if hull.geom_type != "Polygon" or hull.area < 1e-3:
        return
    angles = np.linspace(0, math.pi, 20_001)
    corners = shapely.get_coordinates(hull)
    along = corners @ np.stack([np.cos(angles), np.sin(angles)])
    brute = np.ptp(along, axis=0).min()
    width = min_widths(np.array([hull]))[0]
    assert width <= brute + 1e-6
    assert width == pytest.approx(brute, abs=hull.length * math.pi / 20_000)


def test_many_polygons_are_measured_as_one_by_one():
    random = np.random.default_rng(0)
    polygons = np.array(
        [
            shapely.Polygon(shapely.convex_hull(shapely.MultiPoint(random.uniform(0, 40, (n, 2)))))
            for n in random.integers(4, 60, 300)
        ]
    )
    together = shape_measurements(polygons, (0.25, 0.25))
    for i in (0, 150, 299):
        assert {k: v[i] for k, v in together.items()} == measured(polygons[i], (0.25, 0.25))


def test_no_polygons_give_empty_columns():
    found = shape_measurements(np.zeros(0, object), (0.25, 0.25))
    assert [len(values) for values in found.values()] == [0] * 6
