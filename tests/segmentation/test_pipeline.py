"""No nucleus cut, doubled or lost, whatever the tiles, blocks, batches and threads."""

import os
import signal
import threading
import time
import uuid

import geopandas
import numpy as np
import pytest
import shapely
import torch
from drawn_slide import DrawnNetwork, DrawnSlide, drawn, scattered
from geopandas.testing import assert_geodataframe_equal

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.segmentation import tile_maps
from pathosam_qupath.segmentation.classes import ClassMap
from pathosam_qupath.segmentation.nuclei import _ids
from pathosam_qupath.segmentation.pipeline import SegmentOptions, iter_segment, segment
from pathosam_qupath.segmentation.polygons import polygons
from pathosam_qupath.segmentation.watershed import instances

WIDTH, HEIGHT = 420, 350


@pytest.fixture(scope="module", params=[60, 1000], ids=["sparse", "one sheet"])
def any_rgb(request):
    return drawn(WIDTH, HEIGHT, scattered(WIDTH, HEIGHT, request.param, seed=request.param))


@pytest.fixture(scope="module")
def rgb():
    return drawn(WIDTH, HEIGHT, scattered(WIDTH, HEIGHT, 300, seed=1))


def untiled(rgb, parameters=None):
    """Polygons of the watershed of the whole slide at once."""
    around = np.pad(rgb, ((16, 16), (16, 16), (0, 0)), mode="reflect")
    maps = DrawnNetwork().predict(around[None])[0][:, 16:-16, 16:-16]
    return polygons(instances(maps, parameters), within=rgb.shape[1::-1])


def options(**changes):
    return SegmentOptions(seed="run/image", **changes)


@pytest.mark.parametrize(
    ("tile", "halo", "changes"),
    [
        (96, 16, {}),
        (96, 16, {"block": 64, "network_threads": 3}),
        (64, 8, {"block": 200, "batch_size": 3, "postprocess_threads": 3}),
        (160, 32, {"block": 128, "batch_size": 8, "network_threads": 1, "read_threads": 1}),
    ],
)
def test_blocks_give_what_the_whole_slide_gives(any_rgb, tile, halo, changes):
    frame = segment(
        DrawnSlide(any_rgb), None, DrawnNetwork(tile=tile, halo=halo), options=options(**changes)
    )
    expected = segment(DrawnSlide(any_rgb), None, DrawnNetwork(), options=options(block=10_000))
    assert sorted(shapely.to_wkb(frame.geometry)) == sorted(shapely.to_wkb(untiled(any_rgb)))
    assert_geodataframe_equal(frame, expected)


def test_every_drawn_nucleus_is_found_once():
    spots = [(x, y) for x in range(20, WIDTH, 33) for y in range(20, HEIGHT, 31)]
    rgb = drawn(WIDTH, HEIGHT, [(x, y, 11, 11, 0, 0) for x, y in spots])
    frame = segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(block=64))
    assert len(frame) == len(spots)
    tree = shapely.STRtree(frame.geometry.to_numpy())
    _, hit = tree.query(shapely.points(np.array(spots) + 0.5), predicate="within")
    assert sorted(hit) == list(range(len(spots)))
    assert frame.geometry.area.between(250, 420).all()


def test_repetition_gives_the_same_rows_and_ids(rgb):
    first, second = (
        segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(block=128)) for _ in range(2)
    )
    assert_geodataframe_equal(first, second)
    assert first["id"].is_unique


def test_ids_differ_between_runs():
    rgb = drawn(200, 200, scattered(200, 200, 20, 0))
    ids = [
        set(segment(DrawnSlide(rgb), None, DrawnNetwork(), options=SegmentOptions(seed=seed))["id"])
        for seed in ("one", "two", None, None)
    ]
    assert all(a.isdisjoint(b) for i, a in enumerate(ids) for b in ids[:i])


