"""A small region on a processor, while a person waits: tiles cut to fit it.

The tiles of a slide lie still (``tiling``), so that a place is always seen in the same tile.
A region much smaller than a tile may touch four of them, and the network then works on many
times the pixels that were asked for. Here the same network sees tiles of a grid that begins
beside the region, as small as its number of threads makes best. What lies at least a halo
inside a tile hardly depends on where the tile ends; outlines may differ by a pixel from those
of a run over the slide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from pathosam_qupath.model.interface import ModelInfo
from pathosam_qupath.segmentation.block_plan import (
    CONTEXT,
    BlockPlan,
    SegmentOptions,
    wanted_blocks,
)
from pathosam_qupath.segmentation.objects import Objects
from pathosam_qupath.segmentation.tiling import Box, ScaledPixels, TileGrid, wanted_tiles

MOST_TILES = 9
"""Tiles of the slide's grid that a region may touch to count as small."""


@dataclass(frozen=True, eq=False)
class CloseUp:
    """What to compute of a piece of a slide.

    Attributes
    ----------
    plan : in pixels of the piece.
    origin : scaled pixels of the slide where the piece begins.
    """

    plan: BlockPlan
    origin: tuple[int, int]

    def on_slide(self, objects: Objects) -> Objects:
        """Objects of the piece where they lie on the slide."""
        away = np.array(self.plan.pixels.scale) * self.origin
        return replace(
            objects,
            anchors=objects.anchors + np.array(self.origin),
            polygons=np.asarray(shapely.transform(objects.polygons, lambda xy: xy + away)),
        )


@dataclass(frozen=True, eq=False)
class _Piece:
    """Scaled pixels of a slide from ``x``, ``y`` on."""

    whole: ScaledPixels
    x: int
    y: int

    @property
    def scale(self) -> tuple[float, float]:
        return self.whole.scale

    def read(self, x: int, y: int, width: int, height: int, /) -> NDArray[np.uint8]:
        return self.whole.read(self.x + x, self.y + y, width, height)


def close_up(
    plan: BlockPlan, info: ModelInfo, options: SegmentOptions, *, threads: int
) -> CloseUp | None:
    """A plan for the same region that takes less time, if there is one.

    Parameters
    ----------
    plan : for a region, in the slide's grid.
    threads : tiles that go through the network at a time.
    """
    tiles = int(plan.wanted.sum())
    if plan.region is None or plan.region.is_empty or not 0 < tiles <= MOST_TILES:
        return None
    scale = np.array(plan.pixels.scale)
    x0, y0, x1, y1 = (np.array(plan.region.bounds).reshape(2, 2) / scale).ravel().tolist()
    around = Box(math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))
    box = around.grown(CONTEXT + info.halo).clipped(plan.grid.box)
    side = _best_side(box, info, threads)
    if side is None or _cost(tiles, side=plan.grid.tile, threads=threads) <= _cost(
        _count(box, side, info.halo), side=side, threads=threads
    ):
        return None
    grid = TileGrid(box.width, box.height, side, info.halo)
    region = shapely.transform(plan.region, lambda xy: xy - scale * (box.x0, box.y0))
    wanted = wanted_tiles(grid, region, plan.pixels.scale, CONTEXT)
    return CloseUp(
        replace(
            plan,
            pixels=_Piece(plan.pixels, box.x0, box.y0),
            grid=grid,
            wanted=wanted,
            region=region,
            blocks=wanted_blocks(grid, wanted, info, options),
        ),
        (box.x0, box.y0),
    )


def _best_side(box: Box, info: ModelInfo, threads: int) -> int | None:
    """Of a tile, so that the region takes the least time; None where the model has no choice."""
    sides = range(info.tile, 2 * info.halo, -info.stride) if info.stride else (info.tile,)
    return min(
        sides,
        key=lambda side: _cost(_count(box, side, info.halo), side=side, threads=threads),
        default=None,
    )


def _count(box: Box, side: int, halo: int) -> int:
    """Tiles that a piece takes; its last pixels are a halo and need no maps."""
    step = side - 2 * halo
    return -(-max(1, box.width - halo) // step) * -(-max(1, box.height - halo) // step)


def _cost(tiles: int, *, side: int, threads: int) -> int:
    """Pixels that the busiest thread works on."""
    return -(-tiles // threads) * side * side
