"""Automatic prompts: clicks from seeds, no nucleus cut, doubled or lost at a border."""

import numpy as np
import pytest
import shapely
from drawn_slide import DrawnNetwork, DrawnSlide, drawn, scattered
from geopandas.testing import assert_geodataframe_equal
from prompted_network import PromptedNetwork, nuclei_image, small_pathosam

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.segmentation.apg import (
    SeedMask,
    distinct,
    pieces,
    seed_clicks,
)
from pathosam_qupath.segmentation.pipeline import SegmentOptions, iter_segment, segment
from pathosam_qupath.segmentation.tiling import Box

WIDTH, HEIGHT = 700, 500


def options(**changes):
    return SegmentOptions(mode="apg", seed="run/image", **changes)


@pytest.fixture(scope="module")
def nuclei():
    """Nuclei that do not touch, some across the borders of tiles and blocks."""
    chosen = []
    for nucleus in scattered(WIDTH, HEIGHT, 400, seed=3, radius=(6, 12)):
        if all(np.hypot(nucleus[0] - o[0], nucleus[1] - o[1]) > 27 for o in chosen):
            chosen.append(nucleus)
    return chosen


@pytest.fixture(scope="module")
def slide(nuclei):
    return DrawnSlide(drawn(WIDTH, HEIGHT, nuclei))


def test_every_nucleus_is_found_once_and_whole(slide, nuclei):
    frame = segment(slide, None, PromptedNetwork(tile=96, halo=16), options=options(block=128))
    inside = [n for n in nuclei if 6 < n[0] < WIDTH - 6 and 6 < n[1] < HEIGHT - 6]
    assert len(inside) > 100
    tree = shapely.STRtree(frame.geometry)
    for x, y, long, short, _, kind in inside:
        hits = tree.query(shapely.Point(x, y), predicate="within")
        assert len(hits) == 1
        row = frame.iloc[hits[0]]
        # The drawn network's foreground ends a little inside the drawn border.
        assert 0.45 < row.geometry.area / (np.pi * long * short) < 1.05
        assert row["classification"] == ("round", "spindle")[kind]
    assert frame["id"].is_unique
    pairs = tree.query(frame.geometry, predicate="overlaps")
    assert all(
        frame.geometry[i].intersection(frame.geometry[j]).area < 1 for i, j in pairs.T if i < j
    )


@pytest.mark.parametrize(
    ("tile", "changes"),
    [
        (96, {"block": 64, "network_threads": 3, "postprocess_threads": 3}),
        (96, {"block": 300, "batch_size": 3}),
        (160, {"block": 256, "network_threads": 1, "read_threads": 1}),
    ],
)
def test_tiles_blocks_and_threads_do_not_matter(slide, tile, changes):
    network = PromptedNetwork(tile=tile, halo=32)
    expected = segment(slide, None, PromptedNetwork(tile=160, halo=32), options=options(block=9999))
    assert_geodataframe_equal(segment(slide, None, network, options=options(**changes)), expected)


def test_a_small_pathosam_gives_the_same_for_any_blocks():
    slide = DrawnSlide(nuclei_image()[:180, :190])
    model = small_pathosam()
    whole = segment(slide, None, model, options=options(block=9999))
    assert len(whole) > 1
    assert whole["classification"].notna().all()
    again = segment(slide, None, model, options=options(block=96, network_threads=3))
    assert_geodataframe_equal(again, whole)


