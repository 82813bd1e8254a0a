"""What a run treats: annotations by class or name, the ignored cut out."""

from uuid import uuid4

import pytest
import shapely

from pathosam_qupath.qupath.objects import PathObject, Plane
from pathosam_qupath.regions import choose_regions


def annotation(geometry, classification=None, name=None, roi="Polygon", plane=None):
    return PathObject(
        uuid4(),
        "annotation",
        geometry,
        roi,
        classification=classification,
        name=name,
        plane=plane or Plane(),
    )


TUMOR = annotation(shapely.box(0, 0, 100, 100), "Tumor")
POSITIVE = annotation(shapely.box(200, 0, 300, 100), "Tumor: Positive")
TUMORAL = annotation(shapely.box(400, 0, 500, 100), "Tumoral bed")
NAMED = annotation(shapely.box(0, 200, 100, 300), "Stroma", name="core 7")
PLAIN = annotation(shapely.box(200, 200, 300, 300))
EVERY = [TUMOR, POSITIVE, TUMORAL, NAMED, PLAIN]
SIZE = (1000, 1000)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["all"], EVERY),
        (["Tumor"], [TUMOR, POSITIVE]),
        (["Tumor: Positive"], [POSITIVE]),
        (["core 7"], [NAMED]),
        (["Stroma", "Tumoral bed"], [TUMORAL, NAMED]),
        (["Positive"], []),
    ],
)
def test_annotations_are_chosen_by_class_derived_class_or_name(wanted, expected):
    assert list(choose_regions(EVERY, SIZE, wanted=wanted).treated) == expected


def test_ignored_annotations_are_never_treated_and_cut_out_of_the_others():
    ignore = annotation(shapely.box(50, 0, 250, 100), "Ignore*")
    chosen = choose_regions([TUMOR, ignore, POSITIVE], SIZE)
    assert chosen.treated == (TUMOR, POSITIVE)
    assert chosen.union().equals(
        shapely.union(shapely.box(0, 0, 50, 100), shapely.box(250, 0, 300, 100))
    )
    assert chosen.area == 10_000
    assert choose_regions([TUMOR, ignore], SIZE, wanted=["Ignore*"]).empty


def test_the_whole_image_leaves_out_only_what_is_ignored():
    assert choose_regions([TUMOR], SIZE, whole_image=True).polygons is None
    ignore = annotation(shapely.box(0, 0, 1000, 400), "Ignore*")
    chosen = choose_regions([TUMOR, ignore], SIZE, whole_image=True)
    assert chosen.area == 600_000
    assert chosen.union().bounds == (0, 400, 1000, 1000)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (annotation(shapely.LineString([(0, 0), (9, 9)]), roi="Line"), "is a Line and has no area"),
        (annotation(shapely.MultiPoint([(1, 1)]), roi="Points"), "is a Points and has no area"),
        (annotation(shapely.box(2000, 0, 2100, 10)), "lies outside the image"),
        (annotation(shapely.box(0, 0, 9, 9), plane=Plane(z=3)), "lies on plane z=3"),
        (annotation(shapely.Polygon()), "has no geometry"),
    ],
)
def test_what_has_no_area_to_treat_is_refused_with_a_reason(refused, reason):
    chosen = choose_regions([refused, TUMOR], SIZE)
    assert chosen.treated == (TUMOR,)
    [(annotation_, text)] = chosen.refused
    assert annotation_ is refused
    assert text.startswith(reason)


def test_an_annotation_inside_an_ignored_one_is_refused():
    ignore = annotation(shapely.box(-10, -10, 200, 200), "Ignore*")
    chosen = choose_regions([ignore, TUMOR], SIZE)
    assert chosen.empty
    assert "Ignore*" in chosen.refused[0][1]


def test_an_outline_that_crosses_itself_is_treated_where_it_has_area():
    bow_tie = annotation(shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)]))
    chosen = choose_regions([bow_tie], SIZE)
    assert chosen.area == 50
    assert chosen.polygons[0].is_valid


def test_overlapping_annotations_count_their_area_once_and_end_at_the_image():
    over = annotation(shapely.box(50, 0, 150, 100))
    edge = annotation(shapely.box(900, 900, 1100, 1100))
    assert choose_regions([TUMOR, over], SIZE).area == 15_000
    assert choose_regions([edge], SIZE).area == 10_000
