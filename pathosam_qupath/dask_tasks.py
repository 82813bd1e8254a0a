"""What runs inside a Dask worker: load the model once, compute blocks, say how it goes.

A worker keeps its model, and per thread the slide it works on with the tiles that the next
blocks need too. Results travel as the ledger stores them: an Arrow stream per block.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.block_ledger import packed
from pathosam_qupath.c_memory import keep_freed_memory
from pathosam_qupath.errors import ImageError, PathosamError, SchedulerError
from pathosam_qupath.estimates import tile_seconds
from pathosam_qupath.resuming import image_digest
from pathosam_qupath.segmentation.pipeline import (
    BlockPlan,
    Progress,
    SegmentOptions,
    segment_blocks,
)
from pathosam_qupath.segmentation.tile_maps import TileStore, one_thread_each
from pathosam_qupath.segmentation.tiling import Block, TileGrid
from pathosam_qupath.slide import SlideFile

if TYPE_CHECKING:
    from distributed import Worker

    from pathosam_qupath.model.interface import ModelInfo, NucleusModel
    from pathosam_qupath.slide import Slide

Loader = Callable[[], "NucleusModel"]
"""Loads a model; it is sent to workers, and two that load the same are equal."""

LIBRARIES = ("numpy", "opencv-python-headless", "scikit-image", "scipy", "shapely", "torch")
"""Other versions of these may draw other outlines."""

_TELL_EVERY = 1.0
"""Seconds between two messages about blocks that are being computed."""


@dataclass(frozen=True)
class About:
    """What a worker says of itself.

    Attributes
    ----------
    host : the computer's name.
    cores : numbers of the cores that it may use.
    info, device : of the model it has loaded.
    processor : what the network runs on: the GPU, or the processor's instruction set.
    versions : of the libraries that outlines depend on.
    """

    host: str
    cores: frozenset[int]
    info: ModelInfo
    device: str
    processor: str
    versions: Mapping[str, str | None]


@dataclass(frozen=True, eq=False)
class Job:
    """What workers need to know of an image.

    Attributes
    ----------
    token : names the image in this run.
    load, weights_hash : the model, and what its weights must be.
    digest : of the slide's file (``resuming.image_digest``).
    grid, wanted, region, blocks : the plan, without its pixels.
    """

    token: str
    load: Loader
    weights_hash: str
    file: SlideFile
    digest: str
    grid: TileGrid
    wanted: NDArray[np.bool_]
    region: BaseGeometry | None
    blocks: tuple[Block, ...]
    options: SegmentOptions


@dataclass(frozen=True)
class Portion:
    """Blocks that a worker has finished.

    Attributes
    ----------
    worker : its name.
    blocks : (number, packed block), see :func:`block_ledger.packed`.
    nuclei : in them.
    tiles : of the network that this took.
    seconds : from beginning to end; then summed over the threads of each stage.
    """

    worker: str
    blocks: tuple[tuple[int, bytes], ...]
    nuclei: int = 0
    tiles: int = 0
    seconds: float = 0.0
    seconds_read: float = 0.0
    seconds_network: float = 0.0
    seconds_postprocess: float = 0.0


@dataclass(frozen=True, eq=False)
class _Open:
    """An image that a thread works on."""

    slide: Slide
    store: TileStore


class _Held:
    """What this process keeps between tasks.

    Attributes
    ----------
    model : and how it was loaded.
    images : by thread and token.
    stopped : images that nobody waits for any more.
    computing : tasks at work on an image.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.model: tuple[Loader, NucleusModel] | None = None
        self.images: dict[tuple[int, str], _Open] = {}
        self.stopped: set[str] = set()
        self.forgotten: set[str] = set()
        self.computing: Counter[str] = Counter()

    def close(self, token: str) -> None:
        """Close an image's slide and drop its tiles, unless a task is at work on it."""
        with self.lock:
            if self.computing[token]:
                return
            closing = [key for key in self.images if key[1] == token]
            images = [self.images.pop(key) for key in closing]
        for image in images:
            image.slide.close()


_held = _Held()


async def about(
    load: Loader, weights_hash: str, dask_worker: Worker | None = None
) -> About | PathosamError:
    """Load the model and say what this worker is; an error comes back as a value.

    Parameters
    ----------
    dask_worker : given by Dask to functions that have a parameter of this name.
    """
    if dask_worker is not None:
        stop_sampling(dask_worker)

    def look() -> About | PathosamError:
        try:
            model = _model(load, weights_hash)
        except PathosamError as error:
            return error
        return About(
            host=platform.node(),
            cores=usable_cores(),
            info=model.info,
            device=model.device.partition(":")[0],
            processor=_processor(model.device),
            versions={name: _version(name) for name in LIBRARIES},
        )

    # In a thread: the worker's loop must answer the scheduler while weights are read.
    return await asyncio.get_running_loop().run_in_executor(None, look)


async def trial(load: Loader, weights_hash: str) -> float:
    """Seconds that the network takes for a tile; on the CPU, by one core."""

    def look() -> float:
        model = _model(load, weights_hash)
        if model.device == "cpu":
            one_thread_each()
        return tile_seconds(model)

    # In a thread of its own, for which alone the number of threads holds.
    with ThreadPoolExecutor(1) as alone:
        return await asyncio.get_running_loop().run_in_executor(alone, look)