def test_seeds_are_answered_once_and_tiles_embedded_once(slide):
    network = PromptedNetwork(tile=160, halo=32)
    segment(slide, None, network, options=options(block=96, postprocess_threads=1))
    columns, rows = -(-WIDTH // 96), -(-HEIGHT // 96)
    assert len(network.embedded) <= columns * rows
    seeds = segment(slide, None, PromptedNetwork(tile=160, halo=32), options=options())
    assert sum(map(len, network.asked)) == len(seeds)


def test_blocks_stream_and_regions_hold(slide):
    region = shapely.box(100, 100, 420, 300)
    network = PromptedNetwork(tile=96, halo=16)
    parts = list(iter_segment(slide, [region], network, options=options(block=128)))
    assert len(parts) > 1
    found = {i for part in parts for i in part["id"]}
    whole = segment(slide, None, network, options=options())
    assert found == set(whole["id"][whole.geometry.centroid.within(region)])
    asked = sum(map(len, network.asked))
    segment(slide, [shapely.box(100, 100, 120, 120)], network, options=options())
    assert sum(map(len, network.asked)) - asked < len(whole) / 2


def test_thresholds_and_smallest_area_apply(slide):
    network = PromptedNetwork(tile=160, halo=32)
    all_of_them = segment(slide, None, network, options=options())
    large = segment(
        slide, None, network, options=options(postprocessing=Postprocessing(min_size=150))
    )
    assert 0 < len(large) < len(all_of_them)
    assert set(large["id"]) == set(all_of_them["id"][all_of_them.geometry.area.round() > 150])


def test_a_click_lies_deepest_in_its_seed():
    maps = np.ones((3, 40, 60), np.float32)
    maps[1:, 5:16, 10:31] = 0.2
    maps[1:, 20:24, 0:9] = 0.2
    maps[0, 30:] = 0
    maps[1:, 32:36, 40:44] = 0.2
    assert seed_clicks(maps, Postprocessing()).tolist() == [[15, 10], [2, 21]]
    cut = seed_clicks(maps, Postprocessing(), open_sides=(True, False, False, False))
    assert cut.tolist() == [[15, 10]]
    maps[1:, 39:, 20:24] = 0.2
    maps[0, 39:, 20:24] = 1
    assert seed_clicks(maps, Postprocessing()).tolist()[-1] == [20, 39], "on the slide's border"
    sheet = np.full((3, 100, 120), 0.2, np.float32)
    sheet[0] = 1
    assert seed_clicks(sheet, Postprocessing()).size == 0, "no sheet is a seed"
    assert seed_clicks(np.ones((3, 9, 9), np.float32), Postprocessing()).shape == (0, 2)


def seed_mask(x, y, width, height, score=1.0):
    mask = np.ones((height, width), bool)
    return SeedMask((x + width // 2, y + height // 2), mask, x, y, score, width * height)


def test_of_masks_of_one_nucleus_the_best_stays():
    masks = [
        seed_mask(0, 0, 20, 20, 0.7),
        seed_mask(0, 0, 20, 19, 0.9),
        seed_mask(0, 0, 20, 21, 0.8),
        seed_mask(50, 0, 20, 20, 0.1),
        seed_mask(0, 0, 20, 10, 0.95),
    ]
    assert [m.score for m in distinct(masks)] == [0.95, 0.9, 0.1]
    assert [m.score for m in distinct(masks[::-1])] == [0.95, 0.9, 0.1]
    assert distinct([]) == []


def test_the_larger_mask_lies_on_top_and_pieces_part():
    long, bar = seed_mask(0, 10, 40, 6), seed_mask(10, 0, 30, 30)
    labels, owners = pieces([long, bar], Box(0, 0, 60, 40), min_size=25)
    assert owners == [bar, long]
    assert (labels == 1).sum() == 900
    assert (labels == 2).sum() == 60
    labels, owners = pieces([long, bar], Box(0, 0, 60, 40), min_size=61)
    assert owners == [bar]
    middle = seed_mask(15, 0, 10, 50)
    labels, owners = pieces([long, middle], Box(0, 0, 60, 40), min_size=25)
    assert owners == [middle, long, long], "what is parted becomes two"
    assert labels.max() == 3


def test_models_without_prompts_and_unknown_modes_are_refused(slide):
    with pytest.raises(ModelError, match="answers no prompts"):
        segment(slide, None, DrawnNetwork(), options=options())
    with pytest.raises(UsageError, match=r"mode amg: there is no such mode\. Give ais or apg"):
        SegmentOptions(mode="amg")
