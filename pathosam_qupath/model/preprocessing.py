"""What SAM sees of a tile: stretched to full contrast, resized, normalised, padded.

These are micro-sam's steps (``_to_image``, SAM's ``ResizeLongestSide`` and
``Sam.preprocess``), value for value. Two of them surprise: the contrast of *every tile*
is stretched to 0…255 per channel, 8-bit images included, and every tile is resized so
that its longest side is SAM's input side. So a tile's maps depend on where the tile is
cut, and a smaller tile is seen at a higher magnification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathosam_qupath.errors import ImageError

if TYPE_CHECKING:
    import torch

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""Of ImageNet, as SAM was trained; red, green, blue, in 0…255."""

PIXEL_STD = (58.395, 57.12, 57.375)

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, eq=False)
class PreparedTile:
    """A tile on its way into the encoder.

    Attributes
    ----------
    pixels : (height, width, 3) uint8, stretched and resized; the longer side is SAM's.
    original_size : height and width of the tile before resizing.
    """

    pixels: NDArray[np.uint8]
    original_size: Size

    @property
    def input_size(self) -> Size:
        """Height and width after resizing, without padding."""
        return self.pixels.shape[0], self.pixels.shape[1]


def prepare(tile: NDArray[Any], side: int = 1024) -> PreparedTile:
    """Stretch and resize a tile.

    Parameters
    ----------
    tile : (height, width) or (height, width, channels), any real dtype.
    side : SAM's input side in pixels.
    """
    stretched = stretch_contrast(tile)
    return PreparedTile(resize_longest_side(stretched, side), (tile.shape[0], tile.shape[1]))


def stretch_contrast(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Each channel from its own minimum…maximum to 0…255.

    Parameters
    ----------
    image : (height, width) or (height, width, channels). Grey becomes three equal
        channels, two channels get an empty third, of more than three the first three
        are taken.

    Returns
    -------
    (height, width, 3) uint8.

    Raises
    ------
    ImageError
        If the array is no image.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or 0 in image.shape:
        raise ImageError(
            "tile",
            f"expected (height, width) or (height, width, channels), found {image.shape}",
            "Pass one image at a time, its channels last.",
        )
    channels = [_stretch_channel(channel) for channel in _channels(image[..., :3])]
    if len(channels) == 1:
        channels *= 3
    elif len(channels) == 2:
        channels.append(np.zeros_like(channels[0]))
    return np.asarray(cv2.merge(channels), np.uint8)


def _channels(image: NDArray[Any]) -> list[NDArray[Any]]:
    """Each channel as an array of its own: passes over one are several times as fast."""
    return [np.ascontiguousarray(image[..., c]) for c in range(image.shape[2])]


def _stretch_channel(channel: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 values go through a table of 256 entries, computed as the others are."""
    if channel.dtype != np.uint8:
        return _to_full_range(channel.astype(np.float32), channel.min(), channel.max())
    low, high = channel.min(), channel.max()
    values = np.clip(np.arange(256, dtype=np.float32), low, high)
    table = _to_full_range(values, low, high)
    return np.asarray(cv2.LUT(channel, table), np.uint8)


def _to_full_range(values: NDArray[np.float32], low: Any, high: Any) -> NDArray[np.uint8]:  # noqa: ANN401
    """float32 arithmetic and truncation as in the reference: 255 is rarely reached."""
    values = values - np.float32(low)
    values /= (np.float32(high) - np.float32(low)) + np.float32(1e-7)
    stretched: NDArray[np.uint8] = (values * np.float32(255)).astype(np.uint8)
    return stretched


def resized_shape(size: Size, side: int) -> Size:
    """Height and width once the longer of both is ``side``."""
    scale = side * 1.0 / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def resize_longest_side(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Bilinear by Pillow (antialiased when shrinking), as torchvision resizes PIL images.

    Parameters
    ----------
    image : (height, width, 3) uint8.
    side : wanted length of the longer side in pixels.
    """
    height, width = resized_shape((image.shape[0], image.shape[1]), side)
    if (height, width) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def normalize(
    prepared: PreparedTile, side: int, device: str = "cpu", *, pinned: bool = False
) -> torch.Tensor:
    """Normalised values on ``device``, zero-padded at the right and the bottom.

    Parameters
    ----------
    pinned : copy through memory from which a GPU reads by itself, without waiting.

    Returns
    -------
    (1, 3, side, side) float32.
    """
    import torch

    height, width = prepared.input_size
    pixels = torch.from_numpy(np.require(prepared.pixels, requirements=["C", "W"]))
    if pinned:
        pixels = pixels.pin_memory()
    pixels = pixels.to(device, non_blocking=pinned)
    padded = torch.zeros((1, 3, side, side), device=device)
    inside = padded[0, :, :height, :width]
    inside.copy_(pixels.permute(2, 0, 1))
    for channel, mean, std in zip(inside, PIXEL_MEAN, PIXEL_STD, strict=True):
        channel.sub_(mean).div_(std)
    return padded
