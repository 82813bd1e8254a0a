"""SAM's answers to prompts, by its prompt encoder and mask decoder.

The reference's arithmetic (micro-sam's ``prompt_based_segmentation`` on segment_anything's
``SamPredictor``) on one embedding, for many prompts at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.transform import resize
from torch import Tensor
from torch.nn import functional

from pathosam_qupath.model.preprocessing import resized_shape
from pathosam_qupath.model.prompts import Prompt, PromptedMask, mask_box
from pathosam_qupath.model.sam import Embedding, SamModel

MASK_CERTAINTY = 1e-3
"""A mask prompt says inside with 1 - this, outside with this."""

STABILITY_OFFSET = 1.0
"""Log odds by which the thresholds of the stability score lie above and below zero."""

TOGETHER = 32
"""Prompts that go through the mask decoder at a time; on the CPU one does, which takes no
longer, and its bits do not depend on the others."""


def segment_prompts(
    sam: SamModel, embedding: Embedding, prompts: Sequence[Prompt]
) -> list[PromptedMask]:
    """The object of each prompt on one tile.

    Of a single positive click SAM proposes three masks; the one with the highest
    predicted IoU is taken. Other prompts give one mask.

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
            prompt.is_single_click and prompt.ambiguous,
        )
        groups.setdefault(kind, []).append(i)
    size = 1 if embedding.features.device.type == "cpu" else TOGETHER
    with torch.inference_mode():
        for members in groups.values():
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                found = _segment_alike(sam, embedding, [prompts[i] for i in batch])
                results.update(zip(batch, found, strict=True))
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
        multimask_output=prompts[0].is_single_click and prompts[0].ambiguous,
    )
    results = []
    for prompt_low, prompt_scores in zip(low, scores, strict=True):
        best = int(prompt_scores.argmax())
        full = _full_size(prompt_low[best : best + 1], sam.config.side, embedding)
        results.append(
            PromptedMask(
                mask=(full > 0).cpu().numpy(),
                score=float(prompt_scores[best]),
                stability=_stability(full),
                scores=prompt_scores.cpu().numpy(),
                logits=prompt_low.cpu().numpy(),
            )
        )
    return results


def _stability(logits: Tensor) -> float:
    """IoU of the masks above a higher and a lower threshold, as SAM scores it; 0 for none."""
    larger = int((logits > -STABILITY_OFFSET).sum())
    return int((logits > STABILITY_OFFSET).sum()) / larger if larger else 0.0


def _tile_box(prompt: Prompt, size: tuple[int, int]) -> tuple[float, ...] | None:
    """A box in whole pixels, as the reference has it; of the mask where there is no other."""
    if prompt.box is not None:
        height, width = size
        bounds = np.array([width, height, width, height])
        clipped = np.clip(np.array(prompt.box, np.float64), 0, bounds)
        return tuple(np.round(clipped).astype(int).tolist())
    return None if prompt.mask is None else mask_box(prompt.mask)


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
