"""What the network is trained to minimise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pathosam_qupath.corrections.samples import IGNORED_TYPE

#: How much more a pixel between touching nuclei counts for the foreground.
TOUCHING_WEIGHT = 2.0


#: Bounds of what a pixel of a large and of a small nucleus counts.
SIZE_WEIGHTS = (0.5, 2.5)


def size_weights(labels: NDArray[np.uint16], balance: float) -> NDArray[np.float32]:
    """What each pixel counts so that small nuclei are not drowned by large ones.

    Scores count nuclei, a sum over pixels counts areas. A pixel of a nucleus weighs its area,
    relative to the crops' median, to the power of ``-balance``; the background weighs 1.

    Parameters
    ----------
    labels : (n, side, side) instance ids of crops, 0 background.
    balance : 0 all pixels count alike, 1 all nuclei do (within :data:`SIZE_WEIGHTS`).

    Returns
    -------
    weights : (n, side, side) float32.
    """
    areas = [np.bincount(ids.ravel()).astype(np.float32) for ids in labels]
    inside = np.concatenate([area[1:][area[1:] > 0] for area in areas])
    if not balance or not inside.size:
        return np.ones(labels.shape, np.float32)
    median = np.median(inside)
    weights = []
    for ids, area in zip(labels, areas, strict=True):
        of_label = np.clip((np.maximum(area, 1) / median) ** -balance, *SIZE_WEIGHTS)
        of_label[0] = 1.0
        weights.append(of_label[ids])
    return np.asarray(np.stack(weights), np.float32)


def map_loss(logits: Tensor, maps: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy and Dice of the foreground, mean absolute error of the distances.

    Inside nuclei and outside count equally for the distances, as most pixels are outside
    and there the target is 1.

    Parameters
    ----------
    logits : (n, 3, side, side).
    maps : (n, 4, side, side) in 0…1: the three targets, and what a pixel counts: 0 outside
        of the image, 0.5 inside, 1 between nuclei that touch.
    weights : (n, side, side) what a pixel counts besides, see :func:`size_weights`.
    """
    valid = (maps[:, 3] > 0.45).float()
    if weights is not None:
        valid = valid * weights
    target = maps[:, 0]
    entropy = functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    foreground = torch.sigmoid(logits[:, 0])
    overlap = (foreground * target * valid).sum()
    total = ((foreground + target) * valid).sum()
    dice = 1 - (2 * overlap + 1) / (total + 1)
    inside = (target > 0.5).float() * valid
    outside = valid - inside
    error = (torch.sigmoid(logits[:, 1:]) - maps[:, 1:3]).abs().sum(1)
    distances = (error * inside).sum() / inside.sum().clamp(min=1.0)
    distances = distances + (error * outside).sum() / outside.sum().clamp(min=1.0)
    # Pixels between nuclei that touch decide whether they are told apart.
    weight = valid * (1.0 + TOUCHING_WEIGHT * (maps[:, 3] > 0.75).float())
    return (entropy * weight).sum() / weight.sum().clamp(min=1.0) + 0.5 * dice + distances


def class_loss(logits: Tensor, types: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy over the pixels whose class is known; 0 where none is.

    Parameters
    ----------
    logits : (n, classes, side / 4, side / 4).
    types : (n, side, side) int64 class index, 255 where unknown.
    weights : (classes,).
    """
    step = types.shape[-1] // logits.shape[-1]
    types = types[:, step // 2 :: step, step // 2 :: step]
    entropy = functional.cross_entropy(
        logits, types, weight=weights, ignore_index=IGNORED_TYPE, reduction="sum"
    )
    known = types[types != IGNORED_TYPE]
    return entropy / weights[known].sum().clamp(min=1.0)
