"""What a pixel counts: as much as its nucleus is small, nothing where nobody looked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathosam_qupath.corrections.losses import SIZE_WEIGHTS, map_loss, size_weights


@pytest.fixture
def labels():
    """Two crops: nuclei of 16, 64 and 4096 pixels, and one of 64."""
    ids = np.zeros((2, 128, 128), np.uint16)
    ids[0, 2:6, 2:6] = 1
    ids[0, 10:18, 10:18] = 2
    ids[0, 40:104, 40:104] = 5
    ids[1, 3:11, 3:11] = 1
    return ids


def test_small_nuclei_count_more_within_bounds(labels):
    weights = size_weights(labels, balance=0.5)
    assert weights.dtype == np.float32
    assert weights.shape == labels.shape
    assert (weights[labels == 0] == 1).all()
    assert weights[0, 3, 3] == pytest.approx(2.0)
    assert weights[0, 12, 12] == weights[1, 5, 5] == pytest.approx(1.0)
    assert weights[0, 60, 60] == SIZE_WEIGHTS[0]


def test_without_balance_or_nuclei_all_pixels_count_alike(labels):
    assert (size_weights(labels, balance=0.0) == 1).all()
    assert (size_weights(np.zeros_like(labels), balance=0.5) == 1).all()


def test_a_missed_small_nucleus_costs_more_when_sizes_are_balanced(labels):
    maps = np.ones((2, 4, 128, 128), np.float32)
    maps[:, 0] = labels > 0
    maps[:, 1:3] = np.where(labels[:, None] > 0, 0.5, 1.0)
    maps[:, 3] = 0.5
    target = torch.from_numpy(maps)
    found = torch.logit(target[:, :3].clamp(0.02, 0.98))
    small, large = found.clone(), found.clone()
    small[0, 0, 2:6, 2:6] = -4.0
    large[0, 0, 40:104, 40:44] = -4.0
    weights = torch.from_numpy(size_weights(labels, balance=0.5))

    def cost(logits, counting):
        return float(map_loss(logits, target, counting) - map_loss(found, target, counting))

    assert cost(small, weights) > 1.5 * cost(small, None) > 0
    assert cost(large, weights) < cost(large, None)


def test_what_is_not_valid_does_not_count_whatever_its_weight(labels):
    maps = torch.ones(2, 4, 128, 128)
    maps[:, 3] = 0.5
    maps[:, 3, :, 64:] = 0.0
    weights = torch.from_numpy(size_weights(labels, balance=1.0))
    logits = torch.zeros(2, 3, 128, 128)
    changed = logits.clone()
    changed[..., 64:] = 5.0
    assert torch.equal(map_loss(logits, maps, weights), map_loss(changed, maps, weights))
