"""What the compact networks are built of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


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


class Fusion(nn.Module):
    """A coarser feature map brought to the next finer one: enlarged, added, convolved."""

    def __init__(self, coarse: int, fine: int, *, block: bool = True) -> None:
        super().__init__()
        self.lateral = ConvNorm(coarse, fine, kernel=1)
        self.fuse = ResidualBlock(fine) if block else ConvNorm(fine, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(n, coarse, h, w) and (n, fine, 2 h, 2 w) to the latter's shape."""
        up = functional.interpolate(self.lateral(coarse), scale_factor=2.0, mode="nearest")
        fused: Tensor = self.fuse(functional.relu(up + fine))
        return fused if isinstance(self.fuse, ResidualBlock) else functional.relu(fused)
