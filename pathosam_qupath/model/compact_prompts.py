"""Prompts on the compact network: what it keeps of a tile, and how it answers.

A tile's embedding holds the tile's pixels and maps beside the features at strides 4 and 8,
in half precision. Each prompt is answered in a window around it
(:mod:`pathosam_qupath.model.prompt_decoder`); an object that reaches the window's sides is
asked for again in a window twice as wide. What was found is looked at a second time, as a rough
mask beside the prompt, in a window around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathosam_qupath.model.prompt_decoder import (
    WINDOW,
    PromptDecoder,
    prompt_image,
    window,
    window_origin,
    window_scale,
)
from pathosam_qupath.model.prompts import Arrays, Prompt, PromptedMask, mask_box

#: Windows that go through the decoder together.
_TOGETHER = 16
#: Pixels of a window along its sides that an object which is not cut stays away from.
_SIDE = 2


@dataclass(frozen=True, eq=False)
class CompactEmbedding:
    """All that prompts need of a tile (height, width).

    Attributes
    ----------
    pixels : (3, height, width) uint8 RGB.
    maps : (3, height, width) float16, foreground, centre and boundary distance in 0…1.
    types : (classes, height / 4, width / 4) float16 class probabilities.
    middle : (channels, height / 4, width / 4) float16.
    coarse : (channels, height / 8, width / 8) float16.
    """

    pixels: Tensor
    maps: Tensor
    types: Tensor
    middle: Tensor
    coarse: Tensor

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the tile."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """By the names of the attributes."""
        return {field.name: getattr(self, field.name).cpu().numpy() for field in fields(self)}

    def to(self, device: str) -> CompactEmbedding:
        """The same on another device."""
        return CompactEmbedding(*(getattr(self, field.name).to(device) for field in fields(self)))

    @classmethod
    def from_arrays(cls, arrays: Arrays, widths: tuple[int, int], classes: int) -> CompactEmbedding:
        """The way back from :meth:`to_arrays`.

        Parameters
        ----------
        widths : channels of ``middle`` and ``coarse`` that the network has.

        Raises
        ------
        ValueError, KeyError : when they are not those of an embedding of this network.
        """
        height, width = arrays["pixels"].shape[1:]
        shapes = {
            "pixels": (3, height, width),
            "maps": (3, height, width),
            "types": (classes, height // 4, width // 4),
            "middle": (widths[0], height // 4, width // 4),
            "coarse": (widths[1], height // 8, width // 8),
        }
        found = {}
        for name, shape in shapes.items():
            array, dtype = arrays[name], np.uint8 if name == "pixels" else np.float16
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name}: expected {np.dtype(dtype)} {shape}, found {array.dtype} {array.shape}"
                )
            found[name] = torch.from_numpy(np.array(array))
        return cls(**found)


@dataclass(frozen=True)
class Window:
    """Where a prompt is looked at: x and y on the tile, pixels of the tile per pixel."""

    origin: tuple[int, int]
    scale: int


def answer(
    decoder: PromptDecoder, embedding: CompactEmbedding, prompts: Sequence[Prompt]
) -> list[PromptedMask]:
    """The object of each prompt; the decoder is fused and on the embedding's device."""
    first = _looked_at(decoder, embedding, prompts)
    seen = [i for i, answered in enumerate(first) if answered.mask.any()]
    again = [replace(prompts[i], mask=first[i].mask) for i in seen]
    for i, answered in zip(seen, _looked_at(decoder, embedding, again), strict=True):
        if answered.mask.any():
            first[i] = answered
    return first


def _looked_at(
    decoder: PromptDecoder, embedding: CompactEmbedding, prompts: Sequence[Prompt]
) -> list[PromptedMask]:
    """One look at each prompt, in as wide a window as its object needs."""
    found: list[PromptedMask | None] = [None] * len(prompts)
    waiting = [(i, around(prompt)) for i, prompt in enumerate(prompts)]
    while waiting:
        now, waiting = waiting[:_TOGETHER], waiting[_TOGETHER:]
        asked = [(prompts[i], place) for i, place in now]
        for (i, place), (logits, score) in zip(
            now, _decoded(decoder, embedding, asked), strict=True
        ):
            if place.scale < 4 and _is_cut(logits > 0, place, embedding.original_size):
                waiting.append((i, around(prompts[i], 2 * place.scale)))
                continue
            mask = on_tile(logits, place, embedding.original_size)
            found[i] = PromptedMask(mask, score if mask.any() else 0.0)
    return [mask for mask in found if mask is not None]