def test_smallest_size_counts_whole_nuclei(rgb):
    parameters = Postprocessing(min_size=150)
    frame = segment(
        DrawnSlide(rgb),
        None,
        DrawnNetwork(postprocessing=parameters),
        options=options(block=64),
    )
    expected = untiled(rgb, parameters)
    assert sorted(shapely.to_wkb(frame.geometry)) == sorted(shapely.to_wkb(expected))
    assert 0 < len(frame) < len(untiled(rgb))


def test_only_nuclei_with_their_centroid_in_a_region_are_kept(rgb):
    hole = shapely.box(200, 150, 260, 220)
    regions = [
        shapely.box(80, 80, 300, 260).difference(hole),
        shapely.MultiPolygon([shapely.box(260, 220, 400, 330), shapely.box(350, 20, 410, 60)]),
    ]
    everything = untiled(rgb)
    union = shapely.union_all(regions)
    expected = everything[shapely.intersects(union, shapely.centroid(everything))]
    frame = segment(DrawnSlide(rgb), regions, DrawnNetwork(), options=options(block=128))
    assert sorted(shapely.to_wkb(frame.geometry)) == sorted(shapely.to_wkb(expected))


def test_overlapping_regions_are_treated_once():
    rgb = drawn(300, 300, scattered(300, 300, 80, 4))
    twice = [shapely.box(50, 50, 200, 200), shapely.box(100, 100, 250, 250)]
    frame = segment(DrawnSlide(rgb), twice, DrawnNetwork(), options=options())
    once = segment(DrawnSlide(rgb), [shapely.union_all(twice)], DrawnNetwork(), options=options())
    assert_geodataframe_equal(frame, once)
    assert frame["id"].is_unique


def test_a_region_that_crosses_itself_is_repaired():
    rgb = drawn(300, 300, scattered(300, 300, 80, 4))
    bow = shapely.Polygon([(20, 20), (280, 280), (280, 20), (20, 280)])
    frame = segment(DrawnSlide(rgb), [bow], DrawnNetwork(), options=options())
    inside = shapely.intersects(shapely.make_valid(bow), shapely.centroid(frame.geometry))
    assert len(frame) > 10
    assert inside.all()


def test_tiles_far_from_a_region_are_not_computed():
    rgb = drawn(1200, 1200, scattered(1200, 1200, 900, 2))
    slide, network = DrawnSlide(rgb), DrawnNetwork()
    frame = segment(slide, [shapely.box(500, 500, 600, 600)], network, options=options())
    assert len(frame) > 3
    assert len(slide.reads) <= 25
    assert all(x + w > 400 and x < 700 for x, _, w, _ in slide.reads)


def test_a_tile_is_computed_once():
    rgb = drawn(600, 600, scattered(600, 600, 130, 2))
    slide = DrawnSlide(rgb)
    segment(slide, None, DrawnNetwork(), options=options(block=200))
    assert len(set(slide.reads)) == len(slide.reads) == 10 * 10


def test_blank_tiles_do_not_reach_the_network():
    rgb = np.full((600, 600, 3), 240, np.uint8)
    rgb[:300, :300] = drawn(300, 300, scattered(300, 300, 80, 4))
    rgb[400:] = 0
    network = DrawnNetwork()
    frame = segment(DrawnSlide(rgb), None, network, options=options())
    assert len(frame) > 20
    assert sum(network.seen) < 10 * 10 / 2


def test_slides_of_another_resolution_get_polygons_in_their_own_pixels():
    rgb = drawn(400, 300, scattered(400, 300, 60, 8))
    plain = segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options())
    slide = DrawnSlide(rgb, mpp=(0.5, 0.125))
    frame = segment(slide, None, DrawnNetwork(), options=options())
    expected = shapely.transform(plain.geometry.to_numpy(), lambda xy: xy * (0.5, 2.0))
    assert len(frame) == len(plain)
    assert shapely.equals_exact(frame.geometry.to_numpy(), expected, 1e-3).all()
    assert np.allclose(frame["Area µm^2"], plain["Area µm^2"], rtol=1e-4)
    assert np.allclose(frame["Max diameter µm"], plain["Max diameter µm"], rtol=1e-4)


