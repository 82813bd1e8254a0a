"""Convolutions and normalisations of large maps, band by band, one tile at a time.

A decoder's maps at SAM's full input are hundreds of megabytes. Here a convolution reads a
band of rows, normalises it on the way, and hands its result over in bands, so that what
follows (ReLU, sums for the next normalisation, writing) finds it in the processor's cache
and no second map of that size is needed. The sums of a normalisation are gathered in
pieces of fixed size, each around its own mean, and joined in float64: nothing cancels,
and neither threads nor batches change them.

Upsampling and the 3 x 3 convolution behind it are both linear. A transposed convolution
(2 x 2, stride 2) and its 3 x 3 convolution become one 2 x 2 convolution that gives the
four phases of the doubled grid; where the 3 x 3 kernel hangs over the border, the
upsampling's bias is missing there, which is put right afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-5
"""Added to variances, in both kinds of normalisation."""

PIECE_BYTES = 1 << 20
"""How much of a map a CPU normalises at a time."""

BAND_BYTES = 8 << 20
"""How much of a convolution's result a CPU computes at a time."""

COVARIANCE_PIXELS = 512
"""How many pixels' products are summed in float32 before float64 takes over."""

Window = tuple[int, int, int, int]
"""First row, first column, end row, end column, in pixels of SAM's input."""