def around(prompt: Prompt, scale: int = 1) -> Window:
    """The window for a prompt, at this scale or a coarser one that shows all of it."""
    x0, y0, x1, y1 = prompt.bounds()
    scale = max(scale, window_scale(max(x1 - x0, y1 - y0)))
    return Window(window_origin(((x0 + x1) / 2, (y0 + y1) / 2), scale), scale)


def _decoded(
    decoder: PromptDecoder,
    embedding: CompactEmbedding,
    asked: Sequence[tuple[Prompt, Window]],
) -> list[tuple[NDArray[np.float32], float]]:
    """Mask logits (WINDOW, WINDOW) and expected IoU of each prompt in its window."""
    pixels, middle, coarse, images = [], [], [], []
    for prompt, place in asked:
        pixels.append(window_pixels(embedding, place.origin, place.scale))
        middle.append(window(embedding.middle, place.origin, 4, place.scale))
        coarse.append(window(embedding.coarse, place.origin, 8, place.scale))
        images.append(drawn(prompt, place))
    weight = decoder.out.weight
    inputs = (
        torch.stack(parts)
        .to(weight.device, weight.dtype)
        .contiguous(memory_format=torch.channels_last)
        for parts in (pixels, middle, coarse, images)
    )
    logits, quality = decoder(*inputs)
    scores = torch.sigmoid(quality.float()).cpu().numpy()
    masks = logits.float().cpu().numpy()
    return [(mask, float(score)) for mask, score in zip(masks, scores, strict=True)]


def window_pixels(embedding: CompactEmbedding, origin: tuple[int, int], scale: int) -> Tensor:
    """RGB in -1…1 and the three maps of a window, (6, WINDOW, WINDOW) float."""
    rgb = window(embedding.pixels, origin, 1, scale) / 127.5 - 1.0
    return torch.cat([rgb, window(embedding.maps, origin, 1, scale)])


def drawn(prompt: Prompt, place: Window) -> Tensor:
    """The prompt as the decoder sees it, see `prompt_decoder.prompt_image`."""
    left, top = place.origin
    points = (torch.tensor(prompt.points).reshape(-1, 2) - torch.tensor([left, top])) / place.scale
    positive = torch.tensor(prompt.labels or (True,) * len(prompt.points), dtype=torch.bool)
    box = prompt.box
    if box is not None:
        x0, y0, x1, y1 = ((v - o) / place.scale for v, o in zip(box, 2 * place.origin, strict=True))
        box = (x0, y0, x1, y1)
    mask = None
    if prompt.mask is not None:
        outline = torch.from_numpy(prompt.mask)[None]
        mask = window(outline, place.origin, 1, place.scale)[0]
    return prompt_image(points[positive], points[~positive], box, mask)


def _is_cut(mask: NDArray[np.bool_], place: Window, size: tuple[int, int]) -> bool:
    """Whether the object reaches a side of the window that is not a side of the tile."""
    if not mask.any():
        return False
    x0, y0, x1, y1 = mask_box(mask)
    left, top = place.origin
    right, bottom = (start + WINDOW * place.scale for start in place.origin)
    height, width = size
    return (
        (x0 < _SIDE and left > 0)
        or (y0 < _SIDE and top > 0)
        or (x1 > WINDOW - _SIDE and right < width)
        or (y1 > WINDOW - _SIDE and bottom < height)
    )


def on_tile(logits: NDArray[np.float32], place: Window, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The object as a mask of the whole tile."""
    side = WINDOW * place.scale
    if place.scale > 1:
        logits = np.asarray(cv2.resize(logits, (side, side)), np.float32)
    mask = np.zeros(size, bool)
    left, top = place.origin
    rows = slice(max(top, 0), max(min(top + side, size[0]), 0))
    columns = slice(max(left, 0), max(min(left + side, size[1]), 0))
    mask[rows, columns] = (
        logits[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] > 0
    )
    return mask
