"""From an image's finished blocks to the nuclei in its record, a batch at a time.

The blocks are on disk (``block_ledger``) and so are the nuclei (``run_predictions``); what
lies between the two holds a few batches, whatever the size of the slide.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.ahead import computed_ahead
from pathosam_qupath.segmentation.objects import Objects
from pathosam_qupath.segmentation.pipeline import BlockResult
from pathosam_qupath.segmentation.tile_maps import Quality

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.run_predictions import StoredNuclei

BATCH = 4096
"""Nuclei from which a batch is full; it ends with the block that fills it."""

_THREADS = 2
"""Batches that are measured at a time, while another is written."""

_KINDS: tuple[Quality, ...] = ("blank", "blurred")


@dataclass(frozen=True, eq=False)
class Gathered:
    """What an image's blocks hold.

    Attributes
    ----------
    stored : the nuclei, in the record.
    areas : (n,) float32, square slide pixels of all that were found, stored or not.
    blank, blurred : tiles of each kind.
    """

    stored: StoredNuclei
    areas: NDArray[np.float32]
    blank: int
    blurred: int

    @property
    def left_out(self) -> int:
        """Nuclei that were found and not stored."""
        return len(self.areas) - len(self.stored)


def gather(
    results: Iterable[BlockResult],
    grid: tuple[int, int],
    *,
    frame_of: Callable[[Sequence[Objects]], gpd.GeoDataFrame],
    fit: Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame],
    store: Callable[[Iterator[gpd.GeoDataFrame]], StoredNuclei],
) -> Gathered:
    """Turn blocks to nuclei and store them.

    Parameters
    ----------
    results : of all blocks, in an order that does not depend on how the run went.
    grid : columns and rows of tiles.
    frame_of : makes rows of objects.
    fit : drops nuclei that are not wanted, and completes the rows of the others.
    store : writes frames as they come.
    """
    kinds = np.zeros(grid, np.uint8)
    areas = [np.zeros(0, np.float32)]

    def objects() -> Iterator[list[Objects]]:
        for batch in _batches(results):
            for result in batch:
                for tile, kind in result.quality.items():
                    kinds[tile] = 1 + _KINDS.index(kind)
            yield [result.objects for result in batch]

    def frames() -> Generator[gpd.GeoDataFrame, None, None]:
        for nuclei in computed_ahead(frame_of, objects(), _THREADS):
            areas.append(nuclei.geometry.area.to_numpy(np.float32))
            yield fit(nuclei)

    with closing(frames()) as made:
        stored = store(made)
    blank, blurred = (int((kinds == 1 + i).sum()) for i in range(len(_KINDS)))
    return Gathered(stored, np.concatenate(areas), blank, blurred)


def _batches(results: Iterable[BlockResult]) -> Iterator[list[BlockResult]]:
    """Blocks in full batches, and what is left; at least one batch."""
    batch: list[BlockResult] = []
    count = 0
    for result in results:
        batch.append(result)
        count += len(result.objects.anchors)
        if count >= BATCH:
            yield batch
            batch, count = [], 0
    yield batch
