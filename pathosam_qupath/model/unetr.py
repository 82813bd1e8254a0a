"""The UNETR decoder: from SAM's embedding to maps, one tile at a time.

Architecture and names of the weights are those of ``torch_em.model.UNETR`` as micro-sam
and PathoSAM publish it, with its peculiarities: the skip connections do not come from the
encoder but from a chain of four upsamplings of the embedding, they are cropped in
*channels* to the width of what they join, and the four batch normalisations run on the
statistics of the tile itself (``bn="tile"``), because the reference never leaves training
mode. The checkpoint's running statistics are there as ``bn="running"``.

The arithmetic is arranged differently, with the same result but for rounding:

* An upsampling by transposed convolution and the 3 x 3 convolution behind it are one
  convolution (see ``convolutions.py``). In the head, at SAM's full input, even across the
  instance normalisation between them: its statistics follow from those of the map before
  the upsampling, so the upsampled map, the largest of all, is never made.
* Bilinear upsampling changes places with its 1 x 1 convolution, which then sees a quarter
  of the pixels.
* A normalisation's scale is folded into the weights of the convolution that follows.
* Channels are the last axis in memory, and large maps go through in bands.
* The last convolutions run only where maps are wanted.

Tiles never share an operation, so a tile's maps are the same in every batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.convolutions import (
    EPSILON,
    FusedUpsampling,
    Moments,
    Window,
    convolve,
    fuse,
    moments_of,
    pieces,
    pointwise,
    scale_and_shift,
    upsample_and_convolve,
    upsampled_moments,
)
from pathosam_qupath.model.sam import describe_keys, load_strictly

Normalization = Literal["tile", "running"]


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
            narrow = pointwise(x, self.conv.weight.flatten(1), self.conv.bias)
            return out.copy_(functional.interpolate(narrow, scale_factor=2.0, mode="bilinear"))
        weight: Any = self.block.weight
        bias: Any = self.block.bias
        for a in range(2):
            for b in range(2):
                out[:, :, a::2, b::2] = pointwise(x, weight[:, :, a, b].t(), bias)
        return out


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
        up: Any = self.block[0]
        convolution: Any = self.block[1]
        if up.transposed:
            conv = convolution.block
            fused = fuse(up.block.weight, up.block.bias, conv.weight, conv.bias)
            self._fused = fused.to(device, dtype)

    def forward(self, x: Tensor, bn: Normalization) -> Tensor:
        """(1, inputs, h, w) to (1, outputs, 2 h, 2 w)."""
        upsampling: Any = self.block[0]
        norm: Any = self.block[2]
        out = _empty(x, upsampling.outputs)
        if self._fused is not None:
            bands = upsample_and_convolve(x, self._fused)
        else:
            conv: Any = self.block[1]
            doubled = upsampling(x, _empty(x, upsampling.outputs))
            bands = convolve(doubled, conv.block.weight, conv.block.bias)
        moments = Moments()
        for first, end, values in bands:
            out[:, :, first:end] = values
            _gather(moments, values)
        if bn == "tile":
            mean, variance = moments.result()
        else:
            mean, variance = norm.running_mean.float(), norm.running_var.float()
        scale = norm.weight.float() * torch.rsqrt(variance + EPSILON)
        return scale_and_shift(out, scale, norm.bias.float() - mean * scale)


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

    def forward(self, x: Tensor) -> Tensor:
        """(1, inputs, h, w) to (1, outputs, h, w)."""
        first: Any = self.block["1"]
        second: Any = self.block["4"]
        x, moments = _normalize_and_convolve(x, first, moments_of(x))
        return _normalize_and_convolve(x, second, moments)[0]


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
            del x, skip
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
        z9 = self.deconv1(z12, bn)
        z6 = self.deconv2(z9, bn)
        z3 = self.deconv3(z6, bn)
        skips = [z9, z6, z3]
        del z9, z6
        below = self.decoder(self.base(z12), skips)
        # The largest map comes last, when the others have left memory.
        z0 = self.deconv4(z3, bn)
        del z3
        maps = [
            pointwise(values, self.out_conv.weight.flatten(1), self.out_conv.bias)
            for values in self._head(below, z0, window)
        ]
        return torch.cat(maps, dim=2).float().sigmoid_()

    def _head(self, below: Tensor, skip: Tensor, window: Window | None) -> Iterator[Tensor]:
        """Bands of the last map before the 1 x 1 convolution; ``skip`` is overwritten.

        Parameters
        ----------
        below : (1, widths[3], h, w), to be upsampled.
        skip : (1, widths[3], 2 h, 2 w).
        """
        first: Any = self.decoder_head.block["1"]
        second: Any = self.decoder_head.block["4"]
        up: Any = self.deconv_out
        width = up.outputs
        if not up.transposed:
            joined = torch.cat([up(below, _empty(below, width)), skip], dim=1)
            joined = joined.contiguous(memory_format=torch.channels_last)
            x, moments = _normalize_and_convolve(joined, first, moments_of(joined))
        else:
            mean, variance = upsampled_moments(below, up.block.weight, up.block.bias)
            weight = first.weight.float()[:, :width] * _inverse_deviation(variance)
            no_bias = torch.zeros_like(first.bias)
            fused = fuse(up.block.weight, up.block.bias - mean, weight, no_bias)
            upsampled = upsample_and_convolve(below, fused.to(below.device, below.dtype))
            x, moments = _add_convolution(skip, upsampled, first, width)
        mean, variance = moments.result()
        weight = second.weight.float() * _inverse_deviation(variance)
        for _, _, values in convolve(x, weight, second.bias, mean, window):
            yield values.relu_()


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


def _gather(moments: Moments, values: Tensor) -> None:
    for piece in pieces(values):
        moments.add(piece.to(torch.float32, copy=True))


def _inverse_deviation(variance: Tensor) -> Tensor:
    """Of the channels that a kernel (outputs, inputs, 3, 3) reads."""
    return torch.rsqrt(variance + EPSILON)[:, None, None]


def _normalize_and_convolve(x: Tensor, conv: nn.Conv2d, moments: Moments) -> tuple[Tensor, Moments]:
    """Instance normalisation by the moments of ``x``, 3 x 3 convolution, ReLU.

    The mean is subtracted from what the convolution reads, so that the zeros around the
    image stay what they are; the scale goes into the weights.

    Returns
    -------
    (1, outputs, h, w), and its moments.
    """
    mean, variance = moments.result()
    weight = conv.weight.float() * _inverse_deviation(variance)
    shape = (1, len(weight), *x.shape[2:])
    out = x.new_empty((shape[0], *shape[2:], shape[1])).permute(0, 3, 1, 2)
    found = Moments()
    for first, end, values in convolve(x, weight, conv.bias, mean):
        out[:, :, first:end] = values.relu_()
        _gather(found, values)
    return out, found


def _add_convolution(
    x: Tensor, others: Iterator[tuple[int, int, Tensor]], conv: nn.Conv2d, skipped: int
) -> tuple[Tensor, Moments]:
    """The part of a normalised convolution that reads ``x``, plus the part given, ReLU.

    Parameters
    ----------
    x : (1, channels, h, w), overwritten with the result band by band: a band is written
        once the next, which reads its last row, has been computed.
    others : bands of the other channels' part.
    conv : its input channels from ``skipped`` on are those of ``x``.

    Returns
    -------
    (1, channels, h, w), and its moments.
    """
    mean, variance = moments_of(x).result()
    weight = conv.weight.float()[:, skipped:] * _inverse_deviation(variance)
    moments = Moments()
    finished: list[tuple[int, int, Tensor]] = []
    for first, end, values in others:
        window = (first, 0, end, x.shape[3])
        for a, b, own in convolve(x, weight, conv.bias, mean, window):
            values[:, :, a:b] += own
        _gather(moments, values.relu_())
        for start, stop, done in finished:
            x[:, :, start:stop] = done
        finished = [(first, end, values)]
    for start, stop, done in finished:
        x[:, :, start:stop] = done
    return x, moments
