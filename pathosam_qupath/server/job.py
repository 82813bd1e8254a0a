"""A job: one piece of work with a life, and how far it is."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

from pathosam_qupath.server.problems import ProblemError

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
Lane = Literal["device", "project"]
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")


class CancelledError(Exception):
    """The job was cancelled; its work ends here."""


@dataclass(frozen=True)
class JobProgress:
    """How far a job is.

    Attributes
    ----------
    stage : in words.
    tiles_done, tiles_total, nuclei : of the image; 0 where unknown.
    images_done, images_total : of a project.
    fraction : 0…1 of the work; None while unknown.
    change : counts the changes of the job, so that a client can wait for the next.
    """

    stage: str = "waiting"
    tiles_done: int = 0
    tiles_total: int = 0
    nuclei: int = 0
    images_done: int = 0
    images_total: int = 0
    fraction: float | None = None
    change: int = 0


@dataclass(eq=False)
class Job:
    """One piece of work with a life; only ``jobs.Jobs`` changes its state.

    Attributes
    ----------
    about : what turns go round by: an image's id, a project's path.
    run : id of the run whose nuclei these are.
    note : what the client should know though nothing failed.
    result : small, as JSON.
    ended_hook : called in the lane's thread after the end was announced.
    held : what the job keeps open until it has ended, from before it is submitted.
    """

    id: str
    kind: str
    lane: Lane
    about: str
    label: str
    work: Callable[[Job], Mapping[str, object] | None]
    image: str | None = None
    run: str | None = None
    state: JobState = "queued"
    progress: JobProgress = field(default_factory=JobProgress)
    recorded: bool = False
    note: str | None = None
    error: ProblemError | None = None
    result: Mapping[str, object] | None = None
    ended_hook: Callable[[], None] | None = None
    held: ExitStack = field(default_factory=ExitStack, repr=False)
    cancelled: threading.Event = field(default_factory=threading.Event)
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    started: datetime | None = None
    finished: datetime | None = None
    began: float = 0.0
    seconds: float = 0.0
    has_picture: bool = False

    def let_go(self) -> None:
        """Drop what only the work needed: an ended job is remembered, its pixels are not."""
        self.work = _over
        self.held.close()

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in ENDED

    def elapsed(self) -> float:
        """Seconds that it has run."""
        return time.monotonic() - self.began if self.state == "running" else self.seconds

    def eta(self) -> float | None:
        """Seconds that it will take still, by its speed so far; None while unknown."""
        done = self.progress.fraction
        if self.state != "running" or not done:
            return None
        return self.elapsed() * (1 - done) / done


def _over(job: Job) -> None:
    """What an ended job would do."""
    raise AssertionError(f"{job.id} has ended already")


def new_job_id() -> str:
    """An id that nobody guesses."""
    return f"job-{secrets.token_hex(8)}"
