"""The UNETR decoder as a network that learns: :mod:`pathosam_qupath.model.unetr` step by step.

For segmentation upsamplings, convolutions and normalisations are fused and written into each
other's memory, which gradients cannot follow. This is the same arithmetic, written plainly, for
batches; a normalisation sees one crop at a time, as in segmentation (``bn="tile"``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pathosam_qupath.model.convolutions import EPSILON
from pathosam_qupath.model.unetr import UnetrDecoder


def decoder_logits(decoder: UnetrDecoder, embedding: Tensor) -> Tensor:
    """Maps before the sigmoid, with gradients.

    Parameters
    ----------
    decoder : not prepared for inference.
    embedding : (n, channels, grid, grid).

    Returns
    -------
    (n, outputs, 16 grid, 16 grid).
    """
    parts: Any = decoder
    z9 = _deconvolution(parts.deconv1, embedding)
    z6 = _deconvolution(parts.deconv2, z9)
    z3 = _deconvolution(parts.deconv3, z6)
    z0 = _deconvolution(parts.deconv4, z3)
    x = _block(parts.base, embedding)
    for block, sampler, skip in zip(
        parts.decoder.blocks, parts.decoder.samplers, (z9, z6, z3), strict=True
    ):
        first = (skip.shape[1] - sampler.outputs) // 2
        cropped = skip[:, first : first + sampler.outputs]
        x = _block(block, torch.cat([_upsampled(sampler, x), cropped], dim=1))
    x = _block(parts.decoder_head, torch.cat([_upsampled(parts.deconv_out, x), z0], dim=1))
    logits: Tensor = parts.out_conv(x)
    return logits


def _deconvolution(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401 (of nn.ModuleList)
    upsampling, convolution, norm = layer.block
    x = convolution.block(_upsampled(upsampling, x))
    x = functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=EPSILON)
    return functional.relu(x)


def _upsampled(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    if layer.transposed:
        up: Tensor = layer.block(x)
        return up
    narrow: Tensor = layer.conv(x)
    return functional.interpolate(narrow, scale_factor=2.0, mode="bilinear")


def _block(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    for name in ("1", "4"):
        x = functional.instance_norm(x, eps=EPSILON)
        x = functional.relu(layer.block[name](x))
    return x
