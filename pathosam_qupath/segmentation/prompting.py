"""One nucleus from a click, a box or an outline, anywhere on a slide.

The reference takes a prompt to a tile of a fixed grid, and a nucleus at its border is cut.
Here a tile is cut out around the prompt. Its place is rounded, and a tile whose embedding
is there already is taken where it shows enough around the prompt; so clicks in one part of
a slide share an encoder pass. What touches a side of its tile is asked for again on a tile
around the prompt, then on a larger one.

Near the slide's border tiles are shifted inwards, on slides smaller than a tile the slide
is mirrored, as in ``tiling``: the model sees every nucleus at its own µm/px.

A tile that was not centred may draw an outline a pixel differently. Which tiles are there
is therefore the only thing besides slide, prompt and model that a result depends on.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.embedding_cache import EmbeddingCache, EmbeddingStore, Tile
from pathosam_qupath.model.prompts import Prompt, TileEmbedding, mask_box, promptable
from pathosam_qupath.segmentation.classes import MODEL_NAMES, ClassMap, classify
from pathosam_qupath.segmentation.measurements import shape_measurements
from pathosam_qupath.segmentation.polygons import TOLERANCE, polygons
from pathosam_qupath.segmentation.tiling import TileGrid

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from pathosam_qupath.segmentation.pipeline import SegmentableSlide

MEMORY = 256 << 20
"""Bytes of embeddings in memory: about sixty of PathoSAM's."""

DISK = 2 << 30
"""Bytes of embeddings on disk, those of all slides and models together."""

STEP = 64
"""Scaled pixels: new tiles begin at multiples of this."""

MARGIN = 8
"""A tile serves a prompt that is at least this part of its side away from its sides: 64 of
512 pixels at 0.25 µm/px are 16 µm, more than a nucleus reaches from a click on it."""

LARGEST = 4
"""How many of the model's tiles in a row one prompt's tile may at most be."""

NEAR = 8
"""Scaled pixels that a click may lie beside the object that it means."""

SCORE = "Predicted IoU"
"""Name of the measurement that says how sure the model is of an outline."""


@dataclass(frozen=True, eq=False)
class _Found:
    """An object of a prompt: its pixels, where they begin, its class sums."""

    mask: NDArray[np.bool_]
    x: int
    y: int
    score: float
    class_sums: NDArray[np.float64]


