"""Jobs: queued, run one at a time per lane, watched, cancelled, forgotten.

A job is a function that runs in its lane's thread. The lane "device" is for what uses the
loaded model, the lane "project" for commands that run as processes of their own; a run of
hours over a project therefore does not keep an open image waiting. Within a lane, turns go
round by what jobs are about (an image, a project), so that twenty regions of one image do
not hold up the first of another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone

from pathosam_qupath.server.job import CancelledError, Job, JobState, Lane
from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.problems import ProblemError, as_problem

log = logging.getLogger(__name__)


class Jobs:
    """The jobs of a server. Thread-safe.

    Parameters
    ----------
    changed : called in any thread whenever a job changes.
    forgotten : called with a job that is no longer remembered.
    out_of_memory : called when a job ended so, before the next begins.
    over : called in the lane's thread once an ended job holds nothing any more.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        changed: Callable[[], None] = lambda: None,
        forgotten: Callable[[Job], None] = lambda job: None,
        out_of_memory: Callable[[], None] = lambda: None,
        over: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits = limits
        self._announce, self._forgotten, self._no_memory = changed, forgotten, out_of_memory
        self._over = over
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._turn = threading.Condition()
        self._queues: dict[Lane, OrderedDict[str, deque[Job]]] = {
            "device": OrderedDict(),
            "project": OrderedDict(),
        }
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run_lane, args=(lane,), name=f"jobs-{lane}")
            for lane in self._queues
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Job:
        """Queue a job.

        Raises
        ------
        ProblemError : too many wait already, or the server is ending; the job has let go of
            what it held then.
        """
        try:
            self._enqueue(job)
        except ProblemError:
            job.let_go()
            raise
        self._announce()
        return job

    def _enqueue(self, job: Job) -> None:
        with self._turn:
            if self._stopping:
                raise ProblemError(
                    503, "stopping", "server", "it is being ended", "Start it again."
                )
            if self.count("queued") >= self._limits.queued_jobs:
                raise ProblemError(
                    429,
                    "busy",
                    "jobs",
                    f"{self._limits.queued_jobs} jobs are waiting already",
                    "Wait until some are done, or cancel them.",
                    {"Retry-After": "5"},
                )
            self._jobs[job.id] = job
            self._queues[job.lane].setdefault(job.about, deque()).append(job)
            self._turn.notify_all()

    def get(self, job: str) -> Job:
        """A job by its id.

        Raises
        ------
        ProblemError : there is none (any more).
        """
        found = self._jobs.get(job)
        if found is None:
            raise ProblemError(
                404, "not_found", job, "no such job is known (any more)", "Submit it again."
            )
        return found

    def newest_first(self) -> list[Job]:
        """All jobs that are remembered."""
        with self._turn:
            return list(reversed(self._jobs.values()))

    def count(self, state: JobState) -> int:
        """How many jobs are in a state."""
        with self._turn:
            return sum(job.state == state for job in self._jobs.values())

    def position(self, job: Job) -> int:
        """How many jobs of its lane come before it, as things are."""
        with self._turn:
            if job.state != "queued":
                return 0
            queues = self._queues[job.lane]
            own = queues[job.about].index(job)
            order = list(queues)
            at = order.index(job.about)
            others = sum(
                min(len(queues[a]), own + (i < at)) for i, a in enumerate(order) if i != at
            )
            running = any(j.lane == job.lane and j.state == "running" for j in self._jobs.values())
            return own + others + running

    def cancel(self, job: Job) -> None:
        """End a job: at once where it waits, before the next layer where it runs."""
        with self._turn:
            job.cancelled.set()
            waited = job.state == "queued"
            if waited:
                queue = self._queues[job.lane][job.about]
                queue.remove(job)
                if not queue:
                    del self._queues[job.lane][job.about]
                self._end(job, "cancelled")
        if waited:
            job.let_go()
        self._announce()

    def update(self, job: Job, **fields: object) -> None:
        """Note a job's progress (fields of :class:`JobProgress`).

        Raises
        ------
        CancelledError : the job was cancelled.
        """
        with self._turn:
            change = job.progress.change + 1
            job.progress = replace(job.progress, **fields, change=change)  # type: ignore[arg-type]
        self._announce()
        if job.cancelled.is_set():
            raise CancelledError

    def close(self, seconds: float = 5.0) -> None:
        """Cancel everything and wait for the lanes to end."""
        with self._turn:
            self._stopping = True
            for job in self._jobs.values():
                if not job.ended:
                    self.cancel(job)
            self._turn.notify_all()
        for thread in self._threads:
            thread.join(seconds)

    def _run_lane(self, lane: Lane) -> None:
        while (job := self._next(lane)) is not None:
            self._run(job)
            self._over()

    def _next(self, lane: Lane) -> Job | None:
        """The next job of a lane, now running; None once the server ends."""
        queues = self._queues[lane]
        with self._turn:
            while not queues:
                if self._stopping:
                    return None
                self._turn.wait()
            about, queue = next(iter(queues.items()))
            job = queue.popleft()
            if queue:
                queues.move_to_end(about)
            else:
                del queues[about]
            job.state, job.began = "running", time.monotonic()
            job.started = datetime.now(timezone.utc)
            job.progress = replace(job.progress, stage="starting", change=job.progress.change + 1)
        self._announce()
        return job

    def _run(self, job: Job) -> None:
        try:
            result = job.work(job)
        except CancelledError:
            self._finish(job, "cancelled")
        except Exception as error:
            # A worker thread of the pipeline may have met the cancellation first.
            problem = as_problem(error)
            if job.cancelled.is_set() and problem.code == "unexpected":
                self._finish(job, "cancelled")
                return
            if problem.code == "unexpected":
                log.exception("job %s failed", job.id)
            if problem.code == "out_of_memory":
                self._no_memory()
            self._finish(job, "failed", error=problem)
        else:
            self._finish(job, "done", result=result)

    def _finish(
        self,
        job: Job,
        state: JobState,
        *,
        error: ProblemError | None = None,
        result: Mapping[str, object] | None = None,
    ) -> None:
        with self._turn:
            job.error, job.result = error, job.result if result is None else result
            self._end(job, state)
        self._announce()
        hook, job.ended_hook = job.ended_hook, None
        if hook is not None and state == "done":
            try:
                hook()
            except Exception:
                log.exception("after job %s", job.id)
            self._announce()
        job.let_go()

    def _end(self, job: Job, state: JobState) -> None:
        job.seconds = time.monotonic() - job.began if job.began else 0.0
        job.state, job.finished = state, datetime.now(timezone.utc)
        fraction = 1.0 if state == "done" else job.progress.fraction
        stage = {"done": "done", "failed": "failed"}.get(state, "cancelled")
        job.progress = replace(
            job.progress, stage=stage, fraction=fraction, change=job.progress.change + 1
        )
        ended = [j for j in self._jobs.values() if j.ended]
        for old in ended[: max(0, len(ended) - self._limits.ended_jobs)]:
            del self._jobs[old.id]
            self._forgotten(old)
