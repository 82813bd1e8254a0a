"""The compact network: one convolutional encoder that feeds every head.

The encoder trains from scratch on little data (residual 3 x 3 convolutions with batch
normalisation, He et al. 2016) and works at strides 2 to 16. Its *embedding* (stride 8)
and the two finer feature maps serve the instance decoder (foreground, centre distance,
boundary distance, as in PathoSAM), the class head, and later prompt decoders. At
inference the running statistics of the normalisation are folded into the convolutions:
a tile's maps depend on that tile alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: Tiles must be multiples of this, the stride of the deepest stage.
STRIDE = 16


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a :class:`CompactNetwork`.

    Attributes
    ----------
    widths : channels at strides 2, 4, 8 and 16.
    depths : residual blocks at these strides.
    classes : number of nucleus classes; 0 leaves the class head out.
    """

    widths: tuple[int, int, int, int] = (32, 64, 128, 192)
    depths: tuple[int, int, int, int] = (1, 2, 3, 2)
    classes: int = 3


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


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch normalisation: one layer once fused."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a skip connection; same shape in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width)
        self.second = ConvNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) to the same shape."""
        inner = self.second(functional.relu(self.first(x), inplace=True))
        return functional.relu(inner + x, inplace=True)


class Encoder(nn.Module):
    """Tile to :class:`Embedding`: four residual stages and a neck that fuses the deepest."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w2, w4, w8, w16 = config.widths
        self.stem = ConvNorm(3, w2, kernel=5, stride=2)
        self.down = nn.ModuleList(
            ConvNorm(inputs, outputs, kernel=3, stride=2)
            for inputs, outputs in ((w2, w4), (w4, w8), (w8, w16))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
            for width, depth in zip(config.widths, config.depths, strict=True)
        )
        self.lateral = ConvNorm(w16, w8, kernel=1)
        self.fuse = ResidualBlock(w8)

    def forward(self, x: Tensor) -> Embedding:
        """(n, 3, side, side) in about -1…1 to the embedding."""
        fine = self.stages[0](functional.relu(self.stem(x), inplace=True))
        middle = self.stages[1](functional.relu(self.down[0](fine), inplace=True))
        coarse = self.stages[2](functional.relu(self.down[1](middle), inplace=True))
        deep = self.stages[3](functional.relu(self.down[2](coarse), inplace=True))
        up = functional.interpolate(self.lateral(deep), scale_factor=2.0, mode="nearest")
        return Embedding(self.fuse(functional.relu(up + coarse)), middle, fine)


class InstanceDecoder(nn.Module):
    """Embedding to foreground, centre and boundary distance at the tile's resolution."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w2, w4, w8, _ = config.widths
        self.lateral4 = ConvNorm(w8, w4, kernel=1)
        self.block4 = ResidualBlock(w4)
        self.lateral2 = ConvNorm(w4, w2, kernel=1)
        self.block2 = ResidualBlock(w2)
        self.out = nn.Conv2d(w2, 3 * 4, 3, padding=1)

    def forward(self, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """Logits (n, 3, side, side), and the features at stride 4 for the class head."""
        up = functional.interpolate(
            self.lateral4(embedding.coarse), scale_factor=2.0, mode="nearest"
        )
        middle = self.block4(functional.relu(up + embedding.middle))
        up = functional.interpolate(self.lateral2(middle), scale_factor=2.0, mode="nearest")
        fine = self.block2(functional.relu(up + embedding.fine))
        return functional.pixel_shuffle(self.out(fine), 2), middle


class ClassHead(nn.Module):
    """Stride-4 features to class logits, enlarged to the tile's resolution."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w4 = config.widths[1]
        self.conv = ConvNorm(w4, w4)
        self.classes = config.classes
        self.out = nn.Conv2d(w4, config.classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(n, widths[1], side / 4, side / 4) to (n, classes, side, side)."""
        logits = self.out(functional.relu(self.conv(features), inplace=True))
        enlarged = functional.interpolate(
            logits.float(), scale_factor=4.0, mode="bilinear", align_corners=False
        )
        return enlarged[:, : self.classes]


class CompactNetwork(nn.Module):
    """Encoder, instance decoder and class head."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.instances = InstanceDecoder(config)
        self.types = ClassHead(config) if config.classes else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Instance logits (n, 3, side, side) and class logits (n, classes, side, side).

        Parameters
        ----------
        x : (n, 3, side, side) float, RGB / 127.5 - 1; side a multiple of 16.
        """
        logits, middle = self.instances(self.encoder(x))
        return logits, None if self.types is None else self.types(middle)


def fused(network: CompactNetwork) -> CompactNetwork:
    """A copy for inference: running statistics folded into the convolutions.

    On the CPU its outputs are the same bits for any number of threads.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvNorm):
                conv, norm = child
                assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
    if network.types is not None:
        network.types.out = _padded(network.types.out)
    return network


def _padded(conv: nn.Conv2d, multiple: int = 16) -> nn.Conv2d:
    """The same 1 x 1 convolution with zero channels appended to its output.

    With few channels, oneDNN's 1 x 1 convolution and PyTorch's interpolation round
    differently at the borders of the threads' shares; with full vectors of channels they
    do not (seen with torch 2.14 and AVX-512).
    """
    outputs = -(-conv.out_channels // multiple) * multiple
    padded = nn.Conv2d(conv.in_channels, outputs, 1)
    padded.requires_grad_(False)
    padded.weight.zero_()[: conv.out_channels] = conv.weight.detach()
    assert padded.bias is not None and conv.bias is not None
    padded.bias.zero_()[: conv.out_channels] = conv.bias.detach()
    return padded
