"""Small regions in tiles cut to fit them: the same nuclei with less work."""

from dataclasses import dataclass, replace

import pytest
import shapely
from drawn_slide import DrawnNetwork, DrawnSlide, drawn, scattered
from pandas.testing import assert_frame_equal

from pathosam_qupath.segmentation.close_up import close_up
from pathosam_qupath.segmentation.pipeline import (
    SegmentOptions,
    nuclei_frame,
    plan_blocks,
    segment,
    segment_blocks,
)

WIDTH, HEIGHT = 1100, 900
TILE = 416
OPTIONS = SegmentOptions(seed="run/image")


@dataclass(frozen=True)
class AnySize(DrawnNetwork):
    """A network that takes tiles of other sizes too."""

    @property
    def info(self):
        return replace(super().info, stride=32)


@pytest.fixture(scope="module")
def slide():
    return DrawnSlide(drawn(WIDTH, HEIGHT, scattered(WIDTH, HEIGHT, 900, seed=3)))


def planned(slide, region, network, threads=2):
    plan = plan_blocks(slide, [region], network.info, OPTIONS)
    return plan, close_up(plan, network.info, OPTIONS, threads=threads)


@pytest.mark.parametrize(
    "region",
    [
        shapely.box(340, 350, 480, 470),
        shapely.box(0, 0, 90, 120),
        shapely.box(1000, 790, 1100, 900),
        shapely.Point(384, 384).buffer(60),
        shapely.MultiPolygon([shapely.box(280, 280, 370, 400), shapely.box(390, 280, 470, 380)]),
    ],
)
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_nuclei_are_those_of_the_slide_s_own_tiles(slide, region, threads):
    network = AnySize(tile=TILE, halo=16)
    _, near = planned(slide, region, network, threads)
    assert near is not None
    found = [
        near.on_slide(block.objects)
        for block in segment_blocks(near.plan, network, options=OPTIONS)
    ]
    frame = nuclei_frame(found, slide.mpp, network.info, OPTIONS)
    expected = segment(slide, [region], network, options=OPTIONS)
    assert len(expected) > 1
    frame = frame.set_index("id").loc[expected["id"]].reset_index()
    apart = shapely.hausdorff_distance(frame.geometry.to_numpy(), expected.geometry.to_numpy())
    assert apart.max() < 0.001, "outlines are smoothed in single precision"
    assert_frame_equal(frame.drop(columns="geometry"), expected.drop(columns="geometry"), rtol=1e-4)


def test_it_is_less_work(slide):
    network = AnySize(tile=TILE, halo=16)
    plan, near = planned(slide, shapely.box(340, 350, 480, 470), network)
    pixels = near.plan.grid.tile**2 * int(near.plan.wanted.sum())
    assert pixels < TILE**2 * int(plan.wanted.sum()) / 2


def test_a_network_of_one_size_gets_fewer_tiles(slide):
    network = DrawnNetwork(tile=192, halo=16)
    plan, near = planned(slide, shapely.box(315, 315, 325, 325), network)
    assert near.plan.grid.tile == 192
    assert near.plan.wanted.sum() < plan.wanted.sum()


@pytest.mark.parametrize(
    "region", [shapely.box(0, 0, WIDTH, HEIGHT), shapely.box(5000, 5000, 5010, 5010)]
)
def test_other_regions_keep_the_slide_s_tiles(slide, region):
    assert planned(slide, region, AnySize(tile=96, halo=16))[1] is None


def test_the_whole_slide_keeps_its_tiles(slide):
    network = AnySize(tile=TILE, halo=16)
    plan = plan_blocks(slide, None, network.info, OPTIONS)
    assert close_up(plan, network.info, OPTIONS, threads=2) is None


def test_pixels_of_another_resolution_lie_where_they_did():
    rgb = drawn(550, 450, scattered(550, 450, 200, seed=5))
    slide = DrawnSlide(rgb, mpp=(0.125, 0.125))
    plan, near = planned(slide, shapely.box(300, 310, 500, 520), AnySize(tile=TILE, halo=16))
    x, y = near.origin
    assert near.plan.pixels.scale == plan.pixels.scale == (2.0, 2.0)
    assert (near.plan.pixels.read(3, 5, 40, 30) == plan.pixels.read(x + 3, y + 5, 40, 30)).all()
    assert near.plan.region.bounds == (300 - 2 * x, 310 - 2 * y, 500 - 2 * x, 520 - 2 * y)