class PromptSession:
    """Objects by prompts on one open slide. Thread-safe.

    Parameters
    ----------
    slide : an open slide.
    model : one that answers prompts (PathoSAM, the bundled model).
    memory : bytes of embeddings to hold in memory.
    slide_key : what tells the slide from others (``embedding_cache.file_fingerprint``);
        with it embeddings are kept on disk too.
    cache_dir : folder on disk; None for one in the user's cache directory.
    disk : bytes that embeddings may take there, those of all slides and models together.
    class_map : names of classes in the project. A class that is to be left out gives its
        objects no class: who asks for an object gets it.
    tolerance : of the polygons, in pixels at the model's resolution.

    Raises
    ------
    ModelError
        If the model answers no prompts.
    """

    def __init__(
        self,
        slide: SegmentableSlide,
        model: object,
        *,
        memory: int = MEMORY,
        slide_key: str | None = None,
        cache_dir: Path | None = None,
        disk: int = DISK,
        class_map: ClassMap = MODEL_NAMES,
        tolerance: float = TOLERANCE,
    ) -> None:
        self._model = promptable(model)
        info = self._model.info
        self._slide, self._class_map, self._tolerance = slide, class_map, tolerance
        self._pixels = slide.at(info.mpp)
        grid = TileGrid.of_slide(
            (slide.width, slide.height), self._pixels.scale, info.tile, info.halo
        )
        self._width, self._height = grid.width, grid.height
        store = None
        if slide_key is not None and disk > 0:
            scale_x, scale_y = self._pixels.scale
            scope = f"{info.weights_hash} {info.precision} {slide_key} {info.mpp}"
            scope += f" {scale_x} {scale_y}"
            store = EmbeddingStore(scope, limit=disk, folder=cache_dir)
        self._cache = EmbeddingCache(self._model, memory=memory, store=store)

    def prepare(self, x: float, y: float) -> None:
        """Embed the tile around a place in slide pixels, so that prompts there are quick."""
        prompt = self._scaled(0, Prompt(points=((x, y),)))
        self._embedding(self._tile(prompt, self._cache.tiles()))

    def segment(self, prompts: Sequence[Prompt]) -> GeoDataFrame:
        """The object of each prompt.

        Prompts on one tile go through the model together.

        Parameters
        ----------
        prompts : in slide pixels.

        Returns
        -------
        One row per prompt, in their order, with the columns of ``pipeline.segment`` and
        "Predicted IoU". Where the model sees no object the geometry is None, class and
        numbers are missing.

        Raises
        ------
        UsageError
            If a prompt does not lie on the slide or is larger than the model can see.
        """
        scaled = [self._scaled(i, prompt) for i, prompt in enumerate(prompts)]
        by_tile: dict[Tile, list[int]] = {}
        for i, prompt in enumerate(scaled):
            tile = self._tile(prompt, [*by_tile, *self._cache.tiles()])
            by_tile.setdefault(tile, []).append(i)
        found: list[_Found | None] = [None] * len(prompts)
        for tile, members in by_tile.items():
            answers = self._on_tile(tile, [scaled[i] for i in members])
            for i, answer in zip(members, answers, strict=True):
                found[i] = self._whole(scaled[i], tile, answer)
        return self._frame(found)

    def _scaled(self, i: int, prompt: Prompt) -> Prompt:
        """The prompt at the model's resolution."""
        width, height = self._slide.width, self._slide.height
        x0, y0, x1, y1 = prompt.bounds()
        if x1 < 0 or y1 < 0 or x0 >= width or y0 >= height:
            raise UsageError(
                f"prompt {i + 1}",
                f"it lies at {x0:.0f}, {y0:.0f}, the slide has {width} x {height} pixels",
                "Give prompts in full-resolution pixels of this slide.",
            )
        scaled = prompt.scaled(self._pixels.scale)
        # The slide's last pixels may be less than one of the model's, which then is left out.
        scaled = replace(
            scaled,
            points=tuple(
                (_drawn_in(x, self._width), _drawn_in(y, self._height)) for x, y in scaled.points
            ),
        )
        x0, y0, x1, y1 = scaled.bounds()
        most = LARGEST * self._model.info.tile
        if max(x1 - x0, y1 - y0) > most:
            micrometres = most * self._model.info.mpp
            raise UsageError(
                f"prompt {i + 1}",
                f"it is {max(x1 - x0, y1 - y0) * self._model.info.mpp:.0f} µm long, the model "
                f"sees {micrometres:.0f} µm at a time",
                "Prompt one nucleus at a time; segment regions to find many.",
            )
        return scaled

    def _tile(self, prompt: Prompt, held: Sequence[Tile]) -> Tile:
        """The best tile that is there already, else one around the prompt."""
        x0, y0, x1, y1 = prompt.bounds()
        new = self._centred(prompt)
        side = new.width

        def reaches(low: float, high: float, start: int, length: int) -> bool:
            margin = side // MARGIN
            enough_before = start <= 0 or low - start >= margin
            enough_behind = start + side >= length or start + side - high >= margin
            return enough_before and enough_behind

        fitting = [
            tile
            for tile in held
            if tile.width == side
            and reaches(max(x0, 0), min(x1, self._width), tile.x, self._width)
            and reaches(max(y0, 0), min(y1, self._height), tile.y, self._height)
        ]
        if not fitting:
            return new
        center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2
        return min(
            fitting,
            key=lambda t: (math.hypot(t.x + side / 2 - center_x, t.y + side / 2 - center_y), t),
        )

    def _centred(self, prompt: Prompt, factor: int = 1) -> Tile:
        """The tile around a prompt; ``factor`` times the model's in each direction, or more."""
        x0, y0, x1, y1 = prompt.bounds()
        usual = self._model.info.tile
        side = factor * usual
        while side < 2 * max(x1 - x0, y1 - y0) and side < LARGEST * usual:
            side *= 2

        def start(center: float, length: int) -> int:
            snapped = STEP * round((center - side / 2) / STEP)
            return max(0, min(int(snapped), length - side))

        return Tile(
            start((x0 + x1) / 2, self._width), start((y0 + y1) / 2, self._height), side, side
        )

    def _read(self, tile: Tile) -> NDArray[np.uint8]:
        """Pixels of a tile; the slide mirrored where it ends."""
        width, height = min(tile.width, self._width), min(tile.height, self._height)
        rgb = self._pixels.read(tile.x, tile.y, width, height)
        if (width, height) == (tile.width, tile.height):
            return rgb
        beyond = ((0, tile.height - height), (0, tile.width - width), (0, 0))
        return np.pad(rgb, beyond, mode="reflect")

    def _embedding(self, tile: Tile) -> TileEmbedding:
        return self._cache.get(tile, lambda: self._read(tile))

    def _on_tile(self, tile: Tile, prompts: Sequence[Prompt]) -> list[_Found | None]:
        """The objects of prompts on one tile, in pixels of the slide at the model's µm/px."""
        embedding = self._embedding(tile)
        moved = [prompt.moved(tile.x, tile.y, (tile.height, tile.width)) for prompt in prompts]
        answers = self._model.prompt(embedding, moved)
        found: list[_Found | None] = []
        classes: NDArray[np.float32] | None = None
        for prompt, answer in zip(moved, answers, strict=True):
            mask = answer.mask[: self._height - tile.y, : self._width - tile.x]
            piece = meant_piece(mask, prompt)
            if piece is None:
                found.append(None)
                continue
            x0, y0, x1, y1 = mask_box(piece)
            inside = piece[y0:y1, x0:x1]
            sums = np.zeros(len(self._model.info.classes))
            if classes is None:
                classes = self._model.embedded_classes(embedding)
            if classes is not None:
                sums = classes[:, y0:y1, x0:x1][:, inside].sum(axis=1, dtype=np.float64)
            found.append(_Found(inside, tile.x + x0, tile.y + y0, answer.score, sums))
        return found

    def _whole(self, prompt: Prompt, tile: Tile, found: _Found | None) -> _Found | None:
        """Once more where a side of the tile may have cut the object."""
        factor = 1
        while found is not None and self._is_cut(tile, found) and factor <= LARGEST:
            other = self._centred(prompt, factor)
            factor *= 2
            if other != tile:
                tile = other
                found = self._on_tile(tile, [prompt])[0]
        return found

    def _is_cut(self, tile: Tile, found: _Found) -> bool:
        height, width = found.mask.shape
        right, bottom = tile.x + tile.width, tile.y + tile.height
        return (
            (found.x == tile.x > 0)
            or (found.y == tile.y > 0)
            or (found.x + width == right < self._width)
            or (found.y + height == bottom < self._height)
        )

    def _frame(self, found: Sequence[_Found | None]) -> GeoDataFrame:
        """Rows of all prompts."""
        from geopandas import GeoDataFrame

        at = [i for i, one in enumerate(found) if one is not None]
        there = [one for one in found if one is not None]
        count, info = len(found), self._model.info

        def column(values: NDArray[np.float64]) -> NDArray[np.float64]:
            whole = np.full(count, np.nan)
            whole[at] = values
            return whole

        shapes = np.empty(len(there), object)
        for i, one in enumerate(there):
            shapes[i] = polygons(
                one.mask.astype(np.int32),
                origin=(one.x, one.y),
                scale=self._pixels.scale,
                tolerance=self._tolerance,
                within=(self._width, self._height),
            )[0]
        sums = np.array([one.class_sums for one in there]).reshape(len(there), len(info.classes))
        classes = classify(sums, info.classes, self._class_map)
        classes.classification[~classes.kept] = None
        names, geometry = np.full(count, None, object), np.full(count, None, object)
        names[at], geometry[at] = classes.classification, shapes
        mpp = self._slide.mpp
        known = mpp if mpp is not None and all(map(math.isfinite, mpp)) else None
        columns: dict[str, NDArray[np.object_] | NDArray[np.float64]] = {
            "id": np.array([str(uuid.uuid4()) for _ in found], object),
            "classification": names,
            "probability": column(classes.probability),
            "geometry": geometry,
        }
        measured = shape_measurements(shapes, known)
        measured.update(classes.measurements)
        measured[SCORE] = np.array([one.score for one in there], np.float64)
        columns.update({name: column(values) for name, values in measured.items()})
        return GeoDataFrame(columns, geometry="geometry")


