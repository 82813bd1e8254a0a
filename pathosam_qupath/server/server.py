"""What the routes work with: open images, jobs, the model, results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pathosam_qupath.c_memory import FreedMemory
from pathosam_qupath.server.access import Roots
from pathosam_qupath.server.changes import Changes
from pathosam_qupath.server.images import Images
from pathosam_qupath.server.jobs import Jobs
from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.pacing import Device
from pathosam_qupath.server.prompting import Prompts
from pathosam_qupath.server.results import Results
from pathosam_qupath.server.segment_job import Bench
from pathosam_qupath.server.warm_model import WarmModel

_GIVE_BACK_EVERY = 20.0  # seconds


@dataclass(frozen=True)
class Settings:
    """How a server is set up.

    Attributes
    ----------
    roots : folders below which files may be opened.
    results : folder for results, the server's alone.
    """

    roots: tuple[Path, ...]
    results: Path
    limits: Limits = field(default_factory=Limits)


class Server:
    """What the routes work with; lives as long as the server.

    Parameters
    ----------
    warm : its model, which is being loaded already.
    """

    def __init__(self, settings: Settings, warm: WarmModel) -> None:
        limits = settings.limits
        self.limits, self.began = limits, time.monotonic()
        self.changes = Changes()
        self.roots = Roots(settings.roots)
        self.results = Results(settings.results, limits)
        self.warm = warm
        warm.changed = self.changes.announce
        self.device = Device()
        self.images = Images(limits, closed=lambda image: self.prompts.forget(image))
        self.prompts = Prompts(limits, self.images, self.warm, self.device)
        self.jobs = Jobs(
            limits,
            changed=self.changes.announce,
            forgotten=lambda job: self.results.forget(job.id),
            out_of_memory=self.free_memory,
            over=FreedMemory(_GIVE_BACK_EVERY).give_back,
        )
        self.bench = Bench(self.images, self.jobs, self.results, self.roots, self.warm, self.device)
        self.decoding = asyncio.Semaphore(2)
        self.stop: Callable[[], None] = lambda: None

    def free_memory(self) -> None:
        """Drop what can be made again, after an allocation has failed."""
        self.prompts.clear()
        self.warm.free_memory()

    def close(self) -> None:
        """End the jobs and let go of files."""
        self.changes.stop()
        self.prompts.close()
        self.jobs.close()
        self.images.close()
        self.results.clear()
