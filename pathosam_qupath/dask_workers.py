"""Blocks computed by the workers of a Dask cluster.

Portions of blocks are handed out as workers become free (``lanes``), one ahead per worker,
and what a worker had is handed out again where it dies; Dask carries them, and decides
nothing: it would give them to workers that are not fit (``dask_roster``). The ledger, the
project and all decisions stay in the process that runs the command, which never waits for a
worker without looking whether it is still there.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pathosam_qupath.block_ledger import unpacked
from pathosam_qupath.block_workers import ImageBlocks
from pathosam_qupath.dask_roster import Roster
from pathosam_qupath.dask_tasks import Job, Loader, Portion, compute, forget, handed
from pathosam_qupath.dask_tasks import stop as stop_computing
from pathosam_qupath.errors import RunError, SchedulerError
from pathosam_qupath.estimates import Rate, workers_rate
from pathosam_qupath.lanes import Lanes
from pathosam_qupath.resuming import image_digest
from pathosam_qupath.segmentation.pipeline import BlockResult, Progress

if TYPE_CHECKING:
    from concurrent import futures

    from distributed import Client, Future

    from pathosam_qupath.model.interface import ModelInfo

PATIENCE = 300.0
"""Seconds without any worker after which a run ends."""

_PORTION = 10.0
"""Seconds that a portion should take: what a killed worker loses, about."""

_LOOK = 2.0
"""Seconds between two looks at which workers there are."""

_TICK = 0.25
"""Seconds between two questions whether to stop."""

_MOST_DEATHS = 4
"""Workers that may end while they compute a block, until the block is to blame."""


@dataclass(frozen=True)
class RemoteModel:
    """The model as workers have it."""

    info: ModelInfo
    device: str


@dataclass(eq=False)
class _Given:
    """A portion that a worker has been given.

    Attributes
    ----------
    ended : the worker is done with it, or Dask has given it up.
    fetched : its result on the way here, once it was asked for.
    """

    address: str
    numbers: tuple[int, ...]
    future: Future
    ended: bool = False
    fetched: futures.Future[object] | None = None


@dataclass(eq=False)
class _Plan:
    """The job as Dask has it, for those workers that are to have it."""

    future: Future
    addresses: frozenset[str]


@dataclass(eq=False)
class _UnderWay:
    """An image that is being computed.

    Attributes
    ----------
    plans : the job as portions depend on it, the newest last.
    given : portions that are being computed or fetched, in the order they were given, by the
        number of their first block.
    shares : how much of portions is done, 0…1, by their first block, as workers said last.
    news : portions that have ended, and again when they are fetched.
    deaths : how many workers ended while they computed a block.
    attempts : portions that were given so far.
    """

    image: ImageBlocks
    job: Job
    lanes: Lanes
    plans: list[_Plan] = field(default_factory=list)
    given: dict[int, _Given] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    news: queue.SimpleQueue[_Given] = field(default_factory=queue.SimpleQueue)
    deaths: Counter[int] = field(default_factory=Counter)
    attempts: int = 0
    stopping: bool = False


class DaskWorkers:
    """The workers of a cluster; a context manager. See :class:`block_workers.BlockWorkers`.

    Parameters
    ----------
    client : of a scheduler that has workers.
    load : how a worker loads the model.
    info : of the same model, loaded here.
    patience : seconds without any worker after which a run ends.

    Attributes
    ----------
    model : as the workers have it.
    notes : what a person should know of the workers.
    tiles : that networks have seen so far, on all workers.
    computed : blocks that each worker has computed so far, by its name.

    Raises
    ------
    SchedulerError : a worker is not fit, see :class:`dask_roster.Roster`.
    """

    works_ahead = True

    def __init__(
        self, client: Client, load: Loader, info: ModelInfo, *, patience: float = PATIENCE
    ) -> None:
        self._client, self._load, self._info, self._patience = client, load, info, patience
        self._address = client.scheduler.address
        self._lock = threading.RLock()  # hands out, from this thread and Dask's callbacks
        self._roster = Roster(client, load, info)
        self._under_way: list[_UnderWay] = []
        self._block_seconds: float | None = None
        self._looked = self._seen = time.monotonic()
        first = self._roster.begin()
        self.model = RemoteModel(first.info, first.device)
        self.notes = self._roster.notes
        self.tiles = 0
        self.computed: Counter[str] = Counter()

    def __enter__(self) -> DaskWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for going in list(self._under_way):
            self._end(going)

    def rate(self) -> Rate:
        """See :meth:`BlockWorkers.rate`."""
        with self._connection():
            return workers_rate(self.model.info, self._roster.tile_seconds())

    def ahead(self, image: ImageBlocks, *, done: Collection[int] = ()) -> None:
        """See :meth:`BlockWorkers.ahead`."""
        self._begun(image, done)

    def results(
        self,
        image: ImageBlocks,
        *,
        done: Collection[int] = (),
        progress: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] = lambda note: None,
    ) -> Generator[BlockResult, None, None]:
        """See :meth:`BlockWorkers.results`."""
        going = self._begun(image, done)
        reported = _Reported(image, len(image.plan.blocks) - len(done), progress)
        try:
            while going.given or len(going.lanes):
                if not going.stopping and stop():
                    self._stop(going)
                self._look_round(going, tell)
                try:
                    portion = self._outcome(going, going.news.get(timeout=_TICK))
                except queue.Empty:
                    portion = None
                if portion is None:
                    reported.tell(self._partly(going))
                    continue
                reported.add(portion)
                yield from (unpacked(number, block) for number, block in portion.blocks)
                reported.tell(self._partly(going))
        finally:
            self._end(going)

    def _begun(self, image: ImageBlocks, done: Collection[int]) -> _UnderWay:
        """The image, which workers begin to compute unless they have begun."""
        for going in self._under_way:
            if going.image is image:
                return going
        plan = image.plan
        token = f"pathosam-{uuid.uuid4().hex}"
        job = Job(
            token=token,
            load=self._load,
            weights_hash=self._info.weights_hash,
            file=image.file,
            digest=image_digest(image.file.path),
            grid=plan.grid,
            wanted=plan.wanted,
            region=plan.region,
            blocks=plan.blocks,
            options=image.options,
        )
        numbers = set(range(len(plan.blocks))) - set(done)
        going = _UnderWay(image, job, Lanes(plan.blocks, numbers, self._roster.addresses))
        self._client.subscribe_topic(token, partial(_note_share, going))
        with self._lock:
            self._under_way.append(going)
            self._hand_out()
        return going

    def _hand_out(self) -> None:
        """Give every worker what it computes now, and a portion ahead; earlier images first."""
        with self._lock:
            waiting = Counter(
                given.address
                for going in self._under_way
                for given in going.given.values()
                if not given.ended
            )
            workers = self._roster.workers
            for ahead in range(1, 2 + max((w.nthreads for w in workers), default=0)):
                for worker in workers:
                    if waiting[worker.address] < min(ahead, worker.nthreads + 1):
                        waiting[worker.address] += self._hand_to(worker.address)

    def _hand_to(self, address: str) -> int:
        """Give a worker the next portion, if there is one; how many it got."""
        seconds = self._block_seconds
        most = 1 if seconds is None else max(1, int(_PORTION / max(seconds, 1e-3)))
        for going in self._under_way:
            numbers = going.lanes.take(address, most)
            if not numbers:
                continue
            going.attempts += 1
            try:
                future = self._client.submit(
                    compute,
                    self._plan_for(going, address).future,
                    numbers,
                    self._roster.threads(address),
                    key=f"{going.job.token}-{going.attempts}",
                    pure=False,
                    workers=[address],
                )
            except BaseException:
                going.lanes.put_back(numbers)
                raise
            given = going.given[numbers[0]] = _Given(address, numbers, future)
            future.add_done_callback(partial(self._portion_ended, going, given))
            return 1
        return 0

    def _plan_for(self, going: _UnderWay, address: str) -> _Plan:
        """The job, where a worker can have it even if all others are gone."""
        if not going.plans or address not in going.plans[-1].addresses:
            addresses = self._roster.addresses
            with warnings.catch_warnings():
                # The plan of a whole slide is some megabytes, once per image.
                warnings.filterwarnings("ignore", "Sending large graph")
                sent = self._client.submit(
                    handed,
                    going.job,
                    key=f"{going.job.token}-plan-{len(going.plans)}",
                    pure=False,
                    workers=addresses,
                )
            going.plans.append(_Plan(sent, frozenset(addresses)))
        return going.plans[-1]

    def _portion_ended(self, going: _UnderWay, given: _Given, future: Future) -> None:
        """Called by Dask, in a thread of its own: the worker is free, whoever waits for it."""
        try:
            with self._lock:
                given.ended = True
                if future.status == "finished" and self._client.status == "running":
                    self._hand_out()
        finally:
            going.news.put(given)

    def _outcome(self, going: _UnderWay, given: _Given) -> Portion | None:
        """What came of a portion that there is news of; None while nothing has."""
        from distributed import KilledWorker

        first = given.numbers[0]
        if going.given.get(first) is not given:
            return None  # others compute it by now
        if given.fetched is None:
            # Not waited for: the worker may have gone, with its results.
            loop = self._client.loop.asyncio_loop
            given.fetched = asyncio.run_coroutine_threadsafe(_fetch(self._client, given), loop)
            given.fetched.add_done_callback(lambda _: going.news.put(given))
            return None
        if not given.fetched.done():
            return None
        if given.fetched.cancelled() or given.future.status == "cancelled":
            raise self._lost("it has dropped what it was to do")
        with self._connection():
            portion = given.fetched.result()
        if isinstance(portion, KilledWorker):  # as Dask counts, if it is told to count less
            self._return(going, given)
            going.deaths.update(given.numbers)
            return None
        if not isinstance(portion, Portion):
            given.future.result()  # raises it, with the worker's traceback
            raise self._lost(f"there is no result of what it was to do, but {portion}")
        with self._lock:
            del going.given[first]
            going.shares.pop(first, None)
        self.tiles += portion.tiles
        self.computed[portion.worker] += len(portion.blocks)
        if portion.blocks:
            rate = portion.seconds / len(portion.blocks)
            known = self._block_seconds
            self._block_seconds = rate if known is None else 0.5 * (known + rate)
        return portion

    def _take_back(self, address: str) -> None:
        """Let others compute what a worker had that has gone; what it was at is to blame."""
        with self._lock:
            lost = [
                (going, given)
                for going in self._under_way
                for given in going.given.values()
                if given.address == address and not (given.fetched and given.fetched.done())
            ]
            for going, given in lost:
                self._return(going, given)
            at_work = next((pair for pair in lost if not pair[1].ended), None)
            if at_work is not None:
                at_work[0].deaths.update(at_work[1].numbers)
        self._drop([given for _, given in lost])

    def _return(self, going: _UnderWay, given: _Given) -> None:
        """Take a portion from whoever had it."""
        with self._lock:
            del going.given[given.numbers[0]]
            going.shares.pop(given.numbers[0], None)
            if not going.stopping:
                going.lanes.put_back(given.numbers)

    def _drop(self, portions: Collection[_Given]) -> None:
        """Let Dask forget portions."""
        if not portions:
            return
        for given in portions:
            if given.fetched is not None:
                given.fetched.cancel()
        with self._connection():
            self._client.cancel([given.future for given in portions], force=True)

    def _partly(self, going: _UnderWay) -> float:
        """How many blocks' worth there is in portions that are not finished."""
        shares = dict(going.shares)
        with self._lock:
            sizes = {first: len(given.numbers) for first, given in going.given.items()}
        return sum(share * sizes.get(first, 0) for first, share in shares.items())

    def _stop(self, going: _UnderWay) -> None:
        """Let workers finish the blocks at hand and hand out no more, of any image."""
        with self._lock:
            for other in self._under_way:
                other.stopping = True
                other.lanes.clear()
        self._tell_workers(stop_computing, going)

    def _look_round(self, going: _UnderWay, tell: Callable[[str], None]) -> None:
        """See which workers have gone or come, every now and then."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        before = set(self._roster.addresses)
        with self._connection():
            for note in self._roster.look():
                tell(note)
        for address in before - set(self._roster.addresses):
            self._take_back(address)
        deadly = [number for number, count in going.deaths.items() if count >= _MOST_DEATHS]
        if deadly:
            raise RunError(
                f"image {going.image.name!r}",
                f"{len(deadly)} of its blocks ended every worker that was given them",
                "Memory may be too small: give each worker more, or start fewer; then run the "
                "same command again with --retry-failed.",
            )
        if self._roster.workers:
            self._seen = now
        elif now - self._seen > self._patience:
            raise SchedulerError(
                "Dask",
                f"there has been no worker for {self._patience:.0f} s",
                "Start workers, then run the same command again: it goes on from here.",
            )
        self._hand_out()

    def _end(self, going: _UnderWay) -> None:
        """Drop whatever of an image is still being computed."""
        with self._lock:
            if going not in self._under_way:
                return
            self._under_way.remove(going)
            going.lanes.clear()
            portions = list(going.given.values())
        if self._client.status == "running":
            self._client.unsubscribe_topic(going.job.token)
            self._drop(portions)
            with self._connection():
                self._client.cancel([plan.future for plan in going.plans], force=True)
            self._tell_workers(forget, going, wait=False)

    def _tell_workers(
        self, function: Callable[..., Any], going: _UnderWay, *, wait: bool = True
    ) -> None:
        """Run something about an image in all workers that may have to do with it."""
        addresses = self._roster.addresses
        if addresses:
            told = {"workers": addresses, "on_error": "ignore", "wait": wait}
            with self._connection():
                self._client.run(function, going.job.token, **told)

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Tell a lost scheduler from other errors."""
        from distributed import CancelledError
        from distributed import TimeoutError as DaskTimeoutError

        try:
            yield
        except (OSError, CancelledError, DaskTimeoutError) as error:
            raise self._lost(str(error) or type(error).__name__) from error

    def _lost(self, cause: str) -> SchedulerError:
        return SchedulerError(
            f"scheduler {self._address}",
            f"the connection is lost ({cause})",
            "Start it again, then run the same command again: it goes on from here.",
        )