class Moments:
    """Mean and biased variance per channel, gathered piece by piece."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._means: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Take in (pixels, channels) of float32, which are left overwritten."""
        # A sum, not a product with ones: PyTorch's sums add up in pairs.
        mean = values.mean(dim=0)
        self._counts.append(len(values))
        self._means.append(mean)
        self._squares.append(values.sub_(mean).square_().sum(dim=0))

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, (channels,) float32 each."""
        device = self._means[0].device
        exact = torch.float32 if device.type == "mps" else torch.float64
        counts = torch.tensor(self._counts, dtype=exact, device=device)[:, None]
        means = torch.stack(self._means).to(exact)
        mean = (means * counts).sum(dim=0) / counts.sum()
        spread = torch.stack(self._squares).to(exact) + (means - mean).square() * counts
        return mean.float(), (spread.sum(dim=0) / counts.sum()).float()


def moments_of(x: Tensor) -> Moments:
    """Moments of a channels-last (1, channels, h, w)."""
    moments = Moments()
    for piece in pieces(x):
        moments.add(piece.to(torch.float32, copy=True))
    return moments


def pieces(x: Tensor) -> list[Tensor]:
    """Views (pixels, channels) of a channels-last (1, channels, h, w), cache by cache."""
    pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
    if x.device.type != "cpu":
        return [pixels]
    return list(torch.split(pixels, max(1, PIECE_BYTES // (4 * x.shape[1]))))


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``relu(x * scale + shift)`` per channel, in place."""
    for piece in pieces(x):
        values = piece.float()
        values.mul_(scale).add_(shift).relu_()
        if values is not piece:
            piece.copy_(values)
    return x


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None = None,
    window: Window | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """A convolution of 2 x 2 or 3 x 3 with one zero all around, in bands of rows.

    Parameters
    ----------
    x : (1, inputs, h, w), channels last. It may be overwritten where the previous band's
        rows lie once the next band has been handed over.
    weight : (outputs, inputs, k, k).
    mean : (inputs,), subtracted from ``x``; the zeros around it stay zeros.
    window : the part of the result that is wanted; the whole if None.

    Yields
    ------
    first, end : rows of the window.
    values : (1, outputs, end - first, columns); with k = 2 one row and one column more,
        value p of an axis being made of the inputs p - 1 and p.
    """
    _, inputs, height, width = x.shape
    top, left, bottom, right = window or (0, 0, height, width)
    weight = weight.to(x.dtype, memory_format=torch.channels_last)
    bias = None if bias is None else bias.to(x.dtype)
    mean = None if mean is None else mean.to(x.dtype)[:, None, None]
    rows = bottom - top
    if x.device.type == "cpu":
        row_bytes = (right - left) * max(len(weight), inputs) * x.element_size()
        rows = min(rows, max(8, BAND_BYTES // row_bytes))
    columns = (max(0, left - 1), min(width, right + 1))
    inner = slice(columns[0] - left + 1, columns[1] - left + 1)
    room = x.new_empty((1, rows + 2, right - left + 2, inputs)).permute(0, 3, 1, 2)
    room[..., : inner.start] = 0
    room[..., inner.stop :] = 0
    for first in range(top, bottom, rows):
        end = min(first + rows, bottom)
        band = room[:, :, : end - first + 2]
        low, high = max(0, first - 1), min(height, end + 1)
        band[:, :, : low - first + 1] = 0
        band[:, :, high - first + 1 :] = 0
        target = band[:, :, low - first + 1 : high - first + 1, inner]
        source = x[:, :, low:high, columns[0] : columns[1]]
        if mean is None:
            target.copy_(source)
        else:
            torch.sub(source, mean, out=target)
        yield first - top, end - top, functional.conv2d(band, weight, bias)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1 x 1 convolution as a matrix product over the pixels, channels last."""
    pixels = x.permute(0, 2, 3, 1)
    bias = None if bias is None else bias.to(x.dtype)
    return functional.linear(pixels, weight.to(x.dtype), bias).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class FusedUpsampling:
    """A transposed convolution and the 3 x 3 convolution behind it.

    Attributes
    ----------
    kernels : (4 outputs, inputs, 2, 2), phase by phase.
    bias : (outputs,) away from the border.
    by_tap : (3, 3, outputs), the upsampling's bias as each tap of the 3 x 3 kernel passes
        it on; at the border some taps have nothing to pass on.
    """

    kernels: Tensor
    bias: Tensor
    by_tap: Tensor

    def to(self, device: str | torch.device, dtype: torch.dtype) -> FusedUpsampling:
        """The same on a device and in a precision."""
        return FusedUpsampling(
            self.kernels.to(device, dtype, memory_format=torch.channels_last),
            self.bias.to(device, dtype),
            self.by_tap.to(device, dtype),
        )


def fuse(up_weight: Tensor, up_bias: Tensor, weight: Tensor, bias: Tensor) -> FusedUpsampling:
    """A 2 x 2 stride 2 transposed convolution and a 3 x 3 convolution, as one.

    Computed in float64 on the CPU; returned in float32.
    """
    up_weight, up_bias, weight, bias = (
        value.detach().cpu().double() for value in (up_weight, up_bias, weight, bias)
    )
    by_tap = torch.einsum("omyx,m->yxo", weight, up_bias)
    whole = by_tap.sum(dim=(0, 1)) + bias
    return FusedUpsampling(_phase_kernels(up_weight, weight).float(), whole.float(), by_tap.float())


def upsample_and_convolve(x: Tensor, fused: FusedUpsampling) -> Iterator[tuple[int, int, Tensor]]:
    """Bands of the (1, outputs, 2 h, 2 w) that come of (1, inputs, h, w).

    Yields
    ------
    first, end : rows of the doubled grid, both even.
    values : (1, outputs, end - first, 2 w), channels last.
    """
    _, _, height, width = x.shape
    outputs = len(fused.bias)
    for first, end, phases in convolve(x, fused.kernels, fused.bias.repeat(4)):
        # Phase 0 of token i is at position i of the padded grid, phase 1 at i + 1.
        count = end - first
        values = x.new_empty((1, 2 * count, 2 * width, outputs)).permute(0, 3, 1, 2)
        for a in range(2):
            for b in range(2):
                of_phase = phases[:, (2 * a + b) * outputs : (2 * a + b + 1) * outputs]
                values[:, :, a::2, b::2] = of_phase[:, :, a : a + count, b : b + width]
        _remove_bias_beyond_border(values, fused.by_tap, first == 0, end == height)
        yield 2 * first, 2 * end, values


def _phase_kernels(up: Tensor, conv: Tensor) -> Tensor:
    """2 x 2 kernels of the four phases, (4 outputs, inputs, 2, 2).

    A pixel of the doubled grid in phase ``a`` sees, under tap ``t`` of the 3 x 3 kernel,
    the doubled row ``2 i + a + t - 1``: row ``(a + t - 1) // 2`` relative to its token,
    in that token's phase ``(a + t - 1) % 2``.
    """
    inputs, outputs = up.shape[0], conv.shape[0]
    kernels = torch.zeros((2, 2, outputs, inputs, 2, 2), dtype=up.dtype, device=up.device)
    for a in range(2):
        for b in range(2):
            for t in range(3):
                for s in range(3):
                    row, column = (a + t - 1) // 2 - a + 1, (b + s - 1) // 2 - b + 1
                    kernel = conv[:, :, t, s] @ up[:, :, (a + t - 1) % 2, (b + s - 1) % 2].t()
                    kernels[a, b, :, :, row, column] += kernel
    return kernels.reshape(4 * outputs, inputs, 2, 2)


def _remove_bias_beyond_border(out: Tensor, by_tap: Tensor, top: bool, bottom: bool) -> None:
    """Outside the image the upsampled map is zero, not its bias: subtract what was added.

    ``top`` and ``bottom`` say whether ``out`` touches the image's first and last row.
    """
    rows, columns = by_tap.sum(dim=1), by_tap.sum(dim=0)
    for corner, other in ((0, 0), (-1, 2)):
        out[0, :, :, corner] -= columns[other][:, None]
    for at, tap, touched in ((0, 0, top), (-1, 2, bottom)):
        if touched:
            out[0, :, at, :] -= rows[tap][:, None]
            for corner, other in ((0, 0), (-1, 2)):
                out[0, :, at, corner] += by_tap[tap, other]


def upsampled_moments(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a 2 x 2 stride 2 transposed convolution, without computing it.

    Its values are linear in the pixels of ``x``, hence their moments in the mean and the
    covariance of these.

    Parameters
    ----------
    x : (1, inputs, h, w), channels last.
    weight, bias : (inputs, outputs, 2, 2) and (outputs,).

    Returns
    -------
    (outputs,) float32 each.
    """
    count = x.shape[2] * x.shape[3]
    mean, _ = moments_of(x).result()
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    covariance = torch.zeros((len(mean), len(mean)), dtype=exact, device=x.device)
    for piece in pieces(x):
        centred = piece.float() - mean
        # Products of few pixels: a product adds up in sequence, in float32.
        for part in torch.split(centred, len(centred) if x.is_cuda else COVARIANCE_PIXELS):
            covariance += part.t() @ part
    covariance /= count
    kernels = weight.to(exact).permute(2, 3, 0, 1).flatten(0, 1)
    means = torch.einsum("pio,i->po", kernels, mean.to(exact)) + bias.to(exact)
    within = torch.einsum("pio,ij,pjo->po", kernels, covariance, kernels)
    overall = means.mean(dim=0)
    variance = (within + (means - overall).square()).mean(dim=0)
    return overall.float(), variance.float()
