"""LoRA: a vision transformer learns through small matrices beside its large ones.

E. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models* (ICLR 2022). The layer that
makes queries, keys and values gets a second path of low rank, which begins at zero; only it
learns. Afterwards both are one matrix again, so a checkpoint looks as it did before.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class LowRank(nn.Module):
    """A linear layer that stays, and a path of low rank beside it that learns.

    Parameters
    ----------
    layer : (outputs, inputs).
    rank : width of the path; its result is scaled by 1, whatever the rank.
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        beside = functional.linear(functional.linear(x, self.down), self.up)
        result: Tensor = self.layer(x) + beside
        return result

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with the path added to its weights."""
        self.layer.weight += self.up @ self.down
        return self.layer


def add_low_rank(encoder: nn.Module, rank: int) -> list[nn.Parameter]:
    """Give every attention of a SAM's image encoder its path, in place; what learns."""
    learning: list[nn.Parameter] = []
    for attention in _attentions(encoder):
        attention.qkv = LowRank(attention.qkv, rank)
        learning += [attention.qkv.down, attention.qkv.up]
    return learning


def merge_low_rank(encoder: nn.Module) -> None:
    """Undo :func:`add_low_rank`, in place, and keep what was learnt."""
    for attention in _attentions(encoder):
        if isinstance(attention.qkv, LowRank):
            attention.qkv = attention.qkv.merged()


def _attentions(encoder: Any) -> list[Any]:  # noqa: ANN401 (segment_anything has no types)
    return [block.attn for block in encoder.blocks]
