"""From annotations to tiles and blocks at the model's resolution.

Tiles lie on a grid that starts at the slide's origin, whatever is segmented: a place is
always seen in the same tile, so two annotations, or an annotation and the whole slide,
find the same nuclei where they overlap. Blocks group tiles for the watershed. Their borders
run through the middle of tiles, so that a block and its margin need few tiles that a
neighbour needs too.

Pixels here are *scaled pixels*, those of the slide at the model's µm/px; scaled pixel i
covers slide pixels [i·scale, (i + 1)·scale). The grid ends with the last scaled pixel that
lies wholly on the slide. Beyond it tiles are filled by reflection, as the smoothing of the
maps does it: a nucleus at the border of an image then has a neighbourhood that looks like
tissue, where white would draw an edge across it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

STRIP = 16384
"""Width in scaled pixels of the strips in which a slide's blocks are taken."""


class ScaledPixels(Protocol):
    """A slide at the model's resolution (``Slide.at``)."""

    @property
    def scale(self) -> tuple[float, float]:
        """Slide pixels per scaled pixel, in x and y."""

    def read(self, x: int, y: int, width: int, height: int, /) -> NDArray[np.uint8]:
        """RGB (height, width, 3) of the scaled pixels from (x, y)."""


@dataclass(frozen=True)
class Box:
    """Scaled pixels x0 ≤ x < x1, y0 ≤ y < y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """Pixels in x."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Pixels in y."""
        return self.y1 - self.y0

    def grown(self, by: int) -> Box:
        """The box with ``by`` more pixels on each side."""
        return Box(self.x0 - by, self.y0 - by, self.x1 + by, self.y1 + by)

    def clipped(self, to: Box) -> Box:
        """The part inside another box."""
        return Box(
            max(self.x0, to.x0), max(self.y0, to.y0), min(self.x1, to.x1), min(self.y1, to.y1)
        )

    def holds(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the pixels are in the box."""
        inside = (x >= self.x0) & (x < self.x1) & (y >= self.y0) & (y < self.y1)
        return np.asarray(inside, bool)

    def slices(self, of: Box) -> tuple[slice, slice]:
        """Where this box lies in an array that covers the box ``of``."""
        return (
            slice(self.y0 - of.y0, self.y1 - of.y0),
            slice(self.x0 - of.x0, self.x1 - of.x0),
        )


TileIndex = tuple[int, int]
"""Column and row of a tile."""


@dataclass(frozen=True)
class TileGrid:
    """Tiles of a slide of ``width`` × ``height`` scaled pixels.

    ``tile`` is the side that the network sees, ``halo`` the pixels at each side whose maps
    are not used; the maps of tile (column, row) fill the ``step``-sized square at
    (column·step, row·step).
    """

    width: int
    height: int
    tile: int
    halo: int

    @classmethod
    def of_slide(
        cls, slide_size: tuple[int, int], scale: tuple[float, float], tile: int, halo: int
    ) -> TileGrid:
        """The grid of a slide of the given size in slide pixels."""
        width, height = (
            max(1, math.floor(size / step + 1e-6))
            for size, step in zip(slide_size, scale, strict=True)
        )
        return cls(width, height, tile, halo)

    @property
    def step(self) -> int:
        """Pixels from tile to tile."""
        return self.tile - 2 * self.halo

    @property
    def columns(self) -> int:
        """Number of tiles in x."""
        return -(-self.width // self.step)

    @property
    def rows(self) -> int:
        """Number of tiles in y."""
        return -(-self.height // self.step)

    @property
    def box(self) -> Box:
        """All pixels."""
        return Box(0, 0, self.width, self.height)

    def tile_box(self, index: TileIndex) -> Box:
        """The pixels whose maps come from a tile."""
        x, y = index[0] * self.step, index[1] * self.step
        return Box(x, y, x + self.step, y + self.step).clipped(self.box)

    def tiles_of(self, box: Box) -> Iterator[TileIndex]:
        """Tiles whose pixels meet a box, row by row."""
        box = box.clipped(self.box)
        for row in range(box.y0 // self.step, -(-box.y1 // self.step)):
            for column in range(box.x0 // self.step, -(-box.x1 // self.step)):
                yield column, row


@dataclass(frozen=True)
class Block:
    """Pixels whose objects are found together, and the tiles that this takes.

    ``inner`` boxes of a slide's blocks do not overlap and leave nothing out. Tiles are
    shared among the blocks of a ``strip``, and computed again for the next.
    """

    inner: Box
    tiles: tuple[TileIndex, ...]
    strip: int = 0


def treated_region(regions: Iterable[BaseGeometry]) -> BaseGeometry:
    """The union of regions, so that what several of them cover is treated once.

    Polygons that cross themselves are repaired; points and lines have no area and drop out.
    """
    parts = shapely.get_parts(shapely.make_valid(np.array(list(regions), object)))
    areas = parts[np.isin(shapely.get_type_id(parts), (3, 6))]
    return shapely.union_all(areas)


def wanted_tiles(
    grid: TileGrid, region: BaseGeometry, scale: tuple[float, float], context: int
) -> NDArray[np.bool_]:
    """Which tiles hold pixels that are in a region or at most ``context`` pixels away.

    Parameters
    ----------
    region : polygons in slide pixels.
    scale : slide pixels per scaled pixel.

    Returns
    -------
    wanted : (rows, columns) bool.
    """
    wanted = np.zeros((grid.rows, grid.columns), bool)
    if region.is_empty:
        return wanted
    scaled = shapely.transform(region, lambda xy: xy / np.array(scale))
    shapely.prepare(scaled)
    x0, y0, x1, y1 = scaled.bounds
    around = Box(math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))
    tiles = np.array(list(grid.tiles_of(around.grown(context + 1))), np.int64).reshape(-1, 2)
    if len(tiles) == 0:
        return wanted
    low = tiles * grid.step
    high = np.minimum(low + grid.step, (grid.width, grid.height))
    boxes = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
    near = shapely.dwithin(scaled, boxes, context)
    wanted[tiles[near, 1], tiles[near, 0]] = True
    return wanted


def blocks(grid: TileGrid, wanted: NDArray[np.bool_], *, side: int, margin: int) -> Sequence[Block]:
    """Blocks that hold wanted tiles, in the order in which they are computed.

    Blocks go row by row through strips of ``STRIP`` pixels: the tiles that a row shares
    with the next are held meanwhile, and a strip bounds their number on any slide.

    Parameters
    ----------
    wanted : (rows, columns) bool; other tiles count as background.
    side : about how many pixels a block's side has; a multiple of the grid's step.
    margin : pixels around ``inner`` whose maps a block needs.
    """
    tiles_per_side = max(1, round(side / grid.step))
    xs = _borders(grid.width, grid.step, tiles_per_side)
    ys = _borders(grid.height, grid.step, tiles_per_side)
    per_strip = max(1, STRIP // (tiles_per_side * grid.step))
    columns = list(pairwise(xs))
    rows = list(pairwise(ys))
    result: list[Block] = []
    same: dict[TileIndex, TileIndex] = {}
    for strip, start in enumerate(range(0, len(columns), per_strip)):
        for y0, y1 in rows:
            for x0, x1 in columns[start : start + per_strip]:
                inner = Box(x0, y0, x1, y1)
                if any(wanted[row, column] for column, row in grid.tiles_of(inner)):
                    near = grid.tiles_of(inner.grown(margin))
                    tiles = tuple(same.setdefault(t, t) for t in near if wanted[t[1], t[0]])
                    result.append(Block(inner, tiles, strip))
    return result


def _borders(length: int, step: int, tiles_per_side: int) -> list[int]:
    """Block borders along one axis: in the middle of every ``tiles_per_side``-th tile."""
    inside = range(tiles_per_side * step - step // 2, length, tiles_per_side * step)
    return [0, *inside, length]


def read_tile(pixels: ScaledPixels, grid: TileGrid, index: TileIndex) -> NDArray[np.uint8]:
    """What the network sees of a tile: (tile, tile, 3), the slide mirrored beyond its border."""
    columns = _mirrored(index[0] * grid.step - grid.halo, grid.tile, grid.width)
    rows = _mirrored(index[1] * grid.step - grid.halo, grid.tile, grid.height)
    x, y = int(columns.min()), int(rows.min())
    rgb = pixels.read(x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y)
    if rgb.shape[:2] == (grid.tile, grid.tile):
        return rgb
    return rgb.take(rows - y, axis=0).take(columns - x, axis=1)


def _mirrored(start: int, count: int, length: int) -> NDArray[np.int64]:
    """Positions start, start + 1, … in 0…length - 1, mirrored at the first and the last."""
    period = max(1, 2 * (length - 1))
    positions = np.arange(start, start + count) % period
    return np.minimum(positions, period - positions) if length > 1 else 0 * positions
