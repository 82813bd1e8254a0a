"""The UNETR decoder: from SAM's embedding to maps, one tile at a time.

Architecture and names of the weights are those of ``torch_em.model.UNETR`` as micro-sam
and PathoSAM publish it, with its peculiarities: the skip connections do not come from the
encoder but from a chain of four upsamplings of the embedding, they are cropped in
*channels* to the width of what they join, and the four batch normalisations run on the
statistics of the tile itself (``bn="tile"``), because the reference never leaves training
mode. The checkpoint's running statistics are there as ``bn="running"``.

The arithmetic is arranged differently, with the same result but for rounding:

* Upsampling and the 3 x 3 convolution behind it are both linear. A transposed convolution
  (2 x 2, stride 2) and its 3 x 3 convolution become one 2 x 2 convolution that gives the
  four phases of the doubled grid; where the 3 x 3 kernel hangs over the border, the
  upsampling's bias is missing there, which is put right afterwards. Bilinear upsampling
  changes places with its 1 x 1 convolution, which then sees a quarter of the pixels.
* A normalisation's scale is folded into the weights of the convolution that follows.
* Channels are the last axis in memory; ReLU and statistics go through in pieces that the
  processor's cache holds.
* The last convolutions run only where maps are wanted.

Tiles never share an operation, so a tile's maps are the same in every batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.sam import describe_keys, load_strictly

Normalization = Literal["tile", "running"]

EPSILON = 1e-5
"""Added to variances, in both kinds of normalisation."""

PIECE_BYTES = 1 << 20
"""How much of a map a CPU works on at a time."""

Window = tuple[int, int, int, int]
"""First row, first column, end row, end column, in pixels of SAM's input."""


class Upsampling(nn.Module):
    """Twice the size: a transposed convolution, or bilinear and a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, transposed: bool) -> None:
        super().__init__()
        self.outputs = outputs
        if transposed:
            self.block = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        else:
            self.conv = nn.Conv2d(inputs, outputs, 1)

    @property
    def transposed(self) -> bool:
        """Whether the variant is the published one."""
        return hasattr(self, "block")

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """(1, inputs, h, w) to (1, outputs, 2 h, 2 w), written into ``out``."""
        if not self.transposed:
            narrow = _convolve(x, self.conv)
            return out.copy_(functional.interpolate(narrow, scale_factor=2.0, mode="bilinear"))
        weight: Any = self.block.weight
        bias: Any = self.block.bias
        inputs, outputs = weight.shape[:2]
        kernels = weight.permute(2, 3, 1, 0).reshape(4 * outputs, inputs)
        return _interleave(_pointwise(x, kernels, bias.repeat(4)), out)


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

    def to(self, device: str, dtype: torch.dtype) -> FusedUpsampling:
        """The same elsewhere, in the precision of the computation."""
        kernels = self.kernels.to(device, dtype, memory_format=torch.channels_last)
        return FusedUpsampling(kernels, self.bias.to(device, dtype), self.by_tap.to(device, dtype))


class SingleConvolution(nn.Module):
    """The 3 x 3 convolution inside a :class:`Deconvolution`, under its published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Conv2d(channels, channels, 3, padding=1)


