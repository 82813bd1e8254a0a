"""One nucleus from a click, a box or a mask, by SAM's prompt encoder and mask decoder.

:func:`segment_prompts` is the reference's arithmetic on one embedding. A
:class:`PromptSegmenter` does it on a whole slide: it cuts a tile around each prompt instead
of taking the prompt to a tile of a fixed grid, so no nucleus is cut by a tile's border, and
it remembers embeddings, the costly part, within a bound.

Coordinates are (x, y) in pixels, those of a tile or of the slide at the model's µm/px;
boxes are x0, y0, x1, y1.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.transform import resize
from torch import Tensor
from torch.nn import functional

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.interface import ModelInfo
from pathosam_qupath.model.preprocessing import resized_shape
from pathosam_qupath.model.sam import Embedding, SamModel

MASK_CERTAINTY = 1e-3
"""A mask prompt says inside with 1 - this, outside with this."""

TILE_STEP = 64
"""Prompt tiles begin at multiples of this, so neighbouring prompts share embeddings."""

LARGEST_TILE = 4
"""How many of the model's tiles in a row one prompt's tile may at most be."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What says which object is meant.

    Attributes
    ----------
    points : (x, y) each.
    labels : per point, True where the point lies in the object, False where it does not.
        Empty: all lie in it.
    box : x0, y0, x1, y1 around the object.
    mask : (height, width) bool, a rough outline; the size of the tile or region.
    mask_origin : x and y of the mask's first pixel on the slide (0, 0 on a tile).
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[bool, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: NDArray[np.bool_] | None = None
    mask_origin: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.labels and len(self.labels) != len(self.points):
            raise _unusable(f"found {len(self.points)} points with {len(self.labels)} labels")
        if not self.points and self.box is None and self.mask is None:
            raise _unusable("found neither a point nor a box nor a mask")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise _unusable(f"found a box without area, {self.box}")
        if self.mask is not None and not self.mask.any():
            raise _unusable("found an empty mask")

    @property
    def is_single_click(self) -> bool:
        """One positive point and nothing else: the object's extent is ambiguous."""
        positive = self.labels in ((), (True,))
        return len(self.points) == 1 and positive and self.box is None and self.mask is None

    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of all that belongs to the object (of negative points if alone)."""
        labels = self.labels or (True,) * len(self.points)
        inside = [p for p, label in zip(self.points, labels, strict=True) if label]
        corners = [*inside]
        if self.box is not None:
            corners += [self.box[:2], self.box[2:]]
        if self.mask is not None:
            x0, y0, x1, y1 = mask_box(self.mask)
            dx, dy = self.mask_origin
            corners += [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy)]
        xs, ys = zip(*(corners or self.points), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def moved(self, x: int, y: int, size: tuple[int, int]) -> Prompt:
        """The same prompt on a tile that begins at x, y and has a height and width.

        Negative points outside the tile are left out, boxes and masks are cut to it.
        """
        height, width = size
        labels = self.labels or (True,) * len(self.points)
        kept = [
            ((px - x, py - y), label)
            for (px, py), label in zip(self.points, labels, strict=True)
            if 0 <= px - x < width and 0 <= py - y < height
        ]
        box = None
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            box = (max(x0 - x, 0.0), max(y0 - y, 0.0), min(x1 - x, width), min(y1 - y, height))
        mask = None
        if self.mask is not None:
            mask = np.zeros(size, bool)
            left, top = self.mask_origin[0] - x, self.mask_origin[1] - y
            rows = slice(max(0, top), max(0, top + self.mask.shape[0]))
            columns = slice(max(0, left), max(0, left + self.mask.shape[1]))
            target = mask[rows, columns]
            first_row, first_column = max(0, -top), max(0, -left)
            target[...] = self.mask[
                first_row : first_row + target.shape[0],
                first_column : first_column + target.shape[1],
            ]
        return replace(
            self,
            points=tuple(point for point, _ in kept),
            labels=tuple(label for _, label in kept),
            box=box,
            mask=mask,
            mask_origin=(0, 0),
        )


def _unusable(found: str) -> UsageError:
    return UsageError(
        "prompt",
        f"expected points, a box or a mask that tell an object, {found}",
        "Click into a nucleus or draw a box around one.",
    )


@dataclass(frozen=True, eq=False)
class PromptedMask:
    """What SAM takes for the object.

    Attributes
    ----------
    mask : (height, width) bool.
    score : the predicted IoU of this mask.
    scores : predicted IoU of all candidates: three for a single click, else one.
    logits : (candidates, grid * 4, grid * 4) float32, at low resolution.
    x, y : position of the mask's first pixel.
    """

    mask: NDArray[np.bool_]
    score: float
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]
    x: int = 0
    y: int = 0


def segment_prompts(
    sam: SamModel, embedding: Embedding, prompts: Sequence[Prompt]
) -> list[PromptedMask]:
    """The object of each prompt on one tile.

    Of a single positive click SAM proposes three masks; the one with the highest
    predicted IoU is taken. Other prompts give one mask. Prompts of one kind go through the
    mask decoder together.

    Parameters
    ----------
    prompts : in pixels of the tile.

    Returns
    -------
    Masks of the tile's size, in the order of the prompts.
    """
    results: dict[int, PromptedMask] = {}
    groups: dict[tuple[int, bool, bool, bool], list[int]] = {}
    for i, prompt in enumerate(prompts):
        kind = (
            len(prompt.points),
            prompt.box is not None,
            prompt.mask is not None,
            prompt.is_single_click,
        )
        groups.setdefault(kind, []).append(i)
    with torch.inference_mode():
        for members in groups.values():
            group = [prompts[i] for i in members]
            results.update(zip(members, _segment_alike(sam, embedding, group), strict=True))
    return [results[i] for i in range(len(prompts))]


def _segment_alike(
    sam: SamModel, embedding: Embedding, prompts: Sequence[Prompt]
) -> list[PromptedMask]:
    """Prompts with the same number of points, all or none with a box, with a mask."""
    device = embedding.features.device
    size, input_size = embedding.original_size, embedding.input_size
    scale = np.array([input_size[1] / size[1], input_size[0] / size[0]])
    points = boxes = masks = None
    if prompts[0].points:
        coordinates = np.array([p.points for p in prompts], np.float64) * scale
        labels = np.array([p.labels or (True,) * len(p.points) for p in prompts])
        points = (
            torch.as_tensor(coordinates, dtype=torch.float32, device=device),
            torch.as_tensor(labels, dtype=torch.int32, device=device),
        )
    prompt_boxes = [_tile_box(p, size) for p in prompts]
    if prompt_boxes[0] is not None:
        corners = np.array(prompt_boxes, np.float64).reshape(-1, 2, 2) * scale
        boxes = torch.as_tensor(corners.reshape(-1, 4), dtype=torch.float32, device=device)
    if prompts[0].mask is not None:
        logits = np.stack(
            [mask_logits(p.mask, 4 * sam.config.grid) for p in prompts if p.mask is not None]
        )
        masks = torch.from_numpy(logits)[:, None].to(device)
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    low, scores = sam.mask_decoder(
        image_embeddings=embedding.features,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=prompts[0].is_single_click,
    )
    results = []
    for prompt_low, prompt_scores in zip(low, scores, strict=True):
        best = int(prompt_scores.argmax())
        mask = _full_size(prompt_low[best : best + 1], sam.config.side, embedding) > 0
        results.append(
            PromptedMask(
                mask=mask.cpu().numpy(),
                score=float(prompt_scores[best]),
                scores=prompt_scores.cpu().numpy(),
                logits=prompt_low.cpu().numpy(),
            )
        )
    return results


def _tile_box(prompt: Prompt, size: tuple[int, int]) -> tuple[float, ...] | None:
    """A box in whole pixels, as the reference has it; of the mask where there is no other."""
    if prompt.box is not None:
        height, width = size
        bounds = np.array([width, height, width, height])
        clipped = np.clip(np.array(prompt.box, np.float64), 0, bounds)
        return tuple(np.round(clipped).astype(int).tolist())
    return None if prompt.mask is None else mask_box(prompt.mask)


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask; the ends lie behind its last pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_logits(mask: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """A mask as the mask decoder expects an earlier guess.

    Parameters
    ----------
    mask : (height, width) bool.
    side : of SAM's low-resolution masks; the longer side becomes this.

    Returns
    -------
    (side, side) float32 log odds; outside the mask and beyond the tile the same low value.
    """
    shape = resized_shape((mask.shape[0], mask.shape[1]), side)
    shrinks = max(mask.shape) > side
    resized: NDArray[np.float32] = resize(  # type: ignore[no-untyped-call]
        mask.astype(np.float32), shape, order=1, anti_aliasing=shrinks
    )
    inside = np.zeros((side, side), bool)
    inside[: shape[0], : shape[1]] = resized > 0.5
    certain = np.float32(np.log((1 - MASK_CERTAINTY) / MASK_CERTAINTY))
    return np.where(inside, certain, -certain).astype(np.float32)


def _full_size(low: Tensor, side: int, embedding: Embedding) -> Tensor:
    """(1, s, s) low-resolution logits to (height, width) of the tile, as SAM does it."""
    rows, columns = embedding.input_size
    whole = functional.interpolate(low[None], (side, side), mode="bilinear", align_corners=False)
    cut = whole[..., :rows, :columns]
    full = functional.interpolate(
        cut, embedding.original_size, mode="bilinear", align_corners=False
    )
    return full[0, 0]


class PromptableModel(Protocol):
    """What prompts need of a model: SAM, and embeddings of tiles."""

    info: ModelInfo
    sam: SamModel

    def embed(self, tile: NDArray[np.uint8]) -> Embedding:
        """Embedding of a (height, width, 3) uint8 tile."""


ReadRegion = Callable[[int, int, int, int], "NDArray[np.uint8]"]
"""Pixels (height, width, 3) uint8 of x, y, width, height at the model's µm/px, as a
``ScaledSlide`` reads them."""


class PromptSegmenter:
    """Objects by prompts, anywhere on one slide.

    The result depends on the prompt and the slide only, not on what was asked before.
    Thread-safe.

    Parameters
    ----------
    model : whose encoder sees the tiles.
    read : reads pixels of the slide at the model's µm/px.
    size : height and width of the slide at the model's µm/px; tiles stay inside.
    cache_bytes : memory for embeddings (4 MB each at SAM's usual size).
    """

    def __init__(
        self,
        model: PromptableModel,
        read: ReadRegion,
        size: tuple[int, int],
        *,
        cache_bytes: int = 256 << 20,
    ) -> None:
        self._model, self._read, self._size = model, read, size
        self._cache = EmbeddingCache(cache_bytes)

    def segment(self, prompts: Sequence[Prompt]) -> list[PromptedMask]:
        """The object of each prompt.

        Parameters
        ----------
        prompts : in pixels of the slide at the model's µm/px.

        Returns
        -------
        Masks with their places on the slide, in the order of the prompts. A mask is as
        large as the object, or empty where SAM sees none.

        Raises
        ------
        UsageError
            If a prompt does not lie on the slide.
        """
        by_tile: dict[tuple[int, int, int, int], list[int]] = {}
        for i, prompt in enumerate(prompts):
            by_tile.setdefault(self._tile(prompt, 1), []).append(i)
        results: dict[int, PromptedMask] = {}
        for tile, members in by_tile.items():
            found = self._on_tile(tile, [prompts[i] for i in members])
            for i, result in zip(members, found, strict=True):
                results[i] = self._with_room(prompts[i], tile, result)
        return [results[i] for i in range(len(prompts))]

    def _with_room(
        self, prompt: Prompt, tile: tuple[int, int, int, int], result: PromptedMask
    ) -> PromptedMask:
        """Once more on a larger tile, if the object reaches a side that is not the slide's."""
        factor = 2
        while self._is_cut(tile, result) and factor <= LARGEST_TILE:
            larger = self._tile(prompt, factor)
            factor *= 2
            if larger != tile:
                tile = larger
                result = self._on_tile(tile, [prompt])[0]
        return _cropped(result)

    def _is_cut(self, tile: tuple[int, int, int, int], result: PromptedMask) -> bool:
        x, y, width, height = tile
        mask = result.mask
        return bool(
            (x > 0 and mask[:, 0].any())
            or (y > 0 and mask[0].any())
            or (x + width < self._size[1] and mask[:, -1].any())
            or (y + height < self._size[0] and mask[-1].any())
        )

    def _tile(self, prompt: Prompt, factor: int) -> tuple[int, int, int, int]:
        """x, y, width and height of the tile around a prompt."""
        x0, y0, x1, y1 = prompt.bounds()
        height, width = self._size
        if x1 < 0 or y1 < 0 or x0 >= width or y0 >= height:
            raise _unusable(f"found one at {x0:.0f}, {y0:.0f}, outside {width} x {height} pixels")
        usual = self._model.info.tile
        side = factor * usual
        while side < 2 * max(x1 - x0, y1 - y0) and side < LARGEST_TILE * usual:
            side *= 2

        def start(center: float, length: int) -> int:
            snapped = TILE_STEP * round((center - side / 2) / TILE_STEP)
            return max(0, min(int(snapped), length - side))

        x, y = start((x0 + x1) / 2, width), start((y0 + y1) / 2, height)
        return x, y, min(side, width), min(side, height)

    def _on_tile(
        self, tile: tuple[int, int, int, int], prompts: Sequence[Prompt]
    ) -> list[PromptedMask]:
        x, y, width, height = tile
        embedding = self._cache.get(tile, lambda: self._model.embed(self._read(*tile)))
        moved = [prompt.moved(x, y, (height, width)) for prompt in prompts]
        found = segment_prompts(self._model.sam, embedding, moved)
        return [replace(result, x=x, y=y) for result in found]


def _cropped(result: PromptedMask) -> PromptedMask:
    if not result.mask.any():
        return replace(result, mask=result.mask[:0, :0])
    x0, y0, x1, y1 = mask_box(result.mask)
    mask = result.mask[y0:y1, x0:x1].copy()
    return replace(result, mask=mask, x=result.x + x0, y=result.y + y0)


class EmbeddingCache:
    """The embeddings that were used last, as many as fit.

    Parameters
    ----------
    capacity : in bytes. A single embedding is kept even if it is larger.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[int, ...], Embedding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def used_bytes(self) -> int:
        """Memory that the embeddings take."""
        return sum(e.features.nbytes for e in self._held.values())

    def get(self, key: tuple[int, ...], make: Callable[[], Embedding]) -> Embedding:
        """The embedding of a tile, made if it is not there."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        made = make()
        with self._lock:
            self._held[key] = made
            self._held.move_to_end(key)
            while len(self._held) > 1 and self.used_bytes > self.capacity:
                self._held.popitem(last=False)
        return made