def _drawn_in(value: float, length: int) -> float:
    """A coordinate less than a pixel beyond the last, within it."""
    return min(value, length - 0.01) if value < length + 1 else value


def meant_piece(mask: NDArray[np.bool_], prompt: Prompt) -> NDArray[np.bool_] | None:
    """The connected piece of a mask that a prompt means, its holes filled.

    It is the piece with the most of the prompt's clicks, or the one that a click barely
    misses; without clicks the one that covers most of the prompt's mask or box. Of equal
    ones the largest.

    Parameters
    ----------
    mask : (height, width) bool, of the tile or of its part on the slide.
    prompt : in pixels of the tile.

    Returns
    -------
    A mask as large as the given one; None where no piece is meant.
    """
    if not mask.any():
        return None
    height, width = mask.shape
    x, y = np.floor(np.array(prompt.clicks).reshape(-1, 2)).astype(np.int64).T
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    # A nucleus is a small part of a tile: only what holds the mask and the clicks is looked at.
    x0, y0, x1, y1 = mask_box(mask)
    x0, y0 = min(x0, *x.tolist(), x0), min(y0, *y.tolist(), y0)
    x1, y1 = max(x1, *(x + 1).tolist(), x1), max(y1, *(y + 1).tolist(), y1)
    near = slice(y0, y1), slice(x0, x1)
    pieces, count = ndimage.label(mask[near], structure=np.ones((3, 3), bool), output=np.int32)
    if prompt.clicks:
        meant = _clicked(pieces, count, x - x0, y - y0)
        if not meant.any():
            return None
    else:
        meant = np.bincount(pieces[_wanted(mask.shape, prompt)[near]], minlength=count + 1)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    best = int(np.lexsort((areas[1:], meant[1:]))[-1]) + 1
    filled = np.zeros(mask.shape, bool)
    filled[near] = ndimage.binary_fill_holes(pieces == best)
    return filled


def _clicked(
    pieces: NDArray[np.int32], count: int, x: NDArray[np.int64], y: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many clicks each piece holds; where none does, which piece is nearest to one."""
    held = np.bincount(pieces[y, x], minlength=count + 1)
    held[0] = 0
    if held.any():
        return held
    away, (row, column) = ndimage.distance_transform_edt(pieces == 0, return_indices=True)
    nearest = int(away[y, x].argmin())
    if away[y[nearest], x[nearest]] <= NEAR:
        at = y[nearest], x[nearest]
        held[pieces[row[at], column[at]]] = 1
    return held


def _wanted(shape: tuple[int, ...], prompt: Prompt) -> NDArray[np.bool_]:
    """The pixels that a prompt without clicks names; all if it names none."""
    if prompt.mask is not None:
        return prompt.mask[: shape[0], : shape[1]]
    wanted = np.zeros(shape, bool)
    x0, y0, x1, y1 = prompt.box or (0, 0, shape[1], shape[0])
    wanted[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
    return wanted