class Deconvolution(nn.Module):
    """Upsampling, 3 x 3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, transposed: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            [
                Upsampling(inputs, outputs, transposed),
                SingleConvolution(outputs),
                nn.BatchNorm2d(outputs, eps=EPSILON),
            ]
        )
        self._fused: FusedUpsampling | None = None

    def fuse(self, device: str, dtype: torch.dtype) -> None:
        """Make one convolution of upsampling and convolution, once weights are loaded."""
        upsampling: Any = self.block[0]
        convolution: Any = self.block[1]
        if upsampling.transposed:
            fused = fused_upsampling(upsampling.block, convolution.block)
            self._fused = fused.to(device, dtype)

    def forward(self, x: Tensor, bn: Normalization, out: Tensor) -> Tensor:
        """(1, inputs, h, w) to (1, outputs, 2 h, 2 w), written into ``out``."""
        upsampling: Any = self.block[0]
        convolution: Any = self.block[1]
        if self._fused is not None:
            x = _upsample_and_convolve(x, self._fused, out)
        else:
            x = out.copy_(_convolve(upsampling(x, _empty(x, out.shape[1])), convolution.block))
        norm: Any = self.block[2]
        if bn == "tile":
            mean, variance = _statistics(x)
        else:
            mean, variance = norm.running_mean.float(), norm.running_var.float()
        scale = norm.weight.float() * torch.rsqrt(variance + EPSILON)
        shift = norm.bias.float() - mean * scale
        for piece, values in _pieces_as_float(x):
            values.mul_(scale).add_(shift).relu_()
            if values is not piece:
                piece.copy_(values)
        return x


class ConvolutionBlock(nn.Module):
    """Twice: instance normalisation (no weights), 3 x 3 convolution, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict(
            {
                "1": nn.Conv2d(inputs, outputs, 3, padding=1),
                "4": nn.Conv2d(outputs, outputs, 3, padding=1),
            }
        )

    def forward(self, x: Tensor, window: Window | None = None) -> Tensor:
        """(1, inputs, h, w), which is overwritten, to (1, outputs, h, w).

        With a window only its part of the result is computed; the normalisations still
        see the whole.
        """
        x = _normalize_and_convolve(x, self.block["1"])
        x.relu_()
        x = _normalize_and_convolve(x, self.block["4"], window)
        x.relu_()
        return x


class SkipDecoder(nn.Module):
    """The three levels where the upsampled path meets the skip connections."""

    def __init__(self, widths: tuple[int, int, int, int], transposed: bool) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        self.blocks = nn.ModuleList(ConvolutionBlock(2 * after, after) for _, after in steps)
        self.samplers = nn.ModuleList(
            Upsampling(before, after, transposed) for before, after in steps
        )

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """(1, widths[0], h, w) to (1, widths[3], 8 h, 8 w); ``skips`` is emptied."""
        for block, sampler in zip(self.blocks, self.samplers, strict=True):
            skip = skips.pop(0)
            width: Any = sampler.outputs
            joined = _empty(x, 2 * width)
            sampler(x, joined[:, :width])
            first = (skip.shape[1] - width) // 2
            joined[:, width:] = skip[:, first : first + width]
            x = block(joined)
        return x


