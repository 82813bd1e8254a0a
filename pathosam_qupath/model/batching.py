"""Tiles on their way to a device: prepared ahead, copied in batches that fit its memory.

On a GPU the stretching and resizing of a tile takes about as long as its networks. Tiles
are therefore prepared by a thread of their own, into memory from which the GPU copies by
itself, while the batch before them is computed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.preprocessing import PreparedTile, normalize, prepare

R = TypeVar("R")


def prepared_ahead(
    tiles: Sequence[NDArray[np.uint8]], side: int, ahead: int
) -> Iterator[PreparedTile]:
    """Each tile as SAM sees it, ``ahead`` of them before they are asked for."""
    with ThreadPoolExecutor(1, "prepare") as thread:
        waiting = [thread.submit(prepare, tile, side) for tile in tiles[:ahead]]
        for i in range(len(tiles)):
            if i + ahead < len(tiles):
                waiting.append(thread.submit(prepare, tiles[i + ahead], side))
            yield waiting.pop(0).result()


def upload(prepared: Sequence[PreparedTile], side: int, device: str) -> Tensor:
    """Normalised inputs of a batch on a device, (n, 3, side, side) float32.

    To an NVIDIA GPU the bytes are copied from pinned memory, without waiting for them.
    """
    pinned = device.startswith("cuda")
    return torch.cat([normalize(tile, side, device, pinned=pinned) for tile in prepared])


class BatchSize:
    """How many tiles at a time; halved when the device runs out of memory.

    Parameters
    ----------
    size : to begin with.
    subject : what a message calls the model.

    Attributes
    ----------
    size : what has worked so far, or is about to be tried.
    """

    def __init__(self, size: int, subject: str) -> None:
        self.size = max(1, size)
        self._subject = subject

    def run(self, items: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[R]]) -> list[R]:
        """Results of ``work`` for all items in order, as many at a time as there is memory for.

        Raises
        ------
        ModelError
            If not even one item fits.
        """
        results: list[R] = []
        while len(results) < len(items):
            part = items[len(results) : len(results) + self.size]
            try:
                results.extend(work(part))
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise ModelError(
                        self._subject,
                        f"not enough memory for a single tile: {str(error).splitlines()[0]}",
                        "Close other programs that use the device, or run on the CPU.",
                    ) from error
            # Outside the handler: the error holds on to the tensors of the failed batch.
            self.size = len(part) // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU that is a RuntimeError like many others."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return any(
        part in said for part in ("can't allocate memory", "out of memory", "not enough memory")
    )
