"""Tiles and blocks cover what they must, once."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pathosam_qupath.segmentation import tiling
from pathosam_qupath.segmentation.tiling import (
    TileGrid,
    blocks,
    read_tile,
    treated_region,
    wanted_tiles,
)

GRID = TileGrid(1000, 700, tile=96, halo=16)


class Ramp:
    """Pixels that hold their own coordinates."""

    scale = (1.0, 1.0)

    def __init__(self, width, height):
        y, x = np.mgrid[:height, :width]
        self.pixels = np.stack([x % 256, y % 256, x // 256 + 16 * (y // 256)], -1).astype(np.uint8)

    def read(self, x, y, width, height):
        assert x >= 0 and y >= 0
        assert x + width <= self.pixels.shape[1] and y + height <= self.pixels.shape[0]
        return self.pixels[y : y + height, x : x + width]


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    side=st.integers(1, 600),
    halo=st.integers(0, 20),
    strip=st.sampled_from([100, 300, 16384]),
)
def test_blocks_divide_the_slide_and_hold_the_tiles_around_them(width, height, side, halo, strip):
    grid = TileGrid(width, height, tile=64 + 2 * halo, halo=halo)
    margin = 40
    before = tiling.STRIP
    tiling.STRIP = strip
    try:
        plan = blocks(grid, np.ones((grid.rows, grid.columns), bool), side=side, margin=margin)
    finally:
        tiling.STRIP = before
    covered = np.zeros((height, width), int)
    for block in plan:
        inner = block.inner
        covered[inner.y0 : inner.y1, inner.x0 : inner.x1] += 1
        assert set(block.tiles) == set(grid.tiles_of(inner.grown(margin)))
    assert (covered == 1).all()
    assert [block.strip for block in plan] == sorted(block.strip for block in plan)


def test_tile_boxes_divide_the_slide():
    covered = np.zeros((GRID.height, GRID.width), int)
    for tile in GRID.tiles_of(GRID.box):
        box = GRID.tile_box(tile)
        covered[box.y0 : box.y1, box.x0 : box.x1] += 1
    assert (covered == 1).all()
    assert (GRID.columns, GRID.rows) == (16, 11)


def test_the_grid_ends_with_the_last_whole_pixel():
    assert TileGrid.of_slide((1001, 999), (2.0, 0.5), 96, 16).box == tiling.Box(0, 0, 500, 1998)
    assert TileGrid.of_slide((1, 1), (4.0, 4.0), 96, 16).box == tiling.Box(0, 0, 1, 1)


@pytest.mark.parametrize(
    "region",
    [
        shapely.box(100, 100, 300, 200),
        shapely.Point(500, 300).buffer(200).difference(shapely.Point(500, 300).buffer(150)),
        shapely.LineString([(0, 0), (999, 699)]).buffer(1),
        shapely.box(-500, -500, 5, 5),
        shapely.box(2000, 2000, 2100, 2100),
    ],
)
@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 0.5)])
def test_wanted_tiles_are_those_near_the_region(region, scale):
    in_slide = shapely.transform(region, lambda xy: xy * np.array(scale))
    wanted = wanted_tiles(GRID, in_slide, scale, context=20)
    for tile in GRID.tiles_of(GRID.box):
        box = GRID.tile_box(tile)
        near = shapely.box(box.x0, box.y0, box.x1, box.y1).distance(region) <= 20
        assert wanted[tile[1], tile[0]] == near


def test_without_regions_no_tile_is_wanted():
    assert not wanted_tiles(GRID, treated_region([]), (1.0, 1.0), 20).any()


def test_points_and_lines_are_no_regions():
    region = treated_region(
        [shapely.Point(3, 3), shapely.LineString([(0, 0), (9, 9)]), shapely.box(0, 0, 2, 2)]
    )
    assert region.area == 4


def test_a_polygon_whose_repair_leaves_a_line_keeps_its_area():
    spiked = shapely.Polygon([(0, 0), (4, 0), (4, 4), (4, 9), (4, 4), (0, 4)])
    assert treated_region([spiked]).area == pytest.approx(16)


def test_tiles_see_their_own_pixels_and_a_mirror_beyond_the_slide():
    slide = Ramp(300, 200)
    grid = TileGrid(300, 200, tile=96, halo=16)
    around = np.pad(slide.pixels, ((16, 96), (16, 96), (0, 0)), mode="reflect")
    for column, row in grid.tiles_of(grid.box):
        x, y = column * 64, row * 64
        seen = read_tile(slide, grid, (column, row))
        assert np.array_equal(seen, around[y : y + 96, x : x + 96]), (column, row)


def test_a_slide_smaller_than_a_tile_is_mirrored_often_enough():
    slide = Ramp(7, 1)
    seen = read_tile(slide, TileGrid(7, 1, tile=96, halo=16), (0, 0))
    assert seen.shape == (96, 96, 3)
    assert np.array_equal(seen[16, 16:23], slide.pixels[0])
    assert (seen == seen[:1]).all()