def test_a_slide_smaller_than_a_tile_is_segmented():
    rgb = drawn(50, 40, [(25, 20, 9, 9, 0, 0)])
    frame = segment(DrawnSlide(rgb), None, DrawnNetwork(tile=160, halo=32), options=options())
    assert len(frame) == 1
    assert frame.geometry[0].area == pytest.approx(np.pi * 81, rel=0.15)


def test_nuclei_at_the_slides_border_are_kept_within_it():
    rgb = drawn(300, 300, [(0, 150, 10, 10, 0, 0), (299, 299, 12, 12, 0, 0), (150, 4, 9, 9, 0, 1)])
    frame = segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options())
    assert len(frame) == 3
    assert (frame.total_bounds >= 0).all()
    assert (frame.total_bounds <= 300).all()


def test_nothing_to_find_gives_an_empty_frame_with_all_columns():
    blank = DrawnSlide(np.full((200, 200, 3), 255, np.uint8))
    full = DrawnSlide(drawn(200, 200, scattered(200, 200, 20, 0)))
    empty = segment(blank, None, DrawnNetwork(), options=options())
    outside = segment(full, [shapely.box(5000, 5000, 6000, 6000)], DrawnNetwork())
    some = segment(full, None, DrawnNetwork(), options=options())
    for frame in (empty, outside):
        assert len(frame) == 0
        assert isinstance(frame, geopandas.GeoDataFrame)
        assert list(frame.columns) == list(some.columns)


def test_classes_follow_the_pixels_and_the_map():
    rgb = drawn(300, 200, [(60, 100, 12, 12, 0, 0), (200, 100, 12, 12, 0, 1)])
    plain = segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options())
    assert plain.sort_values("id", key=lambda _: plain.centroid.x)["classification"].tolist() == [
        "round",
        "spindle",
    ]
    assert np.allclose(plain["Probability: round"] + plain["Probability: spindle"], 1)
    renamed = ClassMap({"round": "Tumor"}, frozenset({"spindle"}))
    mapped = segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(class_map=renamed))
    assert mapped["classification"].tolist() == ["Tumor"]
    assert mapped["probability"][0] == mapped["Probability: Tumor"][0] > 0.5


def test_a_network_without_classes_leaves_nuclei_unclassified():
    rgb = drawn(200, 200, scattered(200, 200, 20, 0))
    frame = segment(DrawnSlide(rgb), None, DrawnNetwork(classes=()), options=options())
    assert len(frame) > 5
    assert frame["classification"].isna().all()
    assert frame["probability"].isna().all()


def test_blocks_come_in_the_same_order_and_hold_all_rows(rgb):
    streams = [
        list(
            iter_segment(
                DrawnSlide(rgb),
                None,
                DrawnNetwork(),
                options=options(block=128, network_threads=threads),
            )
        )
        for threads in (1, 4)
    ]
    assert len(streams[0]) > 5
    for first, second in zip(*streams, strict=True):
        assert_geodataframe_equal(first, second)
    whole = segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(block=128))
    assert sorted(i for frame in streams[0] for i in frame["id"]) == sorted(whole["id"])


def test_progress_counts_every_tile_and_nucleus():
    rgb = drawn(500, 500, scattered(500, 500, 100, 1))
    seen = []
    frame = segment(
        DrawnSlide(rgb), None, DrawnNetwork(), options=options(block=128), progress=seen.append
    )
    assert [p.tiles_done for p in seen] == sorted(p.tiles_done for p in seen)
    assert seen[-1].tiles_done == seen[-1].tiles_total == 64
    assert seen[-1].nuclei == len(frame)
    assert min(seen[-1].seconds_read, seen[-1].seconds_network, seen[-1].seconds_postprocess) > 0


def our_threads():
    names = ("read", "network", "postprocess")
    return [t for t in threading.enumerate() if t.name.startswith(names)]


