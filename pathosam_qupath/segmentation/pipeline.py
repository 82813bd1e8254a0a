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

import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.interface import NucleusModel, Postprocessing
from pathosam_qupath.segmentation.classes import MODEL_NAMES, ClassMap, classify
from pathosam_qupath.segmentation.measurements import shape_measurements
from pathosam_qupath.segmentation.objects import MARGINS, Objects, block_objects, joined
from pathosam_qupath.segmentation.polygons import TOLERANCE
from pathosam_qupath.segmentation.tile_maps import TileMaps
from pathosam_qupath.segmentation.tiling import (
    Block,
    ScaledPixels,
    TileGrid,
    blocks,
    treated_region,
    wanted_tiles,
)
from pathosam_qupath.segmentation.watershed import smoothing_reach

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

CONTEXT = 64
"""Scaled pixels around a region whose maps are computed too: a nucleus whose centroid lies
in the region reaches no farther."""


class SegmentableSlide(Protocol):
    """What the segmentation asks of a slide (``pathosam_qupath.slide``)."""

    @property
    def width(self) -> int:
        """Full-resolution pixels in x."""

    @property
    def height(self) -> int:
        """Full-resolution pixels in y."""

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per pixel in x and y."""

    def at(self, mpp: float, /) -> ScaledPixels:
        """The slide at another resolution."""


@dataclass(frozen=True)
class SegmentOptions:
    """How to segment. The first group changes the result, the second only speed and memory.

    Attributes
    ----------
    postprocessing : thresholds; None takes the model's.
    class_map : names of classes in the project.
    seed : ids of nuclei follow from this text and their position, so the same run gives
        the same ids. Let it name the run and the image. None gives new ids each time.
    tolerance : of the polygons, in pixels at the model's resolution.
    block : about how many such pixels a block's side has.
    batch_size : tiles per call of the network; None chooses by the device.
    network_threads : calls of the network at a time; None: one per core on the CPU, else 1.
    read_threads, postprocess_threads : None for the latter chooses by the device.
    """

    postprocessing: Postprocessing | None = None
    class_map: ClassMap = MODEL_NAMES
    seed: str | None = None
    tolerance: float = TOLERANCE

    block: int = 1024
    batch_size: int | None = None
    network_threads: int | None = None
    read_threads: int = 2
    postprocess_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("block", "batch_size", "network_threads", "read_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(name, f"{value} is not possible", "Give 1 or more.")


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
    found = list(_segmented(slide, regions, model, options, progress))
    return _frame(joined([_nothing(model), *found]), slide, model, options, _namespace(options))


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
    namespace = _namespace(options)
    for objects in _segmented(slide, regions, model, options, progress):
        yield _frame(objects, slide, model, options, namespace)


def _segmented(
    slide: SegmentableSlide,
    regions: Sequence[BaseGeometry] | None,
    model: NucleusModel,
    options: SegmentOptions,
    progress: Callable[[Progress], None] | None,
) -> Iterator[Objects]:
    """Objects in the treated region, block by block."""
    info = model.info
    parameters = options.postprocessing or info.postprocessing
    pixels = slide.at(info.mpp)
    grid = TileGrid.of_slide((slide.width, slide.height), pixels.scale, info.tile, info.halo)
    region = None if regions is None else treated_region(regions)
    wanted = np.ones((grid.rows, grid.columns), bool)
    if region is not None:
        wanted = wanted_tiles(grid, region, pixels.scale, CONTEXT)
        shapely.prepare(region)
    plan = blocks(
        grid, wanted, side=options.block, margin=MARGINS[-1] + 2 * smoothing_reach(parameters)
    )
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
        with clock:
            return block_objects(
                block.inner,
                grid.box,
                partial(maps.window, strip=block.strip),
                parameters,
                scale=pixels.scale,
                tolerance=options.tolerance,
            )

    maps = TileMaps(
        pixels,
        grid,
        wanted,
        plan,
        model,
        batch_size=options.batch_size,
        network_threads=options.network_threads,
        read_threads=options.read_threads,
        tile_done=report,
    )
    threads = options.postprocess_threads or _postprocess_threads(model.device)
    with maps:
        workers = ThreadPoolExecutor(threads, "postprocess")
        under_way: deque[tuple[Block, Future[Objects]]] = deque()
        waiting = deque(plan)
        try:
            while waiting or under_way:
                if waiting and len(under_way) < threads:
                    maps.wait_for(waiting[0])
                    block = waiting.popleft()
                    under_way.append((block, workers.submit(objects_of, block)))
                    continue
                if waiting:
                    maps.wait_for(waiting[0])
                block, result = under_way.popleft()
                objects = _within(result.result(), region)
                maps.release(block)
                nuclei += len(objects.anchors)
                report()
                yield objects
        finally:
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


def _postprocess_threads(device: str) -> int:
    """One where the network needs the cores itself, else up to four."""
    return 1 if device == "cpu" else max(1, min(4, (os.cpu_count() or 1) // 2))


def _within(objects: Objects, region: BaseGeometry | None) -> Objects:
    """The objects whose centroid lies in the region or on its border."""
    if region is None or not len(objects.polygons):
        return objects
    centroids = shapely.get_coordinates(shapely.centroid(objects.polygons))
    inside = shapely.intersects_xy(region, centroids[:, 0], centroids[:, 1])
    return Objects(objects.anchors[inside], objects.polygons[inside], objects.class_sums[inside])


def _nothing(model: NucleusModel) -> Objects:
    return Objects(
        np.zeros((0, 2), np.int64), np.zeros(0, object), np.zeros((0, len(model.info.classes)))
    )


def _namespace(options: SegmentOptions) -> uuid.UUID:
    if options.seed is None:
        return uuid.uuid4()
    return uuid.uuid5(uuid.NAMESPACE_OID, f"pathosam-qupath nuclei {options.seed}")


def _frame(
    objects: Objects,
    slide: SegmentableSlide,
    model: NucleusModel,
    options: SegmentOptions,
    namespace: uuid.UUID,
) -> GeoDataFrame:
    """Rows of objects: ids, classes, measurements."""
    from geopandas import GeoDataFrame

    classes = classify(objects.class_sums, model.info.classes, options.class_map)
    kept = classes.kept
    polygons = objects.polygons[kept]
    columns: dict[str, NDArray[np.object_] | NDArray[np.float64]] = {
        "id": np.array(
            [str(uuid.uuid5(namespace, f"{x},{y}")) for x, y in objects.anchors[kept].tolist()],
            object,
        ),
        "classification": classes.classification[kept],
        "probability": classes.probability[kept],
        "geometry": polygons,
    }
    mpp = slide.mpp if slide.mpp is not None and all(map(math.isfinite, slide.mpp)) else None
    columns.update(shape_measurements(polygons, mpp))
    columns.update({name: value[kept] for name, value in classes.measurements.items()})
    return GeoDataFrame(columns, geometry="geometry")
