"""SAM's image encoder without its large attention matrices; the same numbers.

``segment_anything`` writes out every attention matrix of a 1024-pixel input: twelve of
4096 x 4096, several times, which takes more time than the multiplications. Here a few
megabytes of scores at a time are made, shifted by the decomposed relative positions,
normalised in place and multiplied with the values; every row's arithmetic is that of the
reference. On a GPU the relative positions are appended to queries and keys instead, so
that PyTorch's fused attention applies.

The residual stream stays float32. In a lower precision only matrix products run, with
weights that were converted once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from torch import nn

SCORES_BYTES = 4 << 20
"""Size of the attention scores in work at a time on a CPU: what its caches hold."""


def encode(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Embeddings of prepared tiles.

    Parameters
    ----------
    encoder : a ``segment_anything`` image encoder whose linear layers and convolutions
        are float32 or of one lower precision (see :func:`lower_precision`).
    pixels : (n, 3, side, side) float32, normalised.

    Returns
    -------
    (n, channels, side / 16, side / 16) float32.
    """
    vit: Any = encoder
    dtype = vit.patch_embed.proj.weight.dtype
    x = vit.patch_embed(pixels.to(dtype)).float()
    if vit.pos_embed is not None:
        x = x + vit.pos_embed
    for block in vit.blocks:
        x = _block(block, x, dtype)
    x = vit.neck[0](x.permute(0, 3, 1, 2).to(dtype))
    x = vit.neck[1](x.float())
    x = vit.neck[2](x.to(dtype))
    embedding: Tensor = vit.neck[3](x.float())
    return embedding


