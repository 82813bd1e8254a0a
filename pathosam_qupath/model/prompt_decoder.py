"""The compact network's prompt decoder: clicks, a box or a rough mask to one nucleus.

SAM's decoder lets prompts attend to an embedding of the whole image. A nucleus is small,
so here a window of :data:`WINDOW` pixels around the prompt is enough: what the network has
made of it at strides 8 and 4, its three maps and the pixels themselves, with the prompts
drawn as images beside them. A small U-Net gives the mask and how good it thinks it is.
A nucleus too large for the window is seen at half or a quarter of the resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathosam_qupath.model.layers import ConvNorm, Fusion, ResidualBlock

#: Side of the window in its own pixels, which are 1, 2 or 4 pixels of the tile.
WINDOW = 128

#: Images that describe the prompts, all 0…1: positive clicks, negative clicks, inside of the
#: box, box given, rough mask, mask given.
PROMPT_CHANNELS = 6

#: Standard deviation, in pixels of the window, of the spot that a click is drawn as.
SPOT = 3.0


class PromptDecoder(nn.Module):
    """A window's features and prompts to a mask and its expected IoU.

    Parameters
    ----------
    w4, w8 : channels of the features at strides 4 and 8.
    """

    def __init__(self, w4: int, w8: int) -> None:
        super().__init__()
        fine, middle, coarse = 24, 48, 64
        self.fine = ConvNorm(4 * 6 + PROMPT_CHANNELS, fine)
        self.block2 = ResidualBlock(fine)
        self.down4 = ConvNorm(fine, middle, stride=2)
        self.middle = ConvNorm(w4, middle, kernel=1)
        self.block4 = ResidualBlock(middle)
        self.down8 = ConvNorm(middle, coarse, stride=2)
        self.coarse = ConvNorm(w8, coarse, kernel=1)
        self.block8 = ResidualBlock(coarse)
        self.fusion4 = Fusion(coarse, middle)
        self.fusion2 = Fusion(middle, fine, block=False)
        self.out = nn.Conv2d(fine, 4, 3, padding=1)
        self.quality = nn.Sequential(nn.Linear(2 * coarse, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(
        self, pixels: Tensor, middle: Tensor, coarse: Tensor, prompts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (n, WINDOW, WINDOW) and logits of the expected IoU (n,).

        Parameters
        ----------
        pixels : (n, 6, WINDOW, WINDOW): RGB in -1…1, then the three maps in 0…1.
        middle : (n, w4, WINDOW / 4, WINDOW / 4), the instance decoder's features.
        coarse : (n, w8, WINDOW / 8, WINDOW / 8), the embedding.
        prompts : (n, PROMPT_CHANNELS, WINDOW / 2, WINDOW / 2).
        """
        stride2 = torch.cat([functional.pixel_unshuffle(pixels, 2), prompts], dim=1)
        stride2 = self.block2(functional.relu(self.fine(stride2)))
        stride4 = functional.relu(self.down4(stride2) + self.middle(middle))
        stride4 = self.block4(stride4)
        stride8 = functional.relu(self.down8(stride4) + self.coarse(coarse))
        stride8 = self.block8(stride8)
        fused = self.fusion2(self.fusion4(stride8, stride4), stride2)
        mask = functional.pixel_shuffle(self.out(fused), 2)[:, 0]
        inside = functional.avg_pool2d(torch.sigmoid(mask.detach())[:, None], 8)
        of_object = (stride8 * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-3)
        quality = self.quality(torch.cat([of_object, stride8.amax((2, 3))], dim=1))
        return mask, quality[:, 0]


def spots(points: Tensor) -> Tensor:
    """Clicks as an image.

    Parameters
    ----------
    points : (n, 2) x and y in pixels of the window.

    Returns
    -------
    image : (WINDOW / 2, WINDOW / 2) float in 0…1, the largest of the spots.
    """
    image = torch.zeros(WINDOW // 2, WINDOW // 2)
    if not len(points):
        return image
    at = torch.arange(1.0, WINDOW, 2.0)
    dx, dy = (torch.exp(-((at - points[:, axis, None]) ** 2) / (2 * SPOT**2)) for axis in (0, 1))
    return torch.maximum(image, (dy[:, :, None] * dx[:, None, :]).amax(0))


def filled_box(box: tuple[float, float, float, float]) -> Tensor:
    """The inside of a box x0, y0, x1, y1 (pixels of the window), as an image like `spots`."""
    at = torch.arange(0.0, WINDOW, 2.0)
    cover = [
        ((box[i + 2] - at) / 2).clamp(0, 1) * ((at + 2 - box[i]) / 2).clamp(0, 1) for i in (0, 1)
    ]
    return cover[1][:, None] * cover[0][None, :]


def prompt_image(
    positive: Tensor,
    negative: Tensor,
    box: tuple[float, float, float, float] | None,
    mask: Tensor | None,
) -> Tensor:
    """All that is asked, as images (PROMPT_CHANNELS, WINDOW / 2, WINDOW / 2).

    Parameters
    ----------
    positive, negative : (n, 2) clicks, x and y.
    box : x0, y0, x1, y1 or None.
    mask : (WINDOW, WINDOW) 0…1, a rough mask or an earlier answer, or None.
    """
    side = WINDOW // 2
    image = torch.zeros(PROMPT_CHANNELS, side, side)
    image[0], image[1] = spots(positive), spots(negative)
    if box is not None:
        image[2], image[3] = filled_box(box), 1.0
    if mask is not None:
        image[4], image[5] = functional.avg_pool2d(mask[None].float(), 2)[0], 1.0
    return image


def window_scale(extent: float) -> int:
    """Pixels of the tile per pixel of the window, for an object of this extent."""
    for scale in (1, 2):
        if extent <= 0.75 * WINDOW * scale:
            return scale
    return 4


def window_origin(center: tuple[float, float], scale: int) -> tuple[int, int]:
    """Where the window (x, y) begins around a position of the tile, on the grid of the features."""
    step = 8 * scale
    left, top = (round((value - WINDOW * scale / 2) / step) * step for value in center)
    return left, top


def window(feature: Tensor, origin: tuple[int, int], stride: int, scale: int) -> Tensor:
    """The part of a feature map (c, h, w) that a window sees; 0 outside of the tile."""
    side = WINDOW * scale // stride
    left, top = origin[0] // stride, origin[1] // stride
    height, width = feature.shape[1:]
    rows = slice(max(top, 0), max(min(top + side, height), 0))
    columns = slice(max(left, 0), max(min(left + side, width), 0))
    part = feature[:, rows, columns].float()
    missing = (
        columns.start - left,
        left + side - columns.stop,
        rows.start - top,
        top + side - rows.stop,
    )
    if any(missing):
        part = functional.pad(part, missing)
    return functional.avg_pool2d(part[None], scale)[0] if scale > 1 else part
