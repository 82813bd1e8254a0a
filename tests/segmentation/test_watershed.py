"""The seeded watershed against the reference's results, and windows against the whole."""

from pathlib import Path

import numpy as np
import pytest
from drawn_slide import DrawnNetwork, drawn, scattered
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.segmentation.watershed import (
    CLOSED,
    _side_by_side,
    instances,
    smoothing_reach,
    window_instances,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "post.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


def is_same_up_to_ids(labels, expected):
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    same_background = np.array_equal(labels == 0, expected == 0)
    return same_background and pairs.shape[1] == np.unique(labels).size == np.unique(expected).size


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("labels_default", Postprocessing()),
        ("labels_tiled128_32_clean", Postprocessing()),
        ("labels_min50", Postprocessing(min_size=50)),
        ("labels_tiled128_32_clean_min50", Postprocessing(min_size=50)),
        ("labels_min200", Postprocessing(min_size=200)),
        ("labels_tiled128_32_clean_min200", Postprocessing(min_size=200)),
        ("labels_c04_b06_f04_s1", Postprocessing(0.4, 0.4, 0.6, 0.0, 1.0)),
    ],
)
def test_labels_are_the_references(golden, name, parameters):
    labels = instances(golden["maps_f16"].astype(np.float32), parameters)
    assert is_same_up_to_ids(labels, golden[name])


def test_ids_run_from_one_in_the_order_of_the_seeds(golden):
    labels = instances(golden["maps_f16"].astype(np.float32), Postprocessing(min_size=200))
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert np.array_equal(
        instances(golden["maps_f16"].astype(np.float32)), golden["labels_default"]
    )


def test_an_image_without_foreground_has_no_instances():
    maps = np.zeros((3, 40, 50), np.float32)
    maps[1:] = 1
    assert not instances(maps).any()


def test_foreground_without_a_seed_is_dropped():
    maps = np.ones((3, 40, 50), np.float32)
    assert not instances(maps).any()


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(20, 900),
    seed=st.integers(0, 10_000),
    x=st.integers(0, 180),
    y=st.integers(0, 180),
    side=st.integers(30, 200),
    plateaus=st.booleans(),
)
def test_what_a_window_calls_complete_is_what_the_whole_gives(count, seed, x, y, side, plateaus):
    maps = DrawnNetwork().predict(drawn(300, 300, scattered(300, 300, count, seed))[None])[0]
    if plateaus:
        maps = np.round(maps * 8) / np.float32(8)
    parameters = Postprocessing(distance_smoothing=0.0 if plateaus else 1.6)
    whole = window_instances(maps, parameters, open_sides=CLOSED)
    reach = smoothing_reach(parameters)
    x, y = max(x, reach), max(y, reach)
    x1, y1 = min(x + side, 300 - reach), min(y + side, 300 - reach)
    outer = maps[:, y - reach : y1 + reach, x - reach : x1 + reach]
    found = window_instances(outer, parameters, open_sides=(True,) * 4, origin=(x, y))

    id_of_anchor = {tuple(anchor): i for i, anchor in enumerate(whole.anchors.tolist(), 1)}
    boxes = ndimage.find_objects(whole.labels)
    for label, anchor in enumerate(found.anchors.tolist(), start=1):
        expected = id_of_anchor[anchor[0] + x, anchor[1] + y]
        mine = found.labels == label
        assert not (mine & (whole.labels[y:y1, x:x1] != expected)).any()
        if found.complete[label - 1]:
            rows, columns = boxes[expected - 1]
            assert y <= rows.start and rows.stop <= y1 and x <= columns.start and columns.stop <= x1
            assert mine.sum() == (whole.labels == expected).sum()


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=60))
def test_pieces_that_are_flooded_together_do_not_touch(sizes):
    sizes = np.array(sizes, np.int64)
    corners, shape = _side_by_side(sizes)
    taken = np.zeros(shape, int)
    for (x, y), (width, height) in zip(corners, sizes, strict=True):
        assert x + width <= shape[1] and y + height <= shape[0]
        taken[y : y + height + 1, x : x + width + 1] += 1
    assert taken.max() == 1


def test_most_objects_of_a_window_are_complete():
    maps = DrawnNetwork().predict(drawn(400, 400, scattered(400, 400, 300, 5))[None])[0]
    found = window_instances(maps, Postprocessing(), open_sides=(True,) * 4)
    assert found.count > 100
    assert 0.75 < found.complete.mean() < 1
