"""A run over a project: choose images and regions, segment, record, write.

Nothing here prints; progress goes to a callback, and the outcome is the run's record. An
image that fails does not stop the others. Per image, in this order: segment block by block
into a ledger, put the predictions and a copy of the old file into the record, extend the
project's class list, replace ``data.qpdata``, note its new hash. Killed anywhere in between,
the run can be taken up where it was: finished images and blocks are not done again, and ids
follow from the run and the position, so that the result is that of an undisturbed run.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pathosam_qupath import __version__
from pathosam_qupath.block_workers import BlockWorkers, InProcess
from pathosam_qupath.qupath.running import signs_of_qupath
from pathosam_qupath.resuming import find_run, reset_failed
from pathosam_qupath.run_image import FINAL, Work, treat
from pathosam_qupath.run_lock import locked
from pathosam_qupath.run_plan import EntryPlan, RunOptions
from pathosam_qupath.run_record import (
    EntryRecord,
    RunManifest,
    RunRecord,
    create_run,
    last_write,
    new_run_id,
    open_run,
    utc_now,
)

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.qupath.project import Project

_LIBRARIES = ("numpy", "shapely", "geopandas", "opencv-python-headless", "scikit-image", "torch")


@dataclass(frozen=True)
class RunProgress:
    """Where a run is.

    Attributes
    ----------
    image, images : the image being treated (from 1) and how many there are.
    fraction : of the whole run's area, 0…1.
    tiles_done, tiles_total, nuclei : of this image, without what an earlier attempt did.
    seconds_left : of the whole run, as the rate so far has it; None while there is none.
    finished : the image's record once it is done with.
    note : something to tell, once.
    """

    image: int
    images: int
    name: str
    fraction: float
    tiles_done: int = 0
    tiles_total: int = 0
    nuclei: int = 0
    seconds_left: float | None = None
    finished: EntryRecord | None = None
    note: str | None = None


Report = Callable[[RunProgress], None]


def run(
    project: Project,
    model: NucleusModel,
    options: RunOptions,
    plans: Sequence[EntryPlan],
    *,
    report: Report | None = None,
    resume: str | None = None,
    retry_failed: bool = False,
    stop: Callable[[], bool] = lambda: False,
    workers: BlockWorkers | None = None,
) -> RunRecord:
    """Carry a plan out: segment, record, write.

    Parameters
    ----------
    resume : which earlier run to go on with (see :func:`resuming.find_run`); None: none.
    retry_failed : treat the images again that failed in that run.
    stop : asked after every block; once it says True the run ends, unfinished, and can be
        resumed.
    workers : who computes with the model; None: this process.

    Returns
    -------
    The run's record. ``manifest.finished`` is None where it was stopped.

    Raises
    ------
    RunError : the run's record cannot be written, another process works on the run, or the
        run to resume is not there or not the same.
    SchedulerError : there is nobody left to compute; the run can be resumed.
    """
    folder = project.path.parent
    workers = workers or InProcess(model)
    computing = workers.model
    fresh = RunManifest(
        run=new_run_id(folder),
        created=utc_now(),
        project=str(project.path),
        backend=project.backend,
        model={**asdict(computing.info), "device": computing.device},
        options=_stored(options),
        versions=versions(project),
        entries=tuple(_planned(plan) for plan in plans),
    )
    going_on = find_run(folder, fresh, resume, retry_failed=retry_failed)
    record = going_on.record or create_run(folder, fresh)
    with locked(record.folder):
        if going_on.record is not None:
            record = open_run(folder, record.manifest.run)  # as it is under the lock
            record.begin_again()
        if retry_failed:
            reset_failed(record)
        said = (going_on.note, _open_elsewhere(project, plans), *workers.notes)
        with closing(Work(workers, options, record, stop)) as work:
            _carry_out(project, plans, work, report, "\n".join(filter(None, said)) or None)
    return record


def versions(project: Project) -> dict[str, str | None]:
    """Versions that a result may depend on."""
    found: dict[str, str | None] = {
        "pathosam-qupath": __version__,
        "Python": platform.python_version(),
        "QuPath": project.qupath_version,
    }
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _open_elsewhere(project: Project, plans: Sequence[EntryPlan]) -> str | None:
    """A warning where the project looks open in QuPath."""
    paths = [plan.entry.data_path for plan in plans]
    signs = signs_of_qupath(project.path, paths, own_writes=last_write(project.path.parent))
    if not signs:
        return None
    return (
        f"{'; '.join(signs)}. Close this project in QuPath if it is open there: its next save "
        "would write over what this run writes."
    )


def _carry_out(
    project: Project,
    plans: Sequence[EntryPlan],
    work: Work,
    report: Report | None,
    note: str | None,
) -> None:
    """Treat image after image; the record is finished unless the run was stopped."""
    record = work.record
    clock = _Clock(plans)
    for number, plan in enumerate(plans, start=1):

        def tell(
            fraction: float,
            counts: tuple[int, int, int] = (0, 0, 0),
            finished: EntryRecord | None = None,
            *,
            number: int = number,
            plan: EntryPlan = plan,
            already: float = 0.0,
            note: str | None = None,
        ) -> None:
            if report is not None:
                at, left = clock.at(plan, fraction, already)
                name = plan.entry.name
                report(RunProgress(number, len(plans), name, at, *counts, left, finished, note))

        entry = record.manifest.entry(plan.entry.id)
        if entry.state in FINAL:
            # A kill may have come between the image's last record and this.
            if entry.state == "written":
                record.blocks_path(entry.id).unlink(missing_ok=True)
            clock.passed(plan, treated=False)
            tell(0.0, note=note)
            note = None
            continue
        if work.stop():
            return
        tell(0.0, note=note)
        note = None
        following = next((p for p in plans[number:] if _to_do(p, record)), None)
        finished = treat(project, plan, work, tell, following)
        if finished.state not in FINAL:
            return
        clock.passed(plan, treated=True)
        tell(0.0, finished=finished)
    record.finish()


def _to_do(plan: EntryPlan, record: RunRecord) -> bool:
    """Whether something of an image is to be computed."""
    state = record.manifest.entry(plan.entry.id).state
    return plan.error is None and plan.nothing is None and state not in FINAL


class _Clock:
    """How much of a run's area is done, and how long the rest takes at the rate so far."""

    def __init__(self, plans: Sequence[EntryPlan]) -> None:
        self._total = sum(p.area or 0.0 for p in plans if not p.nothing) or 1.0
        self._done = 0.0
        self._worked = 0.0
        self._began = time.monotonic()

    def passed(self, plan: EntryPlan, *, treated: bool) -> None:
        """An image is done, now or by an earlier attempt."""
        area = 0.0 if plan.nothing else plan.area or 0.0
        self._done += area
        self._worked += area if treated else 0.0

    def at(self, plan: EntryPlan, fraction: float, already: float) -> tuple[float, float | None]:
        """Fraction of the run, and seconds left, with ``fraction`` of an image treated.

        An earlier attempt had treated ``already`` of the image, in no time of this one.
        """
        here = (plan.area or 0.0) * fraction
        worked = self._worked + (plan.area or 0.0) * (fraction - already)
        left = max(0.0, self._total - self._done - here)
        seconds = time.monotonic() - self._began
        done = min(1.0, (self._done + here) / self._total)
        return done, left / worked * seconds if worked > 0 else None


def _planned(plan: EntryPlan) -> EntryRecord:
    regions = None if plan.regions is None or plan.nothing else plan.regions.digest()
    return EntryRecord(plan.entry.id, plan.entry.name, area=plan.area, regions=regions)


def _stored(options: RunOptions) -> dict[str, Any]:
    """The options as the manifest keeps them."""
    stored = asdict(replace(options, class_map=None))
    if options.class_map is not None:
        names, dropped = options.class_map.names, options.class_map.dropped
        stored["class_map"] = {**names, **dict.fromkeys(sorted(dropped), False)}
    return stored
