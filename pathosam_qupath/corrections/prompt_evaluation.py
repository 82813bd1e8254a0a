"""How well prompts find nuclei: what `evaluate --prompts` adds to the report.

Every nucleus is prompted once by each kind of prompt, and the answer's IoU with it counts,
whatever it is: a nucleus that is not found counts as 0. The answer is the piece of the mask
that the prompt means, as a click in QuPath gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pathosam_qupath.corrections.samples import Sample, read_samples
from pathosam_qupath.model.prompts import (
    Prompt,
    PromptableModel,
    PromptedMask,
    TileEmbedding,
    promptable,
)
from pathosam_qupath.segmentation.prompting import meant_piece

#: Kinds of prompts: the innermost point, a random point (the same in each repetition), and
#: the tight box.
KINDS = ("point", "random_point", "box")

_TOGETHER = 30


def with_prompts(
    report: dict[str, Any], model: object, data_dir: Path, mpp: float = 0.25
) -> dict[str, Any]:
    """The report of ``evaluate`` with a key "prompts", see :func:`evaluate_prompts`.

    Raises
    ------
    ModelError : when the model answers no prompts.
    """
    answers = evaluate_prompts(promptable(model), read_samples(data_dir), mpp)
    return {**report, "prompts": answers}


def evaluate_prompts(
    model: PromptableModel[TileEmbedding], samples: Iterable[Sample], mpp: float = 0.25
) -> dict[str, Any]:
    """Mean IoU of answers to prompts.

    Returns
    -------
    report : {"sources": {name: {kind: mean IoU over its nuclei}}, "mean": {kind: …}}, kinds
        being :data:`KINDS`; the mean is over sources.
    """
    found: dict[str, list[NDArray[np.float64]]] = {}
    for sample in samples:
        if sample.labels.any():
            found.setdefault(sample.source, []).append(prompted_ious(model, sample, mpp))
    sources = {
        name: dict(zip(KINDS, np.concatenate(ious).mean(axis=0).tolist(), strict=True))
        for name, ious in sorted(found.items())
    }
    mean = {
        kind: float(np.mean([values[kind] for values in sources.values()])) if sources else None
        for kind in KINDS
    }
    return {"sources": sources, "mean": mean}


def prompted_ious(
    model: PromptableModel[TileEmbedding], sample: Sample, mpp: float = 0.25
) -> NDArray[np.float64]:
    """IoU of each nucleus with the answer to each kind of prompt, (nuclei, kinds)."""
    height, width = sample.labels.shape
    factor = (sample.mpp or mpp) / model.info.mpp
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    image = sample.image if factor == 1 else cv2.resize(sample.image, size, interpolation=kind)
    embedding = model.embed(_as_tile(np.asarray(image, np.uint8), model))
    nuclei = [
        (label, box) for label, box in enumerate(ndimage.find_objects(sample.labels), 1) if box
    ]
    prompts = [p for label, box in nuclei for p in _prompts(sample.labels, label, box)]
    scaled = [p.scaled((width / size[0], height / size[1])) for p in prompts]
    ious = []
    for i, answered in enumerate(_answers(model, embedding, scaled)):
        piece = meant_piece(answered.mask[: size[1], : size[0]], scaled[i])
        mask = np.zeros(size[::-1], np.uint8) if piece is None else piece.astype(np.uint8)
        if factor != 1:
            mask = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR))
        truth = sample.labels == nuclei[i // len(KINDS)][0]
        both = np.count_nonzero(truth & (mask > 0))
        ious.append(both / (np.count_nonzero(truth) + np.count_nonzero(mask) - both))
    return np.array(ious).reshape(-1, len(KINDS))


def _answers(
    model: PromptableModel[TileEmbedding], embedding: TileEmbedding, prompts: list[Prompt]
) -> Iterator[PromptedMask]:
    """Answers a few at a time: each mask is as large as the tile."""
    for start in range(0, len(prompts), _TOGETHER):
        yield from model.prompt(embedding, prompts[start : start + _TOGETHER])


def _prompts(labels: NDArray[np.int32], label: int, box: tuple[slice, slice]) -> list[Prompt]:
    rows, columns = box
    mask = np.pad(labels[box] == label, 1)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    inner = np.unravel_index(depth.argmax(), depth.shape)
    ys, xs = np.nonzero(mask)
    chosen = np.random.default_rng(label).integers(ys.size)

    def point(y: int, x: int) -> Prompt:
        return Prompt(points=((columns.start + x - 0.5, rows.start + y - 0.5),))

    return [
        point(int(inner[0]), int(inner[1])),
        point(int(ys[chosen]), int(xs[chosen])),
        Prompt(box=(columns.start, rows.start, columns.stop, rows.stop)),
    ]


def _as_tile(image: NDArray[np.uint8], model: PromptableModel[TileEmbedding]) -> NDArray[np.uint8]:
    """The image mirrored to a size that the model takes."""
    height, width = image.shape[:2]
    info = model.info
    if info.stride:
        bottom, right = -height % info.stride, -width % info.stride
    else:
        side = info.tile
        while side < max(height, width):
            side *= 2
        bottom, right = side - height, side - width
    border = cv2.BORDER_REFLECT_101
    return np.asarray(cv2.copyMakeBorder(image, 0, bottom, 0, right, border), np.uint8)