def test_closing_the_stream_ends_its_threads():
    rgb = drawn(600, 600, scattered(600, 600, 130, 2))
    stream = iter_segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(block=128))
    next(stream)
    assert our_threads()
    stream.close()
    assert not our_threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_ends_the_threads(error):
    def interrupt(progress):
        if progress.tiles_done > 20:
            raise error

    rgb = drawn(600, 600, scattered(600, 600, 130, 2))
    with pytest.raises(error):
        segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(), progress=interrupt)
    assert not our_threads()


class Slow(torch.nn.Module):
    """A layer that takes its time."""

    seen = 0

    def forward(self, x):
        Slow.seen += 1
        time.sleep(0.05)
        return x


class SlowNetwork(DrawnNetwork):
    """A network on the processor whose tiles take ten seconds each."""

    layers = torch.nn.Sequential(*(Slow() for _ in range(200)))

    def predict(self, tiles):
        return self.layers(super().predict(tiles))


@pytest.mark.skipif(os.name == "nt", reason="needs pthread_kill")
def test_closing_the_stream_ends_a_tile_between_two_layers(monkeypatch):
    monkeypatch.setattr(Slow, "seen", 0)
    rgb = drawn(100, 100, [(50, 50, 10, 8, 0, 0)])

    def interrupt():
        while Slow.seen < 3:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # Tests that run in a shell's background were started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    presser = threading.Thread(target=interrupt)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(iter_segment(DrawnSlide(rgb), None, SlowNetwork(), options=options()))
    finally:
        signal.signal(signal.SIGINT, before)
    presser.join()
    assert 3 <= Slow.seen < 150


def test_an_unreadable_slide_raises_and_ends_the_threads():
    class Broken(DrawnSlide):
        def read(self, x, y, width, height):
            if y > 200:
                raise OSError("disk gone")
            return super().read(x, y, width, height)

    rgb = drawn(600, 600, scattered(600, 600, 130, 2))
    with pytest.raises(OSError, match="disk gone"):
        segment(Broken(rgb), None, DrawnNetwork(), options=options())
    assert not our_threads()


@pytest.mark.parametrize("block", [64, 10_000])
def test_a_seed_larger_than_any_nucleus_is_left_out_in_every_block(block):
    rgb = drawn(900, 300, [(450, 150, 400, 60, 0.1, 0), (450, 20, 9, 9, 0, 1)])
    frame = segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(block=block))
    assert len(frame) == 1
    assert frame.geometry[0].contains(shapely.Point(450, 20))


def test_a_long_object_is_found_whole():
    rgb = drawn(900, 300, [(450, 150, 80, 20, 0.7, 0), (450, 20, 9, 9, 0, 1)])
    frame = segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(block=64))
    assert sorted(shapely.to_wkb(frame.geometry)) == sorted(shapely.to_wkb(untiled(rgb)))


def test_maps_are_held_for_few_tiles_only(monkeypatch):
    most = []

    class Watched(tile_maps.TileMaps):
        def release(self, block):
            most.append(len(self._held))
            super().release(block)

    monkeypatch.setattr("pathosam_qupath.segmentation.pipeline.TileMaps", Watched)
    rgb = drawn(640, 2560, scattered(640, 2560, 500, 1))
    segment(DrawnSlide(rgb), None, DrawnNetwork(), options=options(block=128))
    assert max(most) < 0.3 * 10 * 40


@pytest.mark.parametrize("name", ["block", "batch_size", "network_threads", "read_threads"])
def test_impossible_options_are_refused(name):
    with pytest.raises(UsageError, match=name):
        SegmentOptions(**{name: 0})


def test_ids_are_version_5_uuids_of_the_run_and_the_anchor():
    namespace = uuid.uuid4()
    anchors = np.array([[0, 0], [17, 123456], [99999, 4]])
    assert _ids(namespace, anchors) == [str(uuid.uuid5(namespace, f"{x},{y}")) for x, y in anchors]
    assert _ids(namespace, anchors[:0]) == []
