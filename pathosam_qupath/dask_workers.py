"""Blocks computed by the workers of a Dask cluster.

Portions of blocks are handed out as workers become free (``lanes``), one ahead per worker;
Dask carries them, and has them computed elsewhere where a worker dies. The ledger, the
project and all decisions stay in the process that runs the command. Which workers are fit
to compute is the matter of ``dask_roster``.
"""

from __future__ import annotations

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
from pathosam_qupath.lanes import Lanes
from pathosam_qupath.resuming import image_digest
from pathosam_qupath.segmentation.pipeline import BlockResult, Progress

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class RemoteModel:
    """The model as workers have it."""

    info: ModelInfo
    device: str
    dtype: str


@dataclass(frozen=True, eq=False)
class _Given:
    """A portion that a worker has been given."""

    numbers: tuple[int, ...]
    future: Future


@dataclass(eq=False)
class _UnderWay:
    """An image that is being computed.

    Attributes
    ----------
    plan : the job, as a future that portions depend on.
    given : portions that are being computed, by the number of their first block.
    shares : how much of portions is done, 0…1, by their first block, as workers said last.
    ended : first blocks of portions that have come to an end.
    """

    image: ImageBlocks
    token: str
    plan: Future
    lanes: Lanes
    given: dict[int, _Given] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    ended: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)


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
        self._waiting: Counter[str] = Counter()
        self._block_seconds: float | None = None
        self._looked = self._seen = time.monotonic()
        first = self._roster.begin()
        self.model = RemoteModel(first.info, first.device, first.dtype)
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
        stopping = False
        try:
            while going.given or len(going.lanes):
                if not stopping and stop():
                    stopping = True
                    self._stop(going)
                self._look_round(tell)
                try:
                    first = going.ended.get(timeout=_TICK)
                except queue.Empty:
                    reported.tell(self._partly(going))
                    continue
                portion = self._outcome(going, first)
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
        with self._connection(), warnings.catch_warnings():
            # The plan of a whole slide is some megabytes, once per image.
            warnings.filterwarnings("ignore", "Sending large graph")
            sent = self._client.submit(handed, job, key=f"{token}-plan", pure=False)
        numbers = set(range(len(plan.blocks))) - set(done)
        going = _UnderWay(image, token, sent, Lanes(plan.blocks, numbers, self._roster.addresses))
        self._client.subscribe_topic(token, partial(_note_share, going))
        with self._lock:
            self._under_way.append(going)
            self._hand_out()
        return going

    def _hand_out(self) -> None:
        """Give every worker what it computes now, and a portion ahead; earlier images first."""
        with self._lock:
            for ahead in range(1, 2 + max((w.nthreads for w in self._roster.workers), default=0)):
                for worker in self._roster.workers:
                    if self._waiting[worker.address] < min(ahead, worker.nthreads + 1):
                        self._hand_to(worker.address)

    def _hand_to(self, address: str) -> None:
        """Give a worker the next portion, if there is one."""
        seconds = self._block_seconds
        most = 1 if seconds is None else max(1, int(_PORTION / max(seconds, 1e-3)))
        for going in self._under_way:
            numbers = going.lanes.take(address, most)
            if not numbers:
                continue
            future = self._client.submit(
                compute,
                going.plan,
                numbers,
                self._roster.threads(address),
                key=f"{going.token}-{numbers[0]}",
                pure=False,
                workers=[address],
                allow_other_workers=True,
            )
            self._waiting[address] += 1
            going.given[numbers[0]] = _Given(numbers, future)
            future.add_done_callback(partial(self._portion_ended, going, address, numbers[0]))
            return

    def _portion_ended(self, going: _UnderWay, address: str, first: int, future: Future) -> None:
        """Called by Dask, in a thread of its own: the worker is free, whoever waits for it."""
        try:
            with self._lock:
                self._waiting[address] -= 1
                if future.status == "finished" and self._client.status == "running":
                    self._hand_out()
        finally:
            going.ended.put(first)

    def _outcome(self, going: _UnderWay, first: int) -> Portion:
        """What came of a portion."""
        from distributed import KilledWorker

        with self._lock:
            given = going.given.pop(first)
        if given.future.status in ("cancelled", "lost"):
            raise self._lost("it has dropped what it was to do")
        with self._connection():
            error = given.future.exception()
        if isinstance(error, KilledWorker):
            name = going.image.name
            raise RunError(
                f"image {name!r}",
                f"{len(given.numbers)} of its blocks ended every worker that was given them",
                "Memory may be too small: give each worker more, or start fewer; then run the "
                "same command again with --retry-failed.",
            ) from error
        if error is not None:
            given.future.result()  # raises it, with the worker's traceback
        with self._connection():
            portion: Portion = given.future.result()
        self.tiles += portion.tiles
        self.computed[portion.worker] += len(portion.blocks)
        if portion.blocks:
            rate = portion.seconds / len(portion.blocks)
            known = self._block_seconds
            self._block_seconds = rate if known is None else 0.5 * (known + rate)
        return portion

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
                other.lanes.clear()
        with self._connection():
            self._client.run(stop_computing, going.token, on_error="ignore")

    def _look_round(self, tell: Callable[[str], None]) -> None:
        """See which workers have gone or come, every now and then."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        with self._connection():
            for note in self._roster.look():
                tell(note)
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
            futures = [given.future for given in going.given.values()]
        if self._client.status == "running":
            self._client.unsubscribe_topic(going.token)
            self._client.cancel([*futures, going.plan], force=True)
            self._client.run(forget, going.token, on_error="ignore", wait=False)

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