def lower_precision(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of matrix products and convolutions, in place.

    Normalisation and position tables stay float32, so sums over many layers do.
    """
    for module in encoder.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.to(dtype)


def _block(block: Any, x: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ANN401
    """One transformer block, (n, height, width, channels) float32 to the same."""
    inner = _attention(block.attn, block.norm1(x).to(dtype), block.window_size)
    x = x + inner.float()
    del inner
    hidden = _linear(block.mlp.lin1, block.norm2(x).to(dtype), gelu=True)
    return x.add_(_linear(block.mlp.lin2, hidden).float())


def _linear(layer: Any, x: Tensor, *, gelu: bool = False) -> Tensor:  # noqa: ANN401
    """A linear layer, and GELU if wanted.

    On a CPU by oneDNN, which takes bias and GELU into the product and, in float32, is
    faster than PyTorch's own choice on processors that are not Intel's.
    """
    if x.device.type == "cpu" and torch._C._has_mkldnn:
        shape = (*x.shape[:-1], len(layer.weight))
        wanted: Any = ("gelu", [], "none") if gelu else ("none", [], "")
        flat = x.reshape(-1, x.shape[-1])
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            flat, layer.weight, layer.bias, *wanted
        )
        return product.view(shape)
    product = layer(x)
    return functional.gelu(product) if gelu else product


def _attention(attn: Any, x: Tensor, window: int) -> Tensor:  # noqa: ANN401
    """(n, height, width, channels) to the same, across the whole or inside windows.

    The padding of the last windows takes part as keys. It is zero before the layer that
    makes queries, keys and values, hence that layer's bias behind it, and not computed.
    """
    _, height, width, _ = x.shape
    heads = attn.num_heads
    qkv = _linear(attn.qkv, x)
    grid = (1, 1)
    if window > 0:
        qkv, grid = _windows(qkv, window, attn.qkv.bias)
    n, rows, columns, _ = qkv.shape
    qkv = qkv.view(n, rows * columns, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = (part.reshape(n * heads, rows * columns, -1) for part in qkv)
    positions_h = positions_w = None
    if attn.use_rel_pos:
        positions_h = relative_positions(attn.rel_pos_h, rows).to(q.dtype)
        positions_w = relative_positions(attn.rel_pos_w, columns).to(q.dtype)
    attend = attend_fused if x.is_cuda else attend_in_chunks
    values = attend(q, k, v, attn.scale, (rows, columns), positions_h, positions_w)
    del qkv, q, k, v
    values = values.view(n, heads, rows, columns, -1).permute(0, 2, 3, 1, 4)
    values = values.reshape(n, rows, columns, -1)
    if window > 0:
        values = _without_windows(values, window, grid, (height, width))
    return _linear(attn.proj, values)


def _windows(x: Tensor, window: int, padding: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(n, h, w, c) to (windows, window, window, c), and the number of windows each way.

    ``padding`` (c,) fills the windows that hang over the border.
    """
    n, height, width, channels = x.shape
    rows, columns = -(-height // window), -(-width // window)
    whole = x.new_empty((n, rows * window, columns * window, channels))
    whole[:, :height, :width] = x
    whole[:, height:] = padding
    whole[:, :height, width:] = padding
    parts = whole.view(n, rows, window, columns, window, channels).transpose(2, 3)
    return parts.reshape(-1, window, window, channels), (rows, columns)


def _without_windows(
    x: Tensor, window: int, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """The inverse of :func:`_windows`."""
    rows, columns = grid
    x = x.view(-1, rows, columns, window, window, x.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * window, columns * window, x.shape[-1])
    return x[:, : size[0], : size[1]]


def relative_positions(table: Tensor, size: int) -> Tensor:
    """Position vectors by query and key along one axis.

    Parameters
    ----------
    table : (2 * size - 1, channels); other lengths are interpolated, as SAM does.
    size : positions along the axis.

    Returns
    -------
    (size, size, channels)
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        resized = functional.interpolate(table.t()[None], size=length, mode="linear")
        table = resized[0].t()
    at = torch.arange(size, device=table.device)
    return table[at[:, None] - at[None, :] + size - 1]


def attend_in_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    size: tuple[int, int],
    positions_h: Tensor | None,
    positions_w: Tensor | None,
    scores_bytes: int = SCORES_BYTES,
) -> Tensor:
    """Attention with few scores in memory at a time.

    Parameters
    ----------
    q, k, v : (n, height * width, channels).
    scale : of the products; the position terms use the queries as they are.
    size : height and width of the token grid.
    positions_h, positions_w : as :func:`relative_positions` gives them, or both None.
    scores_bytes : memory for scores.

    Returns
    -------
    (n, height * width, channels)
    """
    n, tokens, channels = q.shape
    height, width = size
    whole_bytes = tokens * tokens * q.element_size()
    if positions_h is not None and positions_w is not None and whole_bytes <= scores_bytes:
        # A window: position terms as further channels of queries and keys cost less than
        # additions along its short rows.
        q, k = _with_positions(q * scale, q, k, size, positions_h, positions_w)
        positions_h = positions_w = None
    elif positions_h is not None and positions_w is not None:
        grid = q.view(n, height, width, channels)
        by_h = _position_terms_h(grid, positions_h).unsqueeze(-1)
        by_w = _position_terms_w(grid, positions_w).unsqueeze(-2)
        q = q * scale
    else:
        q = q * scale
    together = max(1, min(n, scores_bytes // whole_bytes))
    rows = max(1, min(height, scores_bytes // (tokens * width * q.element_size())))
    keys = k.transpose(1, 2).contiguous()
    out = torch.empty_like(v)
    room = q.new_empty(2 * together * rows * width * tokens)
    for start in range(0, n, together):
        part = slice(start, start + together)
        for first in range(0, height, rows):
            count = min(rows, height - first)
            here = slice(first * width, (first + count) * width)
            queries = q[part, here]
            shape = (len(queries), count * width, tokens)
            size_here = shape[0] * shape[1] * tokens
            scores = torch.bmm(queries, keys[part], out=room[:size_here].view(shape))
            if positions_h is not None:
                by_key = scores.view(-1, count, width, height, width)
                by_key += by_h[part, first : first + count]
                by_key += by_w[part, first : first + count]
            shares = room[size_here : 2 * size_here].view(shape)
            torch.softmax(scores, -1, out=shares)
            out[part, here] = torch.bmm(shares, v[part])
    return out


def attend_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    size: tuple[int, int],
    positions_h: Tensor | None,
    positions_w: Tensor | None,
) -> Tensor:
    """The same by PyTorch's fused attention; parameters as :func:`attend_in_chunks`.

    The score of query and key gets one term by the key's row and one by its column. With
    these terms appended to the query, and the key's row and column one-hot to the key,
    one product gives the whole score.
    """
    scaled = q * scale
    if positions_h is not None and positions_w is not None:
        scaled, k = _with_positions(scaled, q, k, size, positions_h, positions_w)
    return functional.scaled_dot_product_attention(scaled, k, v, scale=1.0)


def _with_positions(
    scaled: Tensor,
    q: Tensor,
    k: Tensor,
    size: tuple[int, int],
    positions_h: Tensor,
    positions_w: Tensor,
) -> tuple[Tensor, Tensor]:
    """Scaled queries with the position terms, and keys with their row and column one-hot."""
    n, tokens, channels = q.shape
    height, width = size
    grid = q.view(n, height, width, channels)
    by_h = _position_terms_h(grid, positions_h).reshape(n, tokens, height)
    by_w = _position_terms_w(grid, positions_w).reshape(n, tokens, width)
    at = torch.arange(tokens, device=q.device)
    row = functional.one_hot(at // width, height).to(k.dtype)
    column = functional.one_hot(at % width, width).to(k.dtype)
    keys = torch.cat([k, torch.cat([row, column], dim=1).expand(n, -1, -1)], dim=-1)
    return torch.cat([scaled, by_h, by_w], dim=-1), keys


def _position_terms_h(q: Tensor, positions: Tensor) -> Tensor:
    """(n, h, w, c) queries, (h, keys, c) positions: (n, h, w, keys)."""
    return torch.einsum("nhwc,hkc->nhwk", q, positions)


def _position_terms_w(q: Tensor, positions: Tensor) -> Tensor:
    """(n, h, w, c) queries, (w, keys, c) positions: (n, h, w, keys)."""
    return torch.einsum("nhwc,wkc->nhwk", q, positions)
