"""Network maps of tiles: read ahead, computed in threads, held only while needed.

A tile is read by one thread pool and goes through the network in another, so that pixels
of the next tiles are decoded while the network works. Its maps stay until every block that
looks at them is done; which tiles those are is known beforehand, so nothing is computed
twice but the few tiles that two strips of blocks share (``tiling.STRIP``).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.model.interface import NucleusModel
from pathosam_qupath.model.interrupting import interruptible, watch_layers
from pathosam_qupath.model.prompts import PromptableModel, TileEmbedding, promptable
from pathosam_qupath.segmentation.focus import is_blank, is_blurred
from pathosam_qupath.segmentation.opencv import without_own_threads
from pathosam_qupath.segmentation.tiling import (
    Block,
    Box,
    ScaledPixels,
    TileGrid,
    TileIndex,
    read_tile,
)

Maps = NDArray[np.float32]

Quality = Literal["blank", "blurred"]

_Seen = tuple[NDArray[np.uint8], "Quality | None"]
"""RGB of a tile, and what is to be said of it."""

_Key = tuple[int, TileIndex]
"""A tile as one strip of blocks holds it."""


class _TileResult(NamedTuple):
    """What is kept of a tile; maps and embedding are None where nothing can be in it."""

    maps: Maps | None
    quality: Quality | None
    embedding: TileEmbedding | None

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        maps = 0 if self.maps is None else self.maps.nbytes
        return 64 + maps + (0 if self.embedding is None else self.embedding.nbytes)


_CPU_BATCH = 1
_GPU_BATCH = 16


class EndedError(Exception):
    """Nobody waits any more for what a thread was computing."""


class TileStore:
    """What one call found of an image's tiles, for the next one that looks at them.

    Blocks that are next to each other share tiles; where they are asked for in several
    calls, the tiles of the last one are still here. The oldest make room. Thread-safe.

    Parameters
    ----------
    limit : bytes to hold.
    """

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self._limit = limit
        self._bytes = 0
        self._results: OrderedDict[TileIndex, _TileResult] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tile: TileIndex) -> _TileResult | None:
        """What was found of a tile, if it is still held."""
        with self._lock:
            return self._results.get(tile)

    def put(self, tile: TileIndex, result: _TileResult) -> None:
        """Hold a tile, as the youngest."""
        with self._lock:
            if tile in self._results:
                self._results.move_to_end(tile)
                return
            self._results[tile] = result
            self._bytes += result.nbytes
            while self._bytes > self._limit and self._results:
                self._bytes -= self._results.popitem(last=False)[1].nbytes


class TileMaps:
    """The maps of a slide's wanted tiles, for blocks that are taken in order.

    A context manager: leaving it ends its threads, whether the work is done or not; on the CPU
    before the next layer of the network.

    Parameters
    ----------
    pixels : the slide at the model's resolution.
    wanted : (rows, columns) bool; other tiles are background.
    blocks : in the order in which :meth:`wait_for` will be called with them.
    embed : make embeddings, keep them, and take the maps from them, for prompts.
    batch_size, network_threads : None chooses by the model's device. Off the CPU every
        batch is filled up to ``batch_size``: kernels there are chosen by the batch's shape.
    tile_done : called in the caller's thread after each batch with the number of tiles.
    store : tiles found here are not computed again; those computed are put into it.

    Attributes
    ----------
    total : tiles to compute.
    seconds_read, seconds_network : time that threads spent so far, summed over them.
    """

    def __init__(
        self,
        pixels: ScaledPixels,
        grid: TileGrid,
        wanted: NDArray[np.bool_],
        blocks: Sequence[Block],
        model: NucleusModel,
        *,
        embed: bool = False,
        batch_size: int | None = None,
        network_threads: int | None = None,
        read_threads: int = 2,
        tile_done: Callable[[int], None] = lambda tiles: None,
        store: TileStore | None = None,
    ) -> None:
        on_cpu = model.device == "cpu"
        self.channels = 3 + len(model.info.classes)
        self.seconds_read = 0.0
        self.seconds_network = 0.0
        self._pixels, self._grid, self._wanted, self._model = pixels, grid, wanted, model
        self._tile_done = tile_done
        self._batch_size = batch_size or (_CPU_BATCH if on_cpu else _GPU_BATCH)
        threads = network_threads or ((os.cpu_count() or 1) if on_cpu else 1)
        self._depth = 2 * threads
        self._pad_batches = not on_cpu
        self._users = Counter(key for block in blocks for key in _keys(block))
        self._lock = threading.Lock()
        self._embedder = promptable(model) if embed else None
        self._store = store
        self._held: dict[_Key, _TileResult] = {}
        if store is not None:
            known = ((key, store.get(key[1])) for key in self._users)
            self._held = {key: result for key, result in known if result is not None}
        keys = [key for key in self._users if key not in self._held]
        size = self._batch_size
        self._batches = iter([keys[i : i + size] for i in range(0, len(keys), size)])
        self.total = len(keys)
        self._under_way: deque[tuple[list[_Key], Future[list[_TileResult]]]] = deque()
        self._stopping = threading.Event()
        if on_cpu and "torch" in sys.modules:
            watch_layers()
        without_own_threads()
        self._readers = ThreadPoolExecutor(read_threads, "read")
        self._network = ThreadPoolExecutor(
            threads, "network", initializer=one_thread_each if on_cpu else None
        )

    def __enter__(self) -> TileMaps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._network.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._held.clear()

    def wait_for(self, block: Block) -> None:
        """Return when the maps of a block's tiles are there.

        Raises
        ------
        Whatever reading the slide or the network raised.
        """
        missing = {key for key in _keys(block) if key not in self._held}
        while missing:
            self._top_up()
            batch, result = self._under_way.popleft()
            done = result.result()
            with self._lock:
                self._held.update(zip(batch, done, strict=True))
            missing.difference_update(batch)
            self._top_up()
            self._tile_done(len(batch))

    def release(self, block: Block) -> None:
        """Forget the maps that no block after this one needs."""
        with self._lock:
            for key in _keys(block):
                self._users[key] -= 1
                if not self._users[key]:
                    result = self._held.pop(key)
                    if self._store is not None:
                        self._store.put(key[1], result)

    def quality(self, block: Block) -> dict[TileIndex, Quality]:
        """Which tiles of a block are blank or out of focus; ask before :meth:`release`."""
        with self._lock:
            known = {tile: self._held[strip, tile].quality for strip, tile in _keys(block)}
        return {tile: quality for tile, quality in known.items() if quality is not None}

    def embedding(self, tile: TileIndex, strip: int) -> TileEmbedding:
        """The embedding of a tile that is there and not blank. Thread-safe.

        Raises
        ------
        KeyError
            If there is none.
        """
        with self._lock:
            embedding = self._held[strip, tile].embedding
        if embedding is None:
            raise KeyError(tile)
        return embedding

    def window(self, box: Box, strip: int) -> Maps:
        """Foreground and distances of a box in the tiles of a block that was waited for and
        is not released.

        (3, height, width) float32; background (foreground 0, distances 1) where tiles are
        not wanted or blank. Thread-safe.
        """
        maps = np.empty((3, box.height, box.width), np.float32)
        for part, tile_maps in self._parts(box, strip):
            inside = (slice(None), *part.slices(box))
            if tile_maps is None:
                maps[inside] = 0
                maps[1:][inside] = 1
            else:
                maps[inside] = tile_maps[:3]
        return maps

    def classes(self, box: Box, at: NDArray[np.int64], strip: int) -> Maps:
        """Class probabilities of pixels of a box as in :meth:`window`; 0 in the background.

        Parameters
        ----------
        at : (n,) row-major index of each pixel in the box.

        Returns
        -------
        probabilities : (classes, n) float32.
        """
        found = np.zeros((self.channels - 3, len(at)), np.float32)
        if not len(found):
            return found
        rows, columns = np.divmod(at, box.width)
        for part, tile_maps in self._parts(box, strip):
            if tile_maps is None:
                continue
            y, x = (place.start for place in part.slices(box))
            row, column = rows - y, columns - x
            # Below 0 is beyond any height and width as an unsigned number.
            of_part = row.view(np.uint64) < np.uint64(part.height)
            of_part &= column.view(np.uint64) < np.uint64(part.width)
            some = np.flatnonzero(of_part)
            for values, tile_map in zip(found, tile_maps[3:], strict=True):
                values[some] = tile_map[row[some], column[some]]
        return found

    def _parts(self, box: Box, strip: int) -> Iterator[tuple[Box, Maps | None]]:
        """The parts of a box that lie in one tile each, and that tile's maps of them."""
        tiles = list(self._grid.tiles_of(box))
        with self._lock:
            known = {t: self._held[strip, t].maps for t in tiles if self._wanted[t[1], t[0]]}
        for tile in tiles:
            whole = self._grid.tile_box(tile)
            part = whole.clipped(box)
            maps = known.get(tile)
            yield part, None if maps is None else maps[(slice(None), *part.slices(whole))]

    def check(self) -> None:
        """Raise in a thread whose work nobody waits for any more.

        Raises
        ------
        EndedError
            If the context has been left.
        """
        if self._stopping.is_set():
            raise EndedError

    def end(self) -> None:
        """Let threads know that nobody waits for them any more; leaving the context does, too."""
        self._stopping.set()

    def _top_up(self) -> None:
        while len(self._under_way) < self._depth:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._under_way.append((batch, self._submit([tile for _, tile in batch])))

    def _submit(self, batch: list[TileIndex]) -> Future[list[_TileResult]]:
        reads = [self._readers.submit(self._read, tile) for tile in batch]
        return self._network.submit(self._predict, batch, reads)

    def _read(self, tile: TileIndex) -> _Seen:
        start = time.perf_counter()
        rgb = read_tile(self._pixels, self._grid, tile)
        quality: Quality | None = None
        if is_blank(rgb):
            quality = "blank"
        elif is_blurred(rgb, self._model.info.mpp):
            quality = "blurred"
        with self._lock:
            self.seconds_read += time.perf_counter() - start
        return rgb, quality

    def _predict(self, batch: list[TileIndex], reads: list[Future[_Seen]]) -> list[_TileResult]:
        tiles, quality = zip(*(read.result() for read in reads), strict=True)
        maps: list[Maps | None] = [None] * len(batch)
        embeddings: list[TileEmbedding | None] = [None] * len(batch)
        start = time.perf_counter()
        shown = [i for i, seen in enumerate(quality) if seen != "blank"]
        self.check()
        with interruptible(self.check):
            if self._embedder is not None:
                for i in shown:
                    embeddings[i], whole = _embedded(self._embedder, tiles[i])
                    maps[i] = self._inside(batch[i], whole)
            elif shown:
                fill = self._batch_size - len(shown) if self._pad_batches else 0
                stack = np.stack([tiles[i] for i in (*shown, *[shown[0]] * fill)])
                for i, whole in zip(shown, self._model.predict(stack), strict=False):
                    maps[i] = self._inside(batch[i], whole)
        with self._lock:
            self.seconds_network += time.perf_counter() - start
        return list(map(_TileResult, maps, quality, embeddings))

    def _inside(self, tile: TileIndex, maps: Maps) -> Maps:
        """The part of a tile's maps that is used."""
        halo, box = self._grid.halo, self._grid.tile_box(tile)
        return maps[:, halo : halo + box.height, halo : halo + box.width].copy()


def _embedded(
    model: PromptableModel[TileEmbedding], rgb: NDArray[np.uint8]
) -> tuple[TileEmbedding, Maps]:
    """Embedding of a tile, and the maps that the model predicts of it."""
    embedding = model.embed(rgb)
    maps, classes = model.embedded_maps(embedding), model.embedded_classes(embedding)
    return embedding, maps if classes is None else np.concatenate([maps, classes])


def _keys(block: Block) -> list[_Key]:
    return [(block.strip, tile) for tile in block.tiles]


def one_thread_each() -> None:
    """Let each network thread work alone.

    torch rounds differently with another number of threads inside one operation, so tiles,
    not operations, are spread over the cores. A model that runs on torch has imported it.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
