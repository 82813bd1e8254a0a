"""Which workers of a cluster are there, and whether they may compute.

Blocks of one image must not depend on who computed them, so every worker says which
package, weights and libraries it has before it is given anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathosam_qupath import __version__
from pathosam_qupath.dask_tasks import About, Loader, about, trial
from pathosam_qupath.errors import PathosamError, SchedulerError

if TYPE_CHECKING:
    from distributed import Client

    from pathosam_qupath.model.interface import ModelInfo

_INSTALL = "Install the same version in the environment that workers and scheduler start in."


@dataclass(frozen=True)
class Known:
    """A worker as the scheduler lists it."""

    address: str
    name: str
    host: str
    nthreads: int

    def __str__(self) -> str:
        return f"worker {self.name} on {self.host}"


class Roster:
    """The workers that may compute.

    Parameters
    ----------
    client : of the scheduler.
    load, info : how a worker loads the model, and what this process knows of it.
    """

    def __init__(self, client: Client, load: Loader, info: ModelInfo) -> None:
        self._client, self._load, self._info = client, load, info
        self._fit: dict[str, Known] = {}
        self._abouts: dict[str, About] = {}
        self._refused: set[str] = set()

    @property
    def workers(self) -> tuple[Known, ...]:
        """Those that are there."""
        return tuple(self._fit.values())

    @property
    def addresses(self) -> list[str]:
        """Where they can be reached."""
        return list(self._fit)

    @property
    def notes(self) -> tuple[str, ...]:
        """Where results may differ in their last digits."""
        kinds = sorted({self._abouts[address].processor for address in self._fit})
        if len(kinds) < 2:
            return ()
        return (
            f"Workers compute on different processors ({', '.join(kinds)}), which round "
            "differently: here and there an outline may differ by a pixel from run to run.",
        )

    def begin(self) -> About:
        """Ask every worker, and the scheduler; what the first says of itself.

        Raises
        ------
        SchedulerError : there is no worker, or one that is not fit.
        """
        self._check_scheduler()
        found = self._listed()
        if not found:
            raise SchedulerError("Dask", "the scheduler has no workers", "Start some.")
        for worker, said in self._asked(found):
            if isinstance(said, PathosamError):
                raise said
            self._abouts[worker.address], self._fit[worker.address] = said, worker
        return next(iter(self._abouts.values()))

    def look(self) -> list[str]:
        """See who has gone and who has come; what is to be told of it.

        One that is not fit is given nothing.
        """
        found = {worker.address: worker for worker in self._listed()}
        notes = [
            f"{self._fit.pop(address)} has gone; others compute its blocks."
            for address in list(self._fit)
            if address not in found
        ]
        fresh = [w for a, w in found.items() if a not in self._fit and a not in self._refused]
        for worker, said in self._asked(fresh):
            if isinstance(said, PathosamError):
                self._refused.add(worker.address)
                notes.append(f"{worker} is given nothing. {said}")
            else:
                self._abouts[worker.address], self._fit[worker.address] = said, worker
                notes.append(f"{worker} has come.")
        return notes

    def threads(self, address: str) -> int:
        """How many threads a worker's network may use: its part of the cores it can see."""
        own = self._abouts[address]
        sharing = sum(
            worker.nthreads
            for worker in self._fit.values()
            if (self._abouts[worker.address].host, self._abouts[worker.address].cores)
            == (own.host, own.cores)
        )
        return max(1, len(own.cores) // max(1, sharing))

    def tile_seconds(self) -> list[float]:
        """Seconds per tile of each worker by a trial, all of them at work at a time.

        Raises
        ------
        SchedulerError : none of them answers.
        """
        answers = self._run(trial, self.workers, self._load, self._info.weights_hash)
        seconds = []
        for worker in self.workers:
            answer = answers.get(worker.address)
            if isinstance(answer, float):
                on_cpu = self._abouts[worker.address].device == "cpu"
                at_a_time = worker.nthreads * self.threads(worker.address) if on_cpu else 1
                seconds.append(answer / at_a_time)
        if not seconds:
            raise SchedulerError("Dask", "no worker answers", "Look at the workers' logs.")
        return seconds

    def _listed(self) -> list[Known]:
        # Nested, so that Dask sends the function and not its name: it must run anywhere.
        def listed(dask_scheduler: Any) -> list[tuple[str, str, str, int]]:  # noqa: ANN401
            return [
                (w.address, str(w.name), str(w.host), int(w.nthreads))
                for w in dask_scheduler.workers.values()
            ]

        return [Known(*one) for one in self._client.run_on_scheduler(listed)]

    def _check_scheduler(self) -> None:
        def version(dask_scheduler: Any) -> str | None:  # noqa: ANN401
            try:
                import pathosam_qupath
            except ImportError:
                return None
            return str(pathosam_qupath.__version__)

        wrong = _wrong_version("the scheduler", self._client.run_on_scheduler(version))
        if wrong is not None:
            raise wrong

    def _asked(self, workers: Sequence[Known]) -> list[tuple[Known, About | PathosamError]]:
        """What workers say of themselves, or why they cannot be used."""

        def version() -> str | None:
            try:
                import pathosam_qupath
            except ImportError:
                return None
            return str(pathosam_qupath.__version__)

        versions = self._run(version, workers)
        wrong = {w: _gone(w, versions) or _wrong_version(w, versions[w.address]) for w in workers}
        right = [worker for worker in workers if wrong[worker] is None]
        abouts = self._run(about, right, self._load, self._info.weights_hash)
        # All are to be like the first that there ever was.
        model = next(iter(self._abouts.values()), None)
        found: list[tuple[Known, About | PathosamError]] = []
        for worker in workers:
            said = wrong[worker] or _gone(worker, abouts) or abouts[worker.address]
            if isinstance(said, About):
                model = model or said
                said = _unlike(worker, said, model) or said
            elif not isinstance(said, SchedulerError):
                said = SchedulerError(
                    str(worker),
                    f"it cannot load the model: {said.subject}: {said.cause}",
                    said.remedy,
                )
            found.append((worker, said))
        return found

    def _run(
        self,
        function: Callable[..., Any],
        workers: Sequence[Known],
        *arguments: object,
    ) -> dict[str, Any]:
        """What a function gives on some workers; exceptions are values."""
        addresses = [worker.address for worker in workers]
        if not addresses:
            return {}
        return dict(self._client.run(function, *arguments, workers=addresses, on_error="return"))


def _gone(worker: Known, answers: Mapping[str, Any]) -> SchedulerError | None:
    """Why a worker gave no answer; None where it did."""
    answer = answers.get(worker.address, "it is no longer there")
    if worker.address in answers and not (
        isinstance(answer, Exception) and not isinstance(answer, PathosamError)
    ):
        return None
    return SchedulerError(
        str(worker),
        f"it cannot be asked what it is ({answer})",
        "Look at its log; memory may be too small for the model.",
    )


def _wrong_version(who: object, version: str | None) -> SchedulerError | None:
    if version == __version__:
        return None
    has = "it does not have pathosam-qupath" if version is None else f"it has version {version}"
    return SchedulerError(str(who), f"{has}; this process has {__version__}", _INSTALL)


def _unlike(worker: Known, said: About, first: About) -> SchedulerError | None:
    """Why a worker's blocks may not be put beside those of the first one."""
    one = {"device": first.device, "resolution": first.info.mpp}
    other = {"device": said.device, "resolution": said.info.mpp}
    one |= {"precision": first.info.precision, **first.versions}
    other |= {"precision": said.info.precision, **said.versions}
    differ = [
        f"{name}: {other[name]} there, {one[name]} on others"
        for name in one
        if one[name] != other[name]
    ]
    if not differ:
        return None
    return SchedulerError(
        str(worker),
        f"it would not draw the same outlines as the others ({'; '.join(differ)})",
        "Use workers with the same environment and the same kind of device.",
    )
