"""Nuclei by automatic prompts (APG): seeds of the decoder as clicks, masks by the mask decoder.

The steps are those of micro-sam's ``AutomaticPromptGenerator``: where both distances are
small in the foreground, maps unsmoothed, are seeds, 4-connected; the pixel of each that is
farthest from its border is a click; the mask decoder gives one mask per click; of two masks
whose IoU exceeds 0.9 the one with the lower product of predicted IoU and stability is left
out; where masks overlap the larger has the pixels; what is left in pieces, 4-connected, of
at least 25 pixels are the nuclei.

A slide does not fit into memory, so this runs in blocks. A nucleus belongs to the block that
holds its click. Seeds come from maps that are joined across tiles; a click is answered on
the tile whose maps it lies in, whose halo shows its surroundings. Clicks around a block are
answered too, so that overlaps across its border are decided alike on both sides: for
certain where masks reach no farther than ``REACH`` / 3 from their click.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry.base import BaseGeometry
from skimage.segmentation import find_boundaries

from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.model.prompts import Prompt, PromptableModel, TileEmbedding, mask_box
from pathosam_qupath.segmentation.objects import ClassesOf, Maps, Objects, class_sums
from pathosam_qupath.segmentation.polygons import TOLERANCE, polygons
from pathosam_qupath.segmentation.tiling import Box, TileGrid, TileIndex
from pathosam_qupath.segmentation.watershed import CLOSED, Sides

REACH = 160
"""Scaled pixels around a block in which clicks are answered."""

LONGEST_SEED = 96
"""Scaled pixels. A seed that is longer in x or y is no nucleus and left out."""

MARGIN = REACH + LONGEST_SEED
"""Scaled pixels around a block whose maps are needed."""

SAME_OBJECT = 0.9
"""Masks with a larger IoU are of one nucleus."""

MIN_SIZE = 25
"""Smallest area in scaled pixels where the model's parameters name none."""


_Embedding = TypeVar("_Embedding", bound=TileEmbedding)


@dataclass(frozen=True, eq=False)
class SeedMask:
    """The mask of one click.

    Attributes
    ----------
    click : x and y of the pixel that was clicked.
    mask : (height, width) bool, no larger than what it shows.
    x, y : of the mask's first pixel.
    score : predicted IoU times stability.
    area : pixels of the mask.
    """

    click: tuple[int, int]
    mask: NDArray[np.bool_]
    x: int
    y: int
    score: float
    area: int

    @property
    def box(self) -> Box:
        """The pixels that the mask covers."""
        height, width = self.mask.shape
        return Box(self.x, self.y, self.x + width, self.y + height)


def seed_clicks(
    maps: Maps, parameters: Postprocessing, *, open_sides: Sides = CLOSED
) -> NDArray[np.int64]:
    """A click for every seed.

    Parameters
    ----------
    maps : (3 or more, height, width): foreground, centre and boundary distance.
    parameters : thresholds.
    open_sides : the sides beyond which the slide goes on; seeds that they cut are left out.

    Returns
    -------
    (n, 2) int64 x and y, in the row-major order of the seeds.
    """
    is_seed = maps[1] < parameters.center_distance_threshold
    is_seed &= maps[2] < parameters.boundary_distance_threshold
    is_seed &= maps[0] >= parameters.foreground_threshold
    seeds, count = ndimage.label(is_seed, output=np.int32)
    if not count:
        return np.zeros((0, 2), np.int64)
    inside = ~find_boundaries(seeds, mode="outer")  # type: ignore[no-untyped-call]
    left, top, right, bottom = open_sides
    for border, is_open in (
        (np.s_[:, :1], left),
        (np.s_[:1], top),
        (np.s_[:, -1:], right),
        (np.s_[-1:], bottom),
    ):
        if not is_open:
            inside[border] = False
    depth = ndimage.distance_transform_edt(inside)
    height, width = is_seed.shape
    clicks = []
    for label, box in enumerate(ndimage.find_objects(seeds), start=1):
        rows, columns = box
        is_cut = (
            (left and columns.start == 0)
            or (top and rows.start == 0)
            or (right and columns.stop == width)
            or (bottom and rows.stop == height)
        )
        if is_cut or max(rows.stop - rows.start, columns.stop - columns.start) > LONGEST_SEED:
            continue
        own = np.where(seeds[box] == label, depth[box], -1)
        row, column = divmod(int(own.argmax()), own.shape[1])
        clicks.append((columns.start + column, rows.start + row))
    return np.array(clicks, np.int64).reshape(-1, 2)


