"""The compact network behind the interfaces that segmentation and prompts ask for."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model.compact_prompts import CompactEmbedding, answer
from pathosam_qupath.model.interface import ModelInfo
from pathosam_qupath.model.network import STRIDE, CompactNetwork, Outputs, fused
from pathosam_qupath.model.prompt_decoder import PromptDecoder
from pathosam_qupath.model.prompts import Arrays, Prompt, PromptedMask
from pathosam_qupath.model.weights import CompactDescription


class CompactModel:
    """A compact network as a :class:`~pathosam_qupath.model.interface.NucleusModel` and a
    :class:`~pathosam_qupath.model.prompts.PromptableModel`.

    On the CPU every tile goes through the network alone, so its maps are the same bits
    whatever the batch and the number of threads: in bfloat16 where the processor multiplies
    it, else in float32. On a GPU the whole batch goes through in half precision.

    Parameters
    ----------
    network : in evaluation mode or not; a fused copy is kept.
    device : "cpu", "cuda", "cuda:1", "mps".
    dtype : of the computation; None chooses by the device.
    """

    def __init__(
        self,
        network: CompactNetwork,
        description: CompactDescription,
        *,
        weights_hash: str,
        device: str,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = device
        self._dtype = dtype or _fastest_dtype(device)
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
            precision=str(self._dtype).removeprefix("torch."),
        )
        exact = device == "cpu" and self._dtype == torch.float32
        self._network = fused(network, without_1x1=exact).to(device, self._dtype)
        self._network.to(memory_format=torch.channels_last)
        self._lock = threading.Lock()

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps (n, 3 + classes, height, width) of tiles (n, height, width, 3) uint8.

        Any height and width that are multiples of 32 will do, not only ``info.tile``.
        """
        count, height, width = _checked(tiles)
        if not count:
            return np.empty((0, 3 + len(self.info.classes), height, width), np.float32)
        with torch.inference_mode():
            if self.device == "cpu":
                return np.stack([self._maps(self._outputs(tile[None])) for tile in tiles])
            # One thread at a time: a device's memory holds one batch, its queue is serial.
            with self._lock:
                outputs = self._outputs(tiles)
                maps = torch.sigmoid(outputs.logits.float())
                if outputs.types is not None:
                    shares = torch.softmax(outputs.types.float(), dim=1)
                    shares = functional.interpolate(shares, maps.shape[2:], mode="bilinear")
                    maps = torch.cat([maps, shares], dim=1)
                return maps.cpu().numpy()

    def embed(self, tile: NDArray[np.uint8]) -> CompactEmbedding:
        """What prompts need of a tile (height, width, 3) uint8; sides as for `predict`."""
        self._prompt_decoder()
        _checked(tile[None])
        with torch.inference_mode(), self._lock:
            outputs = self._outputs(tile[None])
            height, width = outputs.coarse.shape[2:]
            types = torch.zeros(0, height * 2, width * 2)
            if outputs.types is not None:
                types = torch.softmax(outputs.types[0].float(), dim=0)
            pixels = torch.from_numpy(np.array(tile)).permute(2, 0, 1).contiguous()
            return CompactEmbedding(
                pixels.to(self.device),
                torch.sigmoid(outputs.logits[0].float()).half().contiguous(),
                types.half().contiguous(),
                outputs.middle[0].half().contiguous(),
                outputs.coarse[0].half().contiguous(),
            )

    def embedding_from_arrays(self, arrays: Arrays) -> CompactEmbedding:
        """The way back from ``CompactEmbedding.to_arrays``."""
        widths = self._network.config.widths
        embedding = CompactEmbedding.from_arrays(
            arrays, (widths[1], widths[2]), len(self.info.classes)
        )
        return embedding.to(self.device)

    def prompt(self, embedding: CompactEmbedding, prompts: Sequence[Prompt]) -> list[PromptedMask]:
        """The object of each prompt, in pixels of the embedded tile."""
        decoder = self._prompt_decoder()
        with torch.inference_mode():
            return answer(decoder, embedding, prompts)

    def embedded_maps(self, embedding: CompactEmbedding) -> NDArray[np.float32]:
        """Foreground, centre and boundary distance (3, height, width) of the tile."""
        return embedding.maps.float().cpu().numpy()

    def embedded_classes(self, embedding: CompactEmbedding) -> NDArray[np.float32] | None:
        """Class probabilities (classes, height, width) of the tile, or None without classes."""
        if not self.info.classes:
            return None
        shares = np.empty((len(self.info.classes), *embedding.original_size), np.float32)
        _enlarge(embedding.types.float().cpu().numpy(), shares)
        return shares

    def _prompt_decoder(self) -> PromptDecoder:
        decoder: PromptDecoder | None = self._network.prompts
        if decoder is None:
            raise ModelError(
                self.info.name,
                "it was trained without prompts",
                "Use the bundled model, or train with a `prompts` section in the configuration.",
            )
        return decoder

    def _outputs(self, tiles: NDArray[np.uint8]) -> Outputs:
        """The network's outputs for tiles that have been checked."""
        batch = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device)
        # In this memory order convolutions want their input.
        outputs: Outputs = self._network.outputs(
            (batch.float() / 127.5 - 1.0).permute(0, 3, 1, 2).to(self._dtype)
        )
        return outputs

    def _maps(self, outputs: Outputs) -> NDArray[np.float32]:
        """Maps (3 + classes, height, width) of one tile on the CPU."""
        logits = outputs.logits[0].float().numpy()
        maps = np.empty((3 + len(self.info.classes), *logits.shape[1:]), np.float32)
        _sigmoid(logits, maps[:3])
        if outputs.types is not None:
            _enlarge(_softmax(outputs.types[0].float().numpy()), maps[3:])
        return maps


def _fastest_dtype(device: str) -> torch.dtype:
    """Half precision on CUDA, bfloat16 on processors that multiply it, else float32."""
    if device.startswith("cuda"):
        return torch.float16
    if device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _checked(tiles: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Number, height and width of tiles that the network can take."""
    count, height, width, channels = tiles.shape
    if height % STRIDE or width % STRIDE or channels != 3 or tiles.dtype != np.uint8:
        raise UsageError(
            "tiles",
            f"expected uint8 (n, height, width, 3) with sides that are multiples of {STRIDE},"
            f" found {tiles.dtype} {tiles.shape}",
            "Pad the tiles.",
        )
    return count, height, width


# In NumPy, because PyTorch's exponential rounds differently where the shares of two threads
# meet; everything else in the network gives the same bits for any number of threads.


def _sigmoid(logits: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    np.clip(logits, -80.0, 80.0, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += 1.0
    np.reciprocal(out, out=out)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shares = np.exp(logits - logits.max(axis=0))
    return np.asarray(shares / shares.sum(axis=0), np.float32)


def _enlarge(shares: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Coarse class probabilities at the size of ``out``; they still sum to one."""
    size = (out.shape[2], out.shape[1])
    for share, enlarged in zip(shares, out, strict=True):
        enlarged[...] = cv2.resize(share, size, interpolation=cv2.INTER_LINEAR)