async def _fetch(client: Client, given: _Given) -> object:
    """A portion's result, or the exception that there is instead."""
    # Shielded: Dask lets portions travel together, and one may be given up without the others.
    together = client.gather([given.future], errors="skip", asynchronous=True)
    found = await asyncio.shield(together)
    return found[0] if found else await given.future.exception(asynchronous=True)


def _note_share(going: _UnderWay, event: tuple[float, dict[str, Any]]) -> None:
    """Called in Dask's loop, which must wait for nothing, with what a worker says."""
    going.shares[event[1]["block"]] = float(event[1]["share"])


class _Reported:
    """Progress over an image, from blocks that are finished and shares of the others.

    Tiles are counted as the plan has them, whatever workers had to compute twice.
    """

    def __init__(
        self, image: ImageBlocks, blocks: int, progress: Callable[[Progress], None] | None
    ) -> None:
        self._progress = progress
        self._blocks = max(1, blocks)
        tiles = int(image.plan.wanted.sum())
        self._tiles = round(tiles * blocks / max(1, len(image.plan.blocks)))
        self._finished = self._nuclei = 0
        self._furthest = 0.0
        self._seconds = (0.0, 0.0, 0.0)

    def add(self, portion: Portion) -> None:
        """A portion is finished."""
        self._finished += len(portion.blocks)
        self._nuclei += portion.nuclei
        read, network, postprocess = self._seconds
        self._seconds = (
            read + portion.seconds_read,
            network + portion.seconds_network,
            postprocess + portion.seconds_postprocess,
        )

    def tell(self, partly: float) -> None:
        """Say how far the image is, with so many blocks' worth of unfinished portions."""
        if self._progress is None:
            return
        share = min(1.0, (self._finished + partly) / self._blocks)
        # A portion that is begun again elsewhere does not turn the clock back.
        self._furthest = max(self._furthest, share)
        done = round(self._tiles * self._furthest)
        self._progress(Progress(done, self._tiles, self._nuclei, *self._seconds))