class SeedPrompts(Generic[_Embedding]):
    """Answers to clicks, each on its tile's embedding, remembered as long as that.

    Parameters
    ----------
    model : that made the embeddings.
    grid : the tiles.
    """

    def __init__(self, model: PromptableModel[_Embedding], grid: TileGrid) -> None:
        self._model, self._grid = model, grid
        self._known: WeakKeyDictionary[_Embedding, dict[tuple[int, int], SeedMask | None]]
        self._known = WeakKeyDictionary()

    def masks(
        self, clicks: NDArray[np.int64], embedding_of: Callable[[TileIndex], _Embedding]
    ) -> list[SeedMask]:
        """The masks of clicks in scaled pixels, without those that show nothing."""
        by_tile: dict[TileIndex, list[tuple[int, int]]] = {}
        for x, y in clicks.tolist():
            by_tile.setdefault((x // self._grid.step, y // self._grid.step), []).append((x, y))
        found: list[SeedMask] = []
        for tile, members in by_tile.items():
            embedding = embedding_of(tile)
            known = self._known.setdefault(embedding, {})
            missing = [click for click in members if click not in known]
            known.update(zip(missing, self._answers(tile, embedding, missing), strict=True))
            found += [mask for click in members if (mask := known[click]) is not None]
        return found

    def _answers(
        self,
        tile: TileIndex,
        embedding: _Embedding,
        clicks: Sequence[tuple[int, int]],
    ) -> list[SeedMask | None]:
        grid = self._grid
        left, top = tile[0] * grid.step - grid.halo, tile[1] * grid.step - grid.halo
        prompts = [
            Prompt(points=((float(x - left), float(y - top)),), ambiguous=False) for x, y in clicks
        ]
        results: list[SeedMask | None] = []
        for click, answer in zip(clicks, self._model.prompt(embedding, prompts), strict=True):
            # Beyond the slide's border the tile is mirrored.
            x, y = max(0, -left), max(0, -top)
            mask = answer.mask[y : grid.height - top, x : grid.width - left]
            if not mask.any():
                results.append(None)
                continue
            x0, y0, x1, y1 = mask_box(mask)
            results.append(
                SeedMask(
                    click=click,
                    mask=mask[y0:y1, x0:x1].copy(),
                    x=left + x + x0,
                    y=top + y + y0,
                    score=answer.score * answer.stability,
                    area=int(mask.sum()),
                )
            )
        return results


def distinct(masks: Sequence[SeedMask]) -> list[SeedMask]:
    """The masks without those of one nucleus but the best, best first."""
    order = sorted(masks, key=lambda m: (-m.score, m.click[1], m.click[0]))
    if not order:
        return []
    boxes = shapely.box(*np.array([[m.box.x0, m.box.y0, m.box.x1, m.box.y1] for m in order]).T)
    near: list[list[int]] = [[] for _ in order]
    for i, j in shapely.STRtree(boxes).query(boxes, predicate="intersects").T.tolist():
        if i < j:
            near[i].append(j)
    is_left_out = [False] * len(order)
    for i, mask in enumerate(order):
        if not is_left_out[i]:
            for j in near[i]:
                is_left_out[j] = is_left_out[j] or _iou(mask, order[j]) > SAME_OBJECT
    return [mask for mask, left_out in zip(order, is_left_out, strict=True) if not left_out]


def _iou(one: SeedMask, other: SeedMask) -> float:
    both = one.box.clipped(other.box)
    if both.width <= 0 or both.height <= 0:
        return 0.0
    shared = int((one.mask[both.slices(one.box)] & other.mask[both.slices(other.box)]).sum())
    return shared / (one.area + other.area - shared)


def pieces(
    masks: Sequence[SeedMask], window: Box, min_size: int
) -> tuple[NDArray[np.int32], list[SeedMask]]:
    """Masks laid over each other, the larger on top, and taken apart into pieces.

    Parameters
    ----------
    masks : as :func:`distinct` gives them.
    window : what of them is wanted.

    Returns
    -------
    labels : (height, width) int32 of the window, 0 for background, else 1…n.
    owners : (n,) the mask of each piece.
    """
    canvas = np.zeros((window.height, window.width), np.int32)
    parts = [(mask, mask.box.clipped(window)) for mask in sorted(masks, key=lambda m: -m.area)]
    parts = [(mask, part) for mask, part in parts if part.width > 0 and part.height > 0]
    for number, (mask, part) in enumerate(parts, start=1):
        under = canvas[part.slices(window)]
        under[mask.mask[part.slices(mask.box)] & (under == 0)] = number
    labels = np.zeros_like(canvas)
    owners: list[SeedMask] = []
    for number, (mask, part) in enumerate(parts, start=1):
        at = part.slices(window)
        found, count = ndimage.label(canvas[at] == number)
        areas = np.bincount(found.ravel(), minlength=count + 1)
        for piece in np.flatnonzero(areas[1:] >= max(min_size, 1)) + 1:
            owners.append(mask)
            labels[at][found == piece] = len(owners)
    return labels, owners


def prompted_objects(
    inner: Box,
    slide: Box,
    maps_of: Callable[[Box], Maps],
    classes_of: ClassesOf,
    masks_of: Callable[[NDArray[np.int64]], list[SeedMask]],
    parameters: Postprocessing,
    *,
    scale: tuple[float, float],
    region: BaseGeometry | None = None,
    tolerance: float = TOLERANCE,
) -> Objects:
    """The objects of a block whose clicks lie in it.

    Parameters
    ----------
    inner : the block.
    slide : all scaled pixels.
    maps_of : foreground, centre and boundary distance of a box within the slide.
    classes_of : class probabilities of pixels of a box.
    masks_of : masks of clicks (n, 2), both in scaled pixels of the slide.
    scale : slide pixels per scaled pixel.
    region : polygons in slide pixels; farther from them than ``REACH`` no click is answered,
        so what is found out there is incomplete. None: all are.
    tolerance : of the polygons, in scaled pixels.
    """
    window = inner.grown(MARGIN).clipped(slide)
    open_sides: Sides = (
        window.x0 > slide.x0,
        window.y0 > slide.y0,
        window.x1 < slide.x1,
        window.y1 < slide.y1,
    )
    origin = np.array((window.x0, window.y0), np.int64)
    clicks = seed_clicks(maps_of(window), parameters, open_sides=open_sides) + origin
    near = inner.grown(REACH)
    clicks = clicks[near.holds(clicks[:, 0], clicks[:, 1])]
    if region is not None:
        places = shapely.points((clicks + 0.5) * np.array(scale))
        clicks = clicks[shapely.dwithin(region, places, REACH * max(scale))]
    min_size = parameters.min_size or MIN_SIZE
    kept = distinct([mask for mask in masks_of(clicks) if mask.area > min_size])
    labels, owners = pieces(kept, window, min_size)
    held = np.array([mask.click for mask in owners], np.int64).reshape(-1, 2)
    own = np.concatenate([[False], inner.holds(held[:, 0], held[:, 1])])
    labels = np.where(own, np.cumsum(own), 0).astype(np.int32)[labels]
    count = int(own.sum())
    at = np.flatnonzero(labels)
    owner = labels.ravel()[at]
    first = np.zeros(count + 1, np.int64)
    first[owner[::-1]] = at[::-1]
    anchors = np.stack([first[1:] % window.width, first[1:] // window.width], axis=1)
    return Objects(
        anchors + origin,
        polygons(
            labels,
            origin=(window.x0, window.y0),
            scale=scale,
            tolerance=tolerance,
            within=(slide.x1, slide.y1),
        ),
        class_sums(classes_of(window, at), owner, count),
    )
