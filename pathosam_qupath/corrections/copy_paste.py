"""Copies of an image's own nuclei, put where it has none: crowding that was not sampled.

After G. Ghiasi et al., *Simple copy-paste is a strong data augmentation method for instance
segmentation* (CVPR 2021); within one image, so that stain, focus and noise agree.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from scipy import ndimage

from pathosam_qupath.corrections.samples import Sample

#: Pixels around a nucleus that are copied with it, fading out.
_RIM = 3


def with_pasted_nuclei(sample: Sample, rng: np.random.Generator, share: float = 0.5) -> Sample:
    """The sample with up to ``share`` times as many nuclei more, none of them overlapping."""
    image, labels = sample.image.astype(np.float32), sample.labels.copy()
    types = None if sample.types is None else sample.types.copy()
    height, width = labels.shape
    boxes = [(i, box) for i, box in enumerate(ndimage.find_objects(sample.labels), 1) if box]
    following = len(boxes) and boxes[-1][0] + 1
    for chosen in rng.permutation(len(boxes))[: round(share * len(boxes))]:
        label, (rows, columns) = boxes[chosen]
        if min(rows.start, columns.start) < _RIM:
            continue
        if rows.stop + _RIM > height or columns.stop + _RIM > width:
            continue
        box = (
            slice(rows.start - _RIM, rows.stop + _RIM),
            slice(columns.start - _RIM, columns.stop + _RIM),
        )
        turns = int(rng.integers(4))
        mask = np.rot90(sample.labels[box] == label, turns)
        if mask.shape[0] >= height or mask.shape[1] >= width:
            continue
        top = int(rng.integers(height - mask.shape[0]))
        left = int(rng.integers(width - mask.shape[1]))
        to = (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))
        if labels[to][mask].any():
            continue
        rim = cv2.dilate(mask.astype(np.float32), np.ones((3, 3), np.uint8))
        share_of_copy = cv2.GaussianBlur(rim, (0, 0), 1.0)[..., None] * (labels[to] == 0)[..., None]
        copied = np.rot90(sample.image[box], turns)
        image[to] += share_of_copy * (copied - image[to])
        if types is not None and sample.types is not None:
            types[to][mask] = np.rot90(sample.types[box], turns)[mask]
        labels[to][mask] = following
        following += 1
    changed = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return replace(sample, image=changed, labels=labels, types=types)
