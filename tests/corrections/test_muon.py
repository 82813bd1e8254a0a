"""Steps of Muon have the same size in all directions, whatever the gradient's shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pathosam_qupath.corrections.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 16), (24, 200), (90, 12)])
def test_singular_values_become_about_equal(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonal(matrix, iterations=5))
    assert 0.6 < values.min() <= values.max() < 1.3
    # Its directions stay.
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    exact = u @ v
    similarity = (orthogonal(matrix, 5) * exact).sum() / (exact.norm() ** 2)
    assert similarity > 0.8


def test_it_fits_a_convolution():
    torch.manual_seed(0)
    true, learnt = torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(4, 8, 3)
    images = torch.randn(16, 4, 8, 8)
    target = true(images).detach()
    optimizer = Muon([learnt.weight], lr=0.05)
    losses = []
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 60)
        loss = (learnt(images) - learnt.bias[:, None, None]) - (target - true.bias[:, None, None])
        loss = loss.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


def test_parameters_changed_side_by_side_are_the_same():
    torch.manual_seed(0)
    alone = [torch.nn.Parameter(torch.randn(8, 4 + i, 3, 3)) for i in range(5)]
    beside = [torch.nn.Parameter(p.detach().clone()) for p in alone]
    with ThreadPoolExecutor(2) as pool:
        optimizers = [Muon(alone, lr=0.1), Muon(beside, lr=0.1, spread=pool.map)]
        for _ in range(3):
            for one, other in zip(alone, beside, strict=True):
                one.grad = torch.randn_like(one)
                other.grad = one.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(alone, beside, strict=True))
