"""Muon: momentum whose direction is made orthogonal, for the kernels of convolutions.

K. Jordan et al., *Muon: an optimizer for hidden layers in neural networks* (2024); scaled to
the size of AdamW's steps as in J. Liu et al., *Muon is scalable for LLM training*
(arXiv:2502.16982, 2025), so that one learning rate serves both. From scratch and with few
steps it comes farther than AdamW alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

#: Coefficients of the quintic Newton-Schulz iteration, from the first of the sources.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Steps of one size in all directions; for tensors of two or more dimensions.

    Parameters
    ----------
    lr : as one would choose for AdamW.
    momentum : of the gradient, with Nesterov's look ahead.
    iterations : of Newton-Schulz; few suffice, as directions need not be exact.
    spread : calls a function for many values, as `map` does; that of an executor lets
        parameters be changed side by side.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        iterations: int = 4,
        spread: Callable[..., Iterable[Any]] = map,
    ) -> None:
        self._spread = spread
        super().__init__(
            parameters,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "iterations": iterations,
            },
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            changing = [p for p in group["params"] if p.grad is not None]
            for parameter in changing:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            for _ in self._spread(partial(self._change, group), changing):
                pass

    @torch.no_grad()
    def _change(self, group: dict[str, Any], parameter: Tensor) -> None:
        gradient, average = parameter.grad, self.state[parameter]["momentum"]
        assert gradient is not None
        average.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(average, group["momentum"])
        direction = orthogonal(ahead.flatten(1), group["iterations"])
        size = 0.2 * max(direction.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction.view(ahead.shape), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor, iterations: int = 4) -> Tensor:
    """About the nearest matrix (same shape) whose singular values are all equal to one.

    Each iteration multiplies by a polynomial of the Gram matrix, and all of these commute:
    so only the small square matrices are iterated, and the matrix is multiplied once.
    """
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = torch.eye(len(gram), device=x.device)
    for _ in range(iterations):
        factor = torch.addmm(_B * gram, gram, gram, alpha=_C)
        factor.diagonal().add_(_A)
        product = factor @ product
        gram = factor @ gram @ factor
    result: Tensor = product @ x
    return (result.T if tall else result).to(matrix.dtype)
