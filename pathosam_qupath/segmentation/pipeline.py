"""Nuclei of a slide's regions, as a stream of blocks.

Three things go on at once: tiles are read, the network makes maps of them, and finished
blocks are turned into polygons. Memory holds the maps of a block or two and of the row of
tiles that the next row of blocks needs too, whatever the size of the slide.

The result is a function of the slide, the regions, the model and its thresholds: neither
the size of blocks, nor the batch, the threads or the order in which they finish matters.
``tiling`` fixes what each tile sees, ``watershed`` what each object is, and nuclei are
sorted by the position of their seeds.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.model.interface import NucleusModel
from pathosam_qupath.model.interrupting import interruptible
from pathosam_qupath.model.prompts import promptable
from pathosam_qupath.segmentation.apg import SeedPrompts, prompted_objects
from pathosam_qupath.segmentation.block_plan import (
    BlockPlan,
    Mode,
    SegmentableSlide,
    SegmentOptions,
    plan_blocks,
)
from pathosam_qupath.segmentation.nuclei import nuclei_frame
from pathosam_qupath.segmentation.objects import Objects, block_objects
from pathosam_qupath.segmentation.tile_maps import Quality, TileMaps, TileStore, one_thread_each
from pathosam_qupath.segmentation.tiling import Block, TileIndex

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

__all__ = [
    "BlockPlan",
    "BlockResult",
    "Progress",
    "SegmentOptions",
    "SegmentableSlide",
    "iter_segment",
    "nuclei_frame",
    "plan_blocks",
    "segment",
    "segment_blocks",
]


@dataclass(frozen=True, eq=False)
class BlockResult:
    """What was found in one block.

    Attributes
    ----------
    number : the block's place in the plan.
    quality : (column, row) of the block's tiles that are blank or out of focus. A tile
        belongs to all blocks that look at it.
    """

    number: int
    objects: Objects
    quality: Mapping[TileIndex, Quality]


@dataclass(frozen=True)
class Progress:
    """How far a run is. Seconds are summed over the threads of each stage."""

    tiles_done: int
    tiles_total: int
    nuclei: int
    seconds_read: float
    seconds_network: float
    seconds_postprocess: float


def segment(
    slide: SegmentableSlide,
    regions: Sequence[BaseGeometry] | None,
    model: NucleusModel,
    *,
    options: SegmentOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> GeoDataFrame:
    """Nuclei whose centroid lies in one of the regions.

    Parameters
    ----------
    slide : an open slide.
    regions : polygons or multipolygons in slide pixels; where they overlap, a nucleus is
        found once. None means the whole slide.
    model : the network.
    options : see :class:`SegmentOptions`.
    progress : called from this thread as tiles and blocks are finished.

    Returns
    -------
    One row per nucleus, sorted by position: ``id`` (UUID as text), ``classification`` (name
    or None), ``probability`` (of that class; NaN for a model without classes), ``geometry``
    (polygon in slide pixels), then measurements: QuPath's shape features in µm, and
    "Probability: <class>" for every class.
    """
    options = options or SegmentOptions()
    plan = plan_blocks(slide, regions, model.info, options)
    results = segment_blocks(plan, model, options=options, progress=progress)
    return nuclei_frame([r.objects for r in results], slide.mpp, model.info, options)


def iter_segment(
    slide: SegmentableSlide,
    regions: Sequence[BaseGeometry] | None,
    model: NucleusModel,
    *,
    options: SegmentOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[GeoDataFrame]:
    """The rows of :func:`segment`, one frame per finished block, always in the same order.

    Blocks are computed ahead by a few tiles only; closing the iterator ends the work.
    """
    options = options or SegmentOptions()
    if options.seed is None:
        options = replace(options, seed=str(uuid.uuid4()))
    plan = plan_blocks(slide, regions, model.info, options)
    with closing(segment_blocks(plan, model, options=options, progress=progress)) as results:
        for result in results:
            yield nuclei_frame([result.objects], slide.mpp, model.info, options)


def segment_blocks(
    plan: BlockPlan,
    model: NucleusModel,
    *,
    options: SegmentOptions,
    done: Collection[int] = (),
    progress: Callable[[Progress], None] | None = None,
    store: TileStore | None = None,
) -> Generator[BlockResult, None, None]:
    """Objects in the treated region, block by block; closing the generator ends the work.

    Parameters
    ----------
    done : numbers of blocks that need not be computed again. Neither the objects of the
        others nor their order depend on it.
    store : keeps tiles for the next call of the same plan, model and options.
    """
    info = model.info
    parameters = options.postprocessing or info.postprocessing
    region = plan.region
    if region is not None:
        shapely.prepare(region)
    left = [(number, block) for number, block in enumerate(plan.blocks) if number not in done]
    seeds = SeedPrompts(promptable(model), plan.grid) if options.mode == "apg" else None
    clock = _Clock()
    tiles_done = nuclei = 0

    def report(tiles: int = 0) -> None:
        nonlocal tiles_done
        tiles_done += tiles
        if progress is not None:
            progress(
                Progress(
                    tiles_done,
                    maps.total,
                    nuclei,
                    maps.seconds_read,
                    maps.seconds_network,
                    clock.seconds,
                )
            )

    def objects_of(block: Block) -> Objects:
        with clock, interruptible(maps.check):
            if seeds is not None:
                embedding_of = partial(maps.embedding, strip=block.strip)
                return prompted_objects(
                    block.inner,
                    plan.grid.box,
                    partial(maps.window, strip=block.strip),
                    partial(maps.classes, strip=block.strip),
                    partial(seeds.masks, embedding_of=embedding_of),
                    parameters,
                    scale=plan.pixels.scale,
                    region=region,
                    tolerance=options.tolerance,
                )
            return block_objects(
                block.inner,
                plan.grid.box,
                partial(maps.window, strip=block.strip),
                partial(maps.classes, strip=block.strip),
                parameters,
                scale=plan.pixels.scale,
                tolerance=options.tolerance,
            )

    maps = TileMaps(
        plan.pixels,
        plan.grid,
        plan.wanted,
        [block for _, block in left],
        model,
        embed=seeds is not None,
        batch_size=options.batch_size,
        network_threads=options.network_threads,
        read_threads=options.read_threads,
        tile_done=report,
        store=store,
    )
    threads = options.postprocess_threads or _postprocess_threads(model.device, options.mode)
    with maps:
        workers = ThreadPoolExecutor(
            threads, "postprocess", initializer=one_thread_each if model.device == "cpu" else None
        )
        under_way: deque[tuple[int, Block, Future[Objects]]] = deque()
        waiting = deque(left)
        try:
            while waiting or under_way:
                if waiting:
                    maps.wait_for(waiting[0][1])
                    if len(under_way) < threads:
                        number, block = waiting.popleft()
                        under_way.append((number, block, workers.submit(objects_of, block)))
                        continue
                number, block, result = under_way.popleft()
                objects = _within(result.result(), region)
                quality = maps.quality(block)
                maps.release(block)
                nuclei += len(objects.anchors)
                report()
                yield BlockResult(number, objects, quality)
        finally:
            maps.end()
            workers.shutdown(wait=True, cancel_futures=True)


class _Clock:
    """Seconds spent inside ``with``, summed over threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._started = threading.local()

    def __enter__(self) -> None:
        self._started.at = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.seconds += time.perf_counter() - self._started.at


def _postprocess_threads(device: str, mode: Mode) -> int:
    """One where the network needs the cores itself, else up to four.

    On the CPU automatic prompts take longer than the maps: then one per core.
    """
    cores = os.cpu_count() or 1
    if device == "cpu":
        return cores if mode == "apg" else 1
    return max(1, min(4, cores // 2))


def _within(objects: Objects, region: BaseGeometry | None) -> Objects:
    """The objects whose centroid lies in the region or on its border."""
    if region is None or not len(objects.polygons):
        return objects
    centroids = shapely.get_coordinates(shapely.centroid(objects.polygons))
    inside = shapely.intersects_xy(region, centroids[:, 0], centroids[:, 1])
    return Objects(objects.anchors[inside], objects.polygons[inside], objects.class_sums[inside])
