"""Attention in pieces, and fused, against attention written out."""

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from pathosam_qupath.model.attention import (
    attend_fused,
    attend_in_chunks,
    relative_positions,
)


@pytest.fixture
def case():
    torch.manual_seed(0)
    attention = Attention(48, num_heads=3, use_rel_pos=True, input_size=(9, 7))
    for table in (attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table)
    return attention.requires_grad_(False), torch.randn(2, 9, 7, 48)


def arguments(attention, x):
    n, height, width, _ = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(n, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, n * heads, height * width, -1).unbind(0)
    by_h = relative_positions(attention.rel_pos_h, height)
    by_w = relative_positions(attention.rel_pos_w, width)
    return q, k, v, attention.scale, (height, width), by_h, by_w


def project(attention, values, x):
    n, height, width, _ = x.shape
    values = values.view(n, attention.num_heads, height, width, -1).permute(0, 2, 3, 1, 4)
    return attention.proj(values.reshape(n, height, width, -1))


@pytest.mark.parametrize("scores_bytes", [1, 4 * 63 * 7 * 2, 4 * 63 * 63 * 4, 1 << 30])
def test_pieces_of_any_size(case, scores_bytes):
    attention, x = case
    values = attend_in_chunks(*arguments(attention, x), scores_bytes)
    assert torch.allclose(project(attention, values, x), attention(x), atol=1e-6)


def test_positions_appended_to_queries_and_keys(case):
    attention, x = case
    values = attend_fused(*arguments(attention, x))
    assert torch.allclose(project(attention, values, x), attention(x), atol=1e-5)


def test_tables_of_another_length_are_interpolated():
    table = torch.arange(7.0)[:, None].repeat(1, 2)
    positions = relative_positions(table, 4)
    assert positions[0, 3, 0] == 0
    assert positions[3, 0, 0] == 6
    assert relative_positions(table, 8).shape == (8, 8, 2)