class UnetrDecoder(nn.Module):
    """Embedding to maps.

    Parameters
    ----------
    channels : of the embedding.
    widths : channels at twice, four, eight and sixteen times the embedding's grid.
    outputs : number of maps: 3 for instances, 6 for PathoSAM's semantic classes.
    transposed : the published upsampling, or the interpolating one.
    """

    def __init__(
        self,
        channels: int = 256,
        widths: tuple[int, int, int, int] = (512, 256, 128, 64),
        outputs: int = 3,
        transposed: bool = True,
    ) -> None:
        super().__init__()
        ins = (channels, *widths[:-1])
        self.deconv1, self.deconv2, self.deconv3, self.deconv4 = (
            Deconvolution(before, after, transposed)
            for before, after in zip(ins, widths, strict=True)
        )
        self.base = ConvolutionBlock(channels, widths[0])
        self.decoder = SkipDecoder(widths, transposed)
        self.deconv_out = Upsampling(widths[3], widths[3], transposed)
        self.decoder_head = ConvolutionBlock(2 * widths[3], widths[3])
        self.out_conv = nn.Conv2d(widths[3], outputs, 1)
        self.widths = widths
        self.outputs = outputs
        self.transposed = transposed
        self.dtype = torch.float32

    def prepare(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Fuse what can be fused and go to a device; weights stay float32.

        Parameters
        ----------
        dtype : of the computation; statistics are float32 whatever it is.
        """
        for deconvolution in (self.deconv1, self.deconv2, self.deconv3, self.deconv4):
            deconvolution.fuse(device, dtype)
        self.dtype = dtype
        self.to(device)

    def forward(
        self, embedding: Tensor, window: Window | None = None, bn: Normalization = "tile"
    ) -> Tensor:
        """Maps of one tile.

        Parameters
        ----------
        embedding : (1, channels, grid, grid) float32.
        window : the part of SAM's input whose maps are wanted; the whole if None.
        bn : statistics of the tile itself, or the checkpoint's running ones.

        Returns
        -------
        (1, outputs, height, width) float32 in 0…1, sigmoid applied, in pixels of SAM's
        input (16 per token).
        """
        z12 = embedding.to(self.dtype, memory_format=torch.channels_last)
        w9, w6, w3, w0 = self.widths
        z9 = self.deconv1(z12, bn, _empty(z12, w9))
        z6 = self.deconv2(z9, bn, _empty(z9, w6))
        z3 = self.deconv3(z6, bn, _empty(z6, w3))
        joined = _empty(z3, 2 * w0)
        self.deconv4(z3, bn, joined[:, w0:])
        skips = [z9, z6, z3]
        del z9, z6, z3
        self.deconv_out(self.decoder(self.base(z12.clone()), skips), joined[:, :w0])
        x = joined
        del joined
        x = _convolve(self.decoder_head(x, window), self.out_conv)
        return x.float().sigmoid_()


def build_unetr(
    state: Mapping[str, Tensor], *, channels: int | None = None, subject: object = "decoder"
) -> UnetrDecoder:
    """The decoder that these weights belong to; keys of an encoder are passed over.

    Parameters
    ----------
    state : weights under the published names.
    channels : channels of the embedding that it will see, for a check.
    subject : what messages call the weights, for instance the file.

    Raises
    ------
    ModelError
        If weights are missing or misshapen, or belong to another embedding.
    """
    state = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    try:
        widths = tuple(state[f"deconv{i}.block.1.block.weight"].shape[0] for i in range(1, 5))
        inputs = state["base.block.1.weight"].shape[1]
        outputs = state["out_conv.weight"].shape[0]
    except KeyError as error:
        raise ModelError(
            subject,
            f"expected the weights of a UNETR decoder, found {describe_keys(state)} "
            f"without {error}",
            "Give the decoder file of the same model, or a checkpoint with a decoder_state.",
        ) from error
    if channels is not None and inputs != channels:
        raise ModelError(
            subject,
            f"expected a decoder for embeddings of {channels} channels, found {inputs}",
            "Give the decoder that was published with this model.",
        )
    transposed = any(key.startswith("decoder.samplers") and ".block." in key for key in state)
    with torch.device("meta"):
        decoder = UnetrDecoder(inputs, widths, outputs, transposed)  # type: ignore[arg-type]
    kept = decoder.state_dict().keys()
    load_strictly(
        decoder,
        {key: value for key, value in state.items() if key in kept},
        subject,
        f"a UNETR decoder ({'transposed' if transposed else 'interpolating'})",
    )
    decoder.prepare()
    return decoder


def _empty(below: Tensor, channels: int) -> Tensor:
    """Room for (1, channels, 2 h, 2 w) above a (1, …, h, w), channels last."""
    _, _, height, width = below.shape
    return torch.empty(
        (1, channels, 2 * height, 2 * width),
        dtype=below.dtype,
        device=below.device,
        memory_format=torch.channels_last,
    )


def _pieces(x: Tensor) -> list[Tensor]:
    """Views (pixels, channels) of a channels-last (1, channels, h, w), cache by cache."""
    pixels = x.permute(0, 2, 3, 1).view(-1, x.shape[1])
    if x.device.type != "cpu":
        return [pixels]
    return list(torch.split(pixels, max(1, PIECE_BYTES // (4 * x.shape[1]))))


def _pieces_as_float(x: Tensor, copied: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Each piece, and its values in float32: itself, or a copy that lasts one step."""
    room: Tensor | None = None
    for piece in _pieces(x):
        if piece.dtype == torch.float32 and not copied:
            yield piece, piece
            continue
        if room is None:
            room = torch.empty(piece.shape, dtype=torch.float32, device=x.device)
        yield piece, room[: len(piece)].copy_(piece)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, float32.

    Each piece's sums are taken around its own mean, then the pieces are joined in
    float64, so nothing cancels.
    """
    counts, means, squares = [], [], []
    for _, values in _pieces_as_float(x, copied=True):
        mean = values.mean(dim=0)
        counts.append(float(len(values)))
        means.append(mean)
        squares.append(values.sub_(mean).square_().sum(dim=0))
    count = torch.tensor(counts, dtype=_sum_dtype(x), device=x.device)[:, None]
    mean_by_piece = torch.stack(means).to(count.dtype)
    total = count.sum()
    mean = (mean_by_piece * count).sum(dim=0) / total
    spread = torch.stack(squares).to(count.dtype) + (mean_by_piece - mean).square() * count
    return mean.float(), (spread.sum(dim=0) / total).float()


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def _normalize_and_convolve(x: Tensor, conv: nn.Module, window: Window | None = None) -> Tensor:
    """Instance normalisation and a 3 x 3 convolution; ``x`` is overwritten.

    The mean is subtracted in place, so that the zeros around the image stay what they
    are; the scale goes into the weights.
    """
    weight: Any = conv.weight
    bias: Any = conv.bias
    mean, variance = _statistics(x)
    for piece in _pieces(x):
        piece.sub_(mean.to(x.dtype))
    scaled = weight.float() * torch.rsqrt(variance + EPSILON)[:, None, None]
    scaled = scaled.to(x.dtype, memory_format=torch.channels_last)
    bias = bias.to(x.dtype)
    if window is None:
        return functional.conv2d(x, scaled, bias, padding=1)
    height, width = x.shape[2:]
    top, left, bottom, right = window
    cut = x[:, :, max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1]
    pad = (int(left == 0), int(right == width), int(top == 0), int(bottom == height))
    cut = functional.pad(cut, pad).contiguous(memory_format=torch.channels_last)
    return functional.conv2d(cut, scaled, bias)


def _convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """A convolution, in the precision of its input."""
    layer: Any = conv
    if layer.kernel_size == (1, 1):
        return _pointwise(x, layer.weight.flatten(1), layer.bias)
    weight = layer.weight.to(x.dtype, memory_format=torch.channels_last)
    return functional.conv2d(x, weight, layer.bias.to(x.dtype), padding=layer.padding)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1 x 1 convolution as a matrix product over the pixels, channels last."""
    pixels = x.permute(0, 2, 3, 1)
    return functional.linear(pixels, weight.to(x.dtype), bias.to(x.dtype)).permute(0, 3, 1, 2)


def _interleave(phases: Tensor, out: Tensor) -> Tensor:
    """(1, 4 c, h, w), phases row by row, into (1, c, 2 h, 2 w)."""
    channels = out.shape[1]
    for a in range(2):
        for b in range(2):
            first = (2 * a + b) * channels
            out[:, :, a::2, b::2] = phases[:, first : first + channels]
    return out


def fused_upsampling(up: nn.ConvTranspose2d, conv: nn.Conv2d) -> FusedUpsampling:
    """A 2 x 2 stride 2 transposed convolution and a 3 x 3 convolution, as one.

    Computed in float64 on the CPU, once per checkpoint; returned in float32.
    """
    up_weight, up_bias, weight, bias = (
        value.detach().cpu().double()
        for value in (up.weight, up.bias, conv.weight, conv.bias)
        if value is not None
    )
    by_tap = torch.einsum("omyx,m->yxo", weight, up_bias)
    whole = by_tap.sum(dim=(0, 1)) + bias
    return FusedUpsampling(_phase_kernels(up_weight, weight).float(), whole.float(), by_tap.float())


def _upsample_and_convolve(x: Tensor, fused: FusedUpsampling, out: Tensor) -> Tensor:
    """(1, inputs, h, w) to (1, outputs, 2 h, 2 w), written into ``out``."""
    _, _, height, width = x.shape
    outputs = len(fused.bias)
    # Position p of the padded grid holds what the tokens p - 1 and p contribute; phase 0
    # of token i is at p = i, phase 1 at p = i + 1.
    phases = functional.conv2d(x, fused.kernels, fused.bias.repeat(4), padding=1)
    for a in range(2):
        for b in range(2):
            first = (2 * a + b) * outputs
            out[:, :, a::2, b::2] = phases[
                :, first : first + outputs, a : a + height, b : b + width
            ]
    _remove_bias_beyond_border(out, fused.by_tap)
    return out


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


def _remove_bias_beyond_border(out: Tensor, by_tap: Tensor) -> None:
    """Outside the image the upsampled map is zero, not its bias: subtract what was added.

    ``by_tap`` is (3, 3, channels): the bias as each tap of the 3 x 3 kernel passes it on.
    """
    rows, columns = by_tap.sum(dim=1), by_tap.sum(dim=0)
    for at, tap in ((0, 0), (-1, 2)):
        out[0, :, at, :] -= rows[tap][:, None]
        out[0, :, :, at] -= columns[tap][:, None]
        for corner, other in ((0, 0), (-1, 2)):
            out[0, :, at, corner] += by_tap[tap, other]
