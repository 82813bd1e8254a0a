"""The compact network: one convolutional encoder that feeds every head.

The encoder trains from scratch on little data (residual 3 x 3 convolutions with batch
normalisation, He et al. 2016) and works at strides 2 to 32. Nearly all of its work is done
at strides 4 and coarser, where a pixel is cheap and a nucleus at 0.25 um/px is still a
dozen pixels wide; stride 2 carries outlines only. Its *embedding* (stride 8) and the two
finer feature maps serve the instance decoder (foreground, centre distance, boundary
distance, as in PathoSAM), the class head and the prompt decoder. At inference the running
statistics of the normalisation are folded into the convolutions: a tile's maps depend on
that tile alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pathosam_qupath.model.layers import ConvNorm, Fusion, ResidualBlock
from pathosam_qupath.model.prompt_decoder import PromptDecoder

#: Tiles must be multiples of this, the stride of the deepest stage.
STRIDE = 32


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a :class:`CompactNetwork`.

    Attributes
    ----------
    widths : channels at strides 2, 4, 8, 16 and 32.
    depths : residual blocks of the encoder at these strides.
    classes : number of nucleus classes; 0 leaves the class head out.
    prompts : whether there is a prompt decoder.
    """

    widths: tuple[int, int, int, int, int] = (32, 64, 128, 256, 192)
    depths: tuple[int, int, int, int, int] = (0, 2, 2, 2, 1)
    classes: int = 3
    prompts: bool = False


@dataclass(frozen=True)
class Embedding:
    """What the encoder makes of a tile of ``side`` pixels.

    Attributes
    ----------
    coarse : (n, widths[2], side / 8, side / 8); what prompts attend to.
    middle : (n, widths[1], side / 4, side / 4).
    fine : (n, widths[0], side / 2, side / 2).
    """

    coarse: Tensor
    middle: Tensor
    fine: Tensor


class Encoder(nn.Module):
    """Tile to :class:`Embedding`: residual stages, then a neck back to stride 8."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w2, _, w8, w16, w32 = config.widths
        self.stem = ConvNorm(3, w2, kernel=5, stride=2)
        self.down = nn.ModuleList(
            ConvNorm(inputs, outputs, kernel=3, stride=2)
            for inputs, outputs in zip(config.widths, config.widths[1:], strict=False)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
            for width, depth in zip(config.widths, config.depths, strict=True)
        )
        self.neck16 = Fusion(w32, w16, block=False)
        self.neck8 = Fusion(w16, w8)

    def forward(self, x: Tensor) -> Embedding:
        """(n, 3, side, side) in about -1…1 to the embedding."""
        fine = self.stages[0](functional.relu(self.stem(x), inplace=True))
        features = [fine]
        for down, stage in zip(self.down, self.stages[1:], strict=True):
            features.append(stage(functional.relu(down(features[-1]), inplace=True)))
        _, middle, stride8, stride16, stride32 = features
        coarse = self.neck8(self.neck16(stride32, stride16), stride8)
        return Embedding(coarse, middle, fine)


class InstanceDecoder(nn.Module):
    """Embedding to foreground, centre and boundary distance at the tile's resolution."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w2, w4, w8, _, _ = config.widths
        self.fusion4 = Fusion(w8, w4)
        self.fusion2 = Fusion(w4, w2, block=False)
        self.out = nn.Conv2d(w2, 3 * 4, 3, padding=1)

    def forward(self, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """Logits (n, 3, side, side), and the features at stride 4 for the class head."""
        middle = self.fusion4(embedding.coarse, embedding.middle)
        fine = self.fusion2(middle, embedding.fine)
        return functional.pixel_shuffle(self.out(fine), 2), middle


class ClassHead(nn.Module):
    """Stride-4 features to class logits."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w4 = config.widths[1]
        self.conv = ConvNorm(w4, w4)
        self.out = nn.Conv2d(w4, config.classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(n, widths[1], side / 4, side / 4) to (n, classes, side / 4, side / 4)."""
        logits: Tensor = self.out(functional.relu(self.conv(features), inplace=True))
        return logits


@dataclass(frozen=True)
class Outputs:
    """What the network makes of tiles of ``side`` pixels.

    Attributes
    ----------
    logits : (n, 3, side, side), before the sigmoid: foreground, centre and boundary distance.
    types : (n, classes, side / 4, side / 4) class logits, or None.
    middle : (n, widths[1], side / 4, side / 4), the instance decoder's features.
    coarse : (n, widths[2], side / 8, side / 8), the embedding.
    """

    logits: Tensor
    types: Tensor | None
    middle: Tensor
    coarse: Tensor


class CompactNetwork(nn.Module):
    """Encoder, instance decoder, class head and prompt decoder."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.instances = InstanceDecoder(config)
        self.types = ClassHead(config) if config.classes else None
        self.prompts = PromptDecoder(config.widths[1], config.widths[2]) if config.prompts else None

    def outputs(self, x: Tensor) -> Outputs:
        """Everything that does not depend on prompts.

        Parameters
        ----------
        x : (n, 3, side, side) float, RGB / 127.5 - 1; side a multiple of 32.
        """
        embedding = self.encoder(x)
        logits, middle = self.instances(embedding)
        types = None if self.types is None else self.types(middle)
        return Outputs(logits, types, middle, embedding.coarse)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Instance logits (n, 3, side, side); class logits (n, classes, side / 4, side / 4)."""
        outputs = self.outputs(x)
        return outputs.logits, outputs.types


def fused(network: CompactNetwork, *, without_1x1: bool = False) -> CompactNetwork:
    """A copy for inference: running statistics folded into the convolutions.

    On the CPU its outputs are the same bits for any number of threads: in bfloat16 always,
    in float32 with ``without_1x1``. oneDNN sums a 1 x 1 convolution in another order with
    another number of threads (seen with torch 2.15 and AVX-512); a 3 x 3 convolution whose
    rim is zero gives the same and is not summed so.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvNorm):
                conv, norm = child
                assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
    for module in list(network.modules()) if without_1x1 else ():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1):
                setattr(module, name, _as_3x3(child))
    return network


def _as_3x3(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with a kernel of 3 x 3 whose rim is zero."""
    result = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
    result.requires_grad_(False)
    result.weight.zero_()[..., 1:2, 1:2] = conv.weight.detach()
    assert result.bias is not None and conv.bias is not None
    result.bias.copy_(conv.bias.detach())
    return result
