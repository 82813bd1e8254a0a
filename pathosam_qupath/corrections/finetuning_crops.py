"""Crops that a fine-tuning learns from: the corrections, and what the base had learnt from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pathosam_qupath.corrections.augmentation import AugmentationConfig
from pathosam_qupath.corrections.dataset import CropSource
from pathosam_qupath.corrections.finetuning import FinetuneData
from pathosam_qupath.errors import UsageError

AUGMENTATION = AugmentationConfig(
    paste_probability=0.0,
    scale_sigma=0.12,
    stretch=0.08,
    stain=0.15,
    stain_offset=0.03,
    mixing=0.02,
    exchange_probability=0.1,
    gamma=(0.8, 1.25),
    brightness=0.06,
    color_probability=0.7,
    blur_probability=0.1,
    rescan_probability=0.05,
    noise_probability=0.1,
    jpeg_probability=0.1,
)
"""Milder than in training: it is this stain and this scanner that are to be learnt."""


def crop_source(
    data: FinetuneData, classes: Mapping[int, int], *, mpp: float, side: int
) -> CropSource:
    """Crops of the corrections, and as many of the replayed samples where there are any.

    Parameters
    ----------
    classes : class index per type id.
    mpp, side : µm per pixel of the crops, and pixels of their sides.

    Raises
    ------
    UsageError : no sample of the corrections holds a nucleus.
    """
    if not any((sample.labels > 0).any() for sample in data.train):
        raise UsageError(
            "the corrections",
            "there is no nucleus in them to learn from",
            "Review regions that hold nuclei, and export again.",
        )
    samples = [replace(sample, source="corrections") for sample in data.train]
    replayed = [replace(sample, source="replay") for sample in data.replay]
    return CropSource(
        [*samples, *replayed],
        mpp=mpp,
        side=side,
        class_of_type=classes,
        weights={},
        assumed_diameter_um=8.0,
        augmentation=AUGMENTATION,
    )


def class_weights(crops: CropSource, device: str) -> Tensor | None:
    """As in training: rare classes weigh more, by the root of their rarity."""
    pixels = torch.from_numpy(crops.class_pixels).double()
    if not len(pixels):
        return None
    share = pixels.clamp(min=1) / pixels.sum().clamp(min=1)
    # A class that is not in the data would weigh endlessly.
    weights = (share.mean() / share).sqrt().clamp(max=5.0)
    return weights.float().to(device)
