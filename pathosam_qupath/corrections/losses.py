"""What the network is trained to minimise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pathosam_qupath.corrections.samples import IGNORED_TYPE

#: How much more a pixel between touching nuclei counts for the foreground.
TOUCHING_WEIGHT = 2.0


def map_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """Cross-entropy and Dice of the foreground, mean absolute error of the distances.

    Inside nuclei and outside count equally for the distances, as most pixels are outside
    and there the target is 1.

    Parameters
    ----------
    logits : (n, 3, side, side).
    maps : (n, 4, side, side) in 0…1: the three targets, and what a pixel counts: 0 outside
        of the image, 0.5 inside, 1 between nuclei that touch.
    """
    valid = (maps[:, 3] > 0.45).float()
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
