"""Prompts on the compact network: what it keeps of a tile, and how it answers.

A tile's embedding holds the tile's pixels and maps beside the features at strides 4 and 8,
in half precision. Each prompt is answered in a window around it
(:mod:`pathosam_qupath.model.prompt_decoder`); an object that reaches the window's sides is
asked for again in a window twice as wide. What was found is looked at again, as a rough mask
beside the prompt, in a window around it and in one twice as wide; the answer is the mean of
these looks.
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
#: Pixels of the tile per pixel of the widest window.
_WIDEST = 4
#: Pixels of a window along its sides that an object which is not cut stays away from.
_SIDE = 2
#: Logit from which a pixel is the object's. Below 0 (a chance of 40 %): a mask that is a bit too
#: large has more of its object than one that is as much too small. Chosen on `val`.
_INSIDE = -0.4
#: Logits beyond this are as sure as can be; outside of its window a look is sure of nothing there.
_SURE = 8.0


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


@dataclass(frozen=True, eq=False)
class Look:
    """What the decoder makes of a prompt in a window.

    Attributes
    ----------
    logits : (WINDOW, WINDOW) of the mask.
    score : expected IoU, 0…1.
    """

    logits: NDArray[np.float32]
    place: Window
    score: float


def answer(
    decoder: PromptDecoder, embedding: CompactEmbedding, prompts: Sequence[Prompt]
) -> list[PromptedMask]:
    """The object of each prompt; the decoder is fused and on the embedding's device."""
    size = embedding.original_size
    firsts = looked_at(decoder, embedding, prompts)
    rough = (on_tile([first], size) for first in firsts)
    again = {i: replace(prompts[i], mask=mask) for i, mask in enumerate(rough) if mask.any()}
    near = dict(zip(again, looked_at(decoder, embedding, list(again.values())), strict=True))
    wider = {
        i: (prompt, around(prompt, 2 * near[i].place.scale))
        for i, prompt in again.items()
        if near[i].place.scale < _WIDEST
    }
    far = dict(zip(wider, _looks(decoder, embedding, list(wider.values())), strict=True))
    found = []
    for i, first in enumerate(firsts):
        mask = on_tile([first, *(look[i] for look in (near, far) if i in look)], size)
        found.append(PromptedMask(mask, near.get(i, first).score if mask.any() else 0.0))
    return found


def looked_at(
    decoder: PromptDecoder, embedding: CompactEmbedding, prompts: Sequence[Prompt]
) -> list[Look]:
    """One look at each prompt, in as wide a window as its object needs."""
    found: dict[int, Look] = {}
    waiting = [(i, around(prompt)) for i, prompt in enumerate(prompts)]
    while waiting:
        looks = _looks(decoder, embedding, [(prompts[i], place) for i, place in waiting])
        wider = []
        for (i, place), look in zip(waiting, looks, strict=True):
            cut = _is_cut(look.logits > _INSIDE, place, embedding.original_size)
            if cut and place.scale < _WIDEST:
                wider.append((i, around(prompts[i], 2 * place.scale)))
            else:
                found[i] = look
        waiting = wider
    return [found[i] for i in range(len(prompts))]


def around(prompt: Prompt, scale: int = 1) -> Window:
    """The window for a prompt, at this scale or a coarser one that shows all of it."""
    x0, y0, x1, y1 = prompt.bounds()
    scale = max(scale, window_scale(max(x1 - x0, y1 - y0)))
    return Window(window_origin(((x0 + x1) / 2, (y0 + y1) / 2), scale), scale)


def _looks(
    decoder: PromptDecoder,
    embedding: CompactEmbedding,
    asked: Sequence[tuple[Prompt, Window]],
) -> list[Look]:
    """A look at each prompt in its window, some together."""
    parts = (asked[start : start + _TOGETHER] for start in range(0, len(asked), _TOGETHER))
    return [look for part in parts for look in _looks_together(decoder, embedding, part)]


def _looks_together(
    decoder: PromptDecoder,
    embedding: CompactEmbedding,
    asked: Sequence[tuple[Prompt, Window]],
) -> list[Look]:
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
    places = (place for _, place in asked)
    return [Look(*one) for one in zip(masks, places, scores.tolist(), strict=True)]


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


def on_tile(looks: Sequence[Look], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The object that looks agree on in the mean, as a mask of the whole tile (height, width)."""
    boxes = [_box(look.place, size) for look in looks]
    top, left = (min(box[i] for box in boxes) for i in (0, 1))
    bottom, right = (max(box[i] for box in boxes) for i in (2, 3))
    total = np.full((bottom - top, right - left), -_SURE * len(looks), np.float32)
    for look, (y0, x0, y1, x1) in zip(looks, boxes, strict=True):
        side = WINDOW * look.place.scale
        logits = look.logits
        if look.place.scale > 1:
            logits = np.asarray(cv2.resize(logits, (side, side)), np.float32)
        x, y = look.place.origin
        part = logits[y0 - y : y1 - y, x0 - x : x1 - x].clip(-_SURE, _SURE)
        total[y0 - top : y1 - top, x0 - left : x1 - left] += part + _SURE
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = total > _INSIDE * len(looks)
    return mask


def _box(place: Window, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a window's part on the tile."""
    left, top = place.origin
    side = WINDOW * place.scale
    y0, y1 = (min(max(y, 0), size[0]) for y in (top, top + side))
    x0, x1 = (min(max(x, 0), size[1]) for x in (left, left + side))
    return y0, x0, y1, x1
