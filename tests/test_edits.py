"""A detection is a person's once they have changed it."""

from uuid import uuid4

import geopandas as gpd
import numpy as np
import pytest
import shapely

from pathosam_qupath.edits import untouched
from pathosam_qupath.replacing import lies_on_kept, replace_earlier

RUN = "20260101-000000-0000"


def frame(count=6, run=RUN):
    centers = np.arange(count) * 20.0 + 10
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    shapes = [
        shapely.Polygon(np.column_stack([x + 6 * np.cos(angles), 10 + 5 * np.sin(angles)]))
        for x in centers
    ]
    return gpd.GeoDataFrame(
        {
            "id": [str(uuid4()) for _ in range(count)],
            "object_type": "detection",
            "classification": ["Tumor", "Stroma", None] * (count // 3),
            "probability": 0.5,
            "name": None,
            "color": None,
            "locked": False,
            "parent": None,
            "run": run,
        },
        geometry=shapes,
    )


def test_nothing_changed_means_untouched_in_any_order():
    recorded = frame()
    current = recorded.iloc[::-1].reset_index(drop=True)
    assert untouched(current, recorded, ()).all()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("classification", "Necrosis"),
        ("classification", None),
        ("name", "odd one"),
        ("color", (255, 0, 0)),
        ("locked", True),
        ("object_type", "cell"),
    ],
)
def test_any_change_but_a_measurement_counts(column, value):
    recorded = frame()
    current = recorded.copy()
    current["Nucleus: Eosin mean"] = 1.5
    current[column] = current[column].astype(object)
    current.at[1, column] = value
    assert untouched(current, recorded, ()).tolist() == [True, False, True, True, True, True]


def test_giving_a_class_to_an_unclassified_nucleus_counts():
    recorded = frame()
    current = recorded.copy()
    current.loc[2, "classification"] = "Tumor"
    assert untouched(current, recorded, ()).tolist() == [True, True, False, True, True, True]


def test_geometry_counts_beyond_rounding_however_the_ring_is_written():
    recorded = frame()
    current = recorded.copy()
    shapes = current.geometry.to_numpy().copy()
    shapes[0] = shapely.set_precision(shapes[0], 0.01)
    shapes[1] = shapely.reverse(shapes[1])
    shapes[2] = shapely.normalize(shapes[2])
    shapes[3] = shapely.affinity.translate(shapes[3], 0.5, 0)
    shapes[4] = shapely.Polygon(shapely.get_coordinates(shapes[4])[[0, 1, 2, 3, 4, 5, 6, 8, 9, 10]])
    current = current.set_geometry(shapes)
    assert untouched(current, recorded, ()).tolist() == [True, True, True, False, False, True]


def test_a_detection_with_children_or_unknown_to_the_record_is_not_ours():
    recorded = frame()
    extra = frame()
    assert untouched(recorded, recorded, {recorded["id"][4]}).tolist() == [True] * 4 + [False, True]
    assert not untouched(extra, recorded, ()).any()
    assert not untouched(recorded, None, ()).any()


def test_only_marked_untouched_nuclei_with_their_centre_in_the_region_make_room():
    recorded = frame()
    current = recorded.copy()
    current.loc[0, "run"] = None
    current.loc[1, "name"] = "mine"
    region = shapely.box(0, 0, 65, 20)

    def decide(**options):
        return replace_earlier(
            current, region, parents=(), recorded=lambda run: recorded, **options
        )

    ids = current["id"].tolist()
    usual = decide()
    assert {str(i) for i in usual.remove} == set(ids[2:3])
    assert usual.kept["id"].tolist() == [ids[1], *ids[3:]]
    assert usual.kept_inside == 1
    assert {str(i) for i in decide(replace_edited=True).remove} == set(ids[1:3])
    assert decide(policy="keep").remove == frozenset()
    assert decide(policy="keep").kept_inside == 2


def test_without_a_record_earlier_nuclei_stay():
    current = frame()
    kept = replace_earlier(current, None, parents=(), recorded=lambda run: None)
    assert kept.remove == frozenset()
    assert kept.kept_inside == 6


def test_a_new_nucleus_that_lies_on_a_kept_one_is_dropped_by_the_smaller_area():
    kept = np.array([shapely.box(0, 0, 10, 10)])
    new = np.array(
        [
            shapely.box(6, 0, 16, 10),  # 40 % of either
            shapely.box(4, 0, 14, 10),  # 60 %
            shapely.box(8, 8, 10, 10),  # all of a small one
            shapely.box(10, 0, 20, 10),  # touches
            shapely.box(-50, -50, 50, 50),  # all of the kept one
        ]
    )
    assert lies_on_kept(new, shapely.STRtree(kept)).tolist() == [False, True, True, False, True]
    assert not lies_on_kept(new, shapely.STRtree([])).any()