def stop_sampling(worker: Worker) -> None:
    """End Dask's profiler in a worker.

    A hundred times a second it asks Python for the frames of all threads, and Python 3.11 may
    stand still for good in that, if a thread begins or memory is collected meanwhile
    (https://github.com/python/cpython/issues/106883).
    """
    for name in ("profile", "profile-cycle"):
        callback = worker.periodic_callbacks.pop(name, None)
        if callback is not None:
            callback.stop()


def usable_cores() -> frozenset[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def handed(job: Job) -> Job:
    """Make a job a result of Dask's, which goes to every worker once and survives workers."""
    return job


def compute(job: Job, numbers: tuple[int, ...], threads: int) -> Portion:
    """Compute blocks of an image.

    Parameters
    ----------
    numbers : of the blocks, in the plan's order.
    threads : that the network may use on the CPU.

    Raises
    ------
    ImageError : the slide is not here, or another one is.
    SchedulerError : the model cannot be loaded here, or is another one.
    """
    from distributed import get_worker

    worker = get_worker()
    with _held.lock:
        _held.computing[job.token] += 1
    try:
        if job.token in _held.stopped:
            return Portion(str(worker.name), ())
        return _computed(job, numbers, threads, worker)
    finally:
        with _held.lock:
            _held.computing[job.token] -= 1
        if job.token in _held.forgotten:
            _held.close(job.token)


async def stop(token: str) -> None:
    """End the computation of an image after the blocks at hand."""
    _held.stopped.add(token)


async def forget(token: str) -> None:
    """The same, and close its slide as soon as nobody is at work on it."""
    _held.stopped.add(token)
    _held.forgotten.add(token)
    _held.close(token)


def _computed(job: Job, numbers: tuple[int, ...], threads: int, worker: Worker) -> Portion:
    try:
        model = _model(job.load, job.weights_hash)
    except PathosamError as error:
        raise SchedulerError(
            where(worker), f"it cannot load the model: {error.subject}: {error.cause}", error.remedy
        ) from error
    here = _opened(job, worker)
    plan = BlockPlan(here.slide.at(model.info.mpp), job.grid, job.wanted, job.region, job.blocks)
    on_cpu = model.device == "cpu"
    options = replace(job.options, network_threads=threads if on_cpu else None)
    begun = told = time.monotonic()
    last = Progress(0, 0, 0, 0.0, 0.0, 0.0)

    def progress(p: Progress) -> None:
        nonlocal last, told
        last = p
        if time.monotonic() - told >= _TELL_EVERY:
            told = time.monotonic()
            share = p.tiles_done / max(1, p.tiles_total)
            worker.log_event(job.token, {"block": numbers[0], "share": share})

    blocks = []
    results = segment_blocks(
        plan,
        model,
        options=options,
        done=frozenset(range(len(job.blocks))) - frozenset(numbers),
        progress=progress,
        store=here.store,
    )
    with closing(results):
        for result in results:
            blocks.append((result.number, packed(result)))
            if job.token in _held.stopped:
                break
    return Portion(
        str(worker.name),
        tuple(blocks),
        last.nuclei,
        last.tiles_done,
        time.monotonic() - begun,
        last.seconds_read,
        last.seconds_network,
        last.seconds_postprocess,
    )


def where(worker: Worker) -> str:
    """A worker's name and computer, for messages."""
    return f"worker {worker.name} on {platform.node()}"


def _model(load: Loader, weights_hash: str) -> NucleusModel:
    """The model, loaded once."""
    with _held.lock:
        if _held.model is not None:
            how, model = _held.model
            if how == load and model.info.weights_hash == weights_hash:
                return model
        _held.model = None
        keep_freed_memory()
        model = load()
        _held.model = load, model
    found = model.info.weights_hash
    if found != weights_hash:
        raise SchedulerError(
            f"model {model.info.name}",
            f"its weights are {found[:12]}… on {platform.node()}, and {weights_hash[:12]}… where "
            "the run was begun",
            "Give every worker the same file (a shared folder), or the same version of the "
            "package.",
        )
    return model


def _opened(job: Job, worker: Worker) -> _Open:
    """The slide, opened once per thread, and closed when the thread turns to another."""
    thread = threading.get_ident()
    here = _held.images.get((thread, job.token))
    if here is not None:
        return here
    with _held.lock:
        others = [key for key in _held.images if key[0] == thread]
        images = [_held.images.pop(key) for key in others]
    for image in images:
        image.slide.close()
    try:
        digest = image_digest(job.file.path)
        slide = job.file.open()
    except (OSError, ImageError) as error:
        cause = error.cause if isinstance(error, ImageError) else str(error)
        raise ImageError(
            job.file.path,
            f"{where(worker)} cannot read it, though the computer where the run was begun can: "
            f"{cause}",
            "Let all workers see the slides under the same path: keep them in a folder that is "
            "shared, or mount it alike everywhere.",
        ) from error
    if digest != job.digest:
        slide.close()
        raise ImageError(
            job.file.path,
            f"{where(worker)} has another file under this path than the computer where the run "
            "was begun",
            "Let all workers see the same slides: keep them in a folder that is shared.",
        )
    here = _Open(slide, TileStore())
    with _held.lock:
        _held.images[thread, job.token] = here
    return here


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor(device: str) -> str:
    """What a network's sums may depend on in their last digits."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    if torch is not None and device == "cpu":
        return str(torch.backends.cpu.get_cpu_capability())
    return device
