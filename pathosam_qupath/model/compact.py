"""The compact network behind the interface that the segmentation asks for."""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.interface import ModelInfo
from pathosam_qupath.model.network import STRIDE, CompactNetwork, fused
from pathosam_qupath.model.weights import CompactDescription


class CompactModel:
    """A :class:`~pathosam_qupath.model.interface.NucleusModel` made of a compact network.

    On the CPU every tile goes through the network alone and in float32, so its maps are the
    same bits whatever the batch. On a GPU the whole batch goes through in half precision.

    Parameters
    ----------
    network : in evaluation mode or not; a fused copy is kept.
    device : "cpu", "cuda", "cuda:1", "mps".
    """

    def __init__(
        self,
        network: CompactNetwork,
        description: CompactDescription,
        *,
        weights_hash: str,
        device: str,
    ) -> None:
        self.device = device
        self.info = ModelInfo(
            name=description.name,
            weights_hash=weights_hash,
            mpp=description.mpp,
            tile=description.tile,
            halo=description.halo,
            classes=description.classes,
            colors=description.colors,
            stride=STRIDE,
            postprocessing=description.postprocessing,
        )
        self._network = fused(network).to(device).to(memory_format=torch.channels_last)
        self._lock = threading.Lock()

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps (n, 3 + classes, height, width) of tiles (n, height, width, 3) uint8.

        Any height and width that are multiples of 16 will do, not only ``info.tile``.
        """
        count, height, width, channels = tiles.shape
        if height % STRIDE or width % STRIDE or channels != 3 or tiles.dtype != np.uint8:
            raise UsageError(
                "tiles",
                f"expected uint8 (n, height, width, 3) with sides that are multiples of {STRIDE},"
                f" found {tiles.dtype} {tiles.shape}",
                "Pad the tiles.",
            )
        if not count:
            return np.empty((0, 3 + len(self.info.classes), height, width), np.float32)
        with torch.inference_mode():
            if self.device == "cpu":
                return np.stack([self._predict_tile(tile) for tile in tiles])
            return self._predict_on_device(tiles)

    def _predict_tile(self, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits, types = self._network(_normalised(torch.from_numpy(tile[None])))
        channels = logits.shape[1] + (0 if types is None else types.shape[1])
        maps = np.empty((channels, *tile.shape[:2]), np.float32)
        _sigmoid(logits[0].numpy(), maps[:3])
        if types is not None:
            _softmax(types[0].numpy(), maps[3:])
        return maps

    def _predict_on_device(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        cuda = self.device.startswith("cuda")
        batch = torch.from_numpy(np.ascontiguousarray(tiles))
        if cuda:
            batch = batch.pin_memory()
        # One thread at a time: a device's memory holds one batch, and its queue is serial.
        with self._lock, torch.autocast(self.device.split(":")[0], torch.float16, enabled=cuda):
            logits, types = self._network(_normalised(batch.to(self.device, non_blocking=cuda)))
            maps = torch.sigmoid(logits.float())
            if types is not None:
                maps = torch.cat([maps, torch.softmax(types.float(), dim=1)], dim=1)
            return maps.cpu().numpy()


def _normalised(tiles: Tensor) -> Tensor:
    """Tiles (n, h, w, 3) uint8 as (n, 3, h, w) floats, in the memory order convolutions want."""
    return (tiles.float() / 127.5 - 1.0).permute(0, 3, 1, 2)


# In NumPy, because PyTorch's exponential rounds differently where the shares of two threads
# meet; everything else in the network gives the same bits for any number of threads.


def _sigmoid(logits: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    np.clip(logits, -80.0, 80.0, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += 1.0
    np.reciprocal(out, out=out)


def _softmax(logits: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    np.subtract(logits, logits.max(axis=0), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=0)
