"""A client of a Dask cluster: one that runs somewhere, or processes started here.

Processes started here are a worker per GPU, or per slice of the cores. They speak TLS with
certificates that exist only in memory, since whoever can speak with a scheduler can run
programs as its user. They end with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathosam_qupath.block_workers import LOCAL
from pathosam_qupath.dask_tasks import usable_cores
from pathosam_qupath.errors import SchedulerError, UsageError

if TYPE_CHECKING:
    from distributed import Client, SpecCluster, Worker

_log = logging.getLogger(__name__)

_CORES_PER_WORKER = 4
"""Of a computer without a GPU, where nobody says how many workers there shall be."""

_ANSWER = 30.0
"""Seconds in which a scheduler must answer."""

WAIT = 300.0
"""Seconds to wait for the workers that were asked for."""

_GIVEN_UP = {"distributed.deploy.lost-worker-timeout": "1 day"}
"""A worker that died is started again; for Dask it would be gone for good after 15 seconds, in
which a busy computer may not have loaded its model."""


@contextmanager
def connected(
    scheduler: str, number: int | None = None, device: str = "auto", *, wait: float = WAIT
) -> Iterator[Client]:
    """A client whose scheduler has workers.

    Parameters
    ----------
    scheduler, number : see :func:`block_workers.block_workers`.
    device : with "auto" or "cuda", local workers get a GPU each.
    wait : seconds for the workers to come.

    Raises
    ------
    UsageError : Dask is not installed.
    SchedulerError : the scheduler does not answer, or too few workers come.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise UsageError(
            "--scheduler",
            "the library `distributed` is not installed here",
            'Install the extra: pip install "pathosam-qupath[dask]".',
        ) from error
    if scheduler == LOCAL:
        with dask.config.set(_GIVEN_UP):
            cluster = local_cluster(number, device)
            try:
                with _closing(distributed.Client(cluster, set_as_default=False)) as client:
                    yield client
            finally:
                cluster.close()
        return
    file = None if "://" in scheduler else Path(scheduler)
    if file is not None and not file.is_file():
        raise UsageError(
            f"--scheduler {scheduler}",
            "it is neither `local`, nor an address, nor the scheduler's file",
            "Give local, tcp://HOST:PORT, or the file of `dask scheduler --scheduler-file FILE`.",
        )
    told = {"address": scheduler} if file is None else {"scheduler_file": str(file)}
    try:
        client = distributed.Client(**told, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        raise SchedulerError(
            f"scheduler {scheduler}",
            f"it does not answer ({error})",
            "Check that `dask scheduler` runs there, and that its port can be reached from here.",
        ) from error
    with _closing(client):
        _wait_for(client, scheduler, number or 1, wait)
        yield client


@contextmanager
def _closing(client: Client) -> Iterator[Client]:
    """The client, closed at the end.

    One whose scheduler is gone gives up and closes itself, perhaps at this very moment; Dask then
    fails in the midst of it (``Cannot change state of expiring Timeout``). By now all results
    are here, or what stopped them is already on its way.
    """
    try:
        yield client
    finally:
        try:
            client.close()
        except (RuntimeError, OSError, asyncio.TimeoutError) as error:
            _log.debug("the client could not be closed: %s", error)


def local_cluster(number: int | None = None, device: str = "auto") -> SpecCluster:
    """Start workers on this computer, a process each.

    Parameters
    ----------
    number : of workers; None: one per GPU, else one for every ``_CORES_PER_WORKER`` cores.
    device : see :func:`connected`.
    """
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.security import Security

    gpus = _gpus() if device in ("auto", "cuda") else 0
    number = number or gpus or max(1, len(usable_cores()) // _CORES_PER_WORKER)
    common: dict[str, Any] = {
        "security": Security.temporary(),
        "protocol": "tls://",
        "host": "127.0.0.1",
    }
    each = {
        **common,
        "nthreads": 1,
        "memory_limit": 0,
        "dashboard": False,
        "preload": [f"{__package__}.dask_cluster"],
        "silence_logs": logging.ERROR,
    }
    served = {"port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    workers = {
        i: {
            "cls": Nanny,
            "options": {**each, "env": {"CUDA_VISIBLE_DEVICES": str(i % gpus)} if gpus else {}},
        }
        for i in range(number)
    }
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": {**common, **served}},
        workers=workers,
        security=common["security"],
        silence_logs=logging.ERROR,
    )


def dask_setup(worker: Worker) -> None:
    """Called by Dask in every local worker: Ctrl-C is for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_for(client: Client, scheduler: str, number: int, seconds: float) -> None:
    try:
        client.wait_for_workers(number, timeout=seconds)
    except asyncio.TimeoutError as error:
        raise SchedulerError(
            f"scheduler {scheduler}",
            f"fewer than {number} workers came within {seconds:.0f} s",
            "Start workers (`dask worker ADDRESS`, or jobs of dask-jobqueue), or wait for fewer "
            "with --workers; others may join while the run goes on.",
        ) from error


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
