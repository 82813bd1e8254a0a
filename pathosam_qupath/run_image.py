"""One image of a run: segment it block by block, record it, write it.

Blocks go into a ledger as they are finished (``block_ledger``), so that an image that was
cut off goes on where it was. What is in the project's file by then decides what is written
(``run_writing``).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pathosam_qupath.block_ledger import BlockLedger
from pathosam_qupath.block_workers import BlockWorkers
from pathosam_qupath.c_memory import give_back_freed_memory
from pathosam_qupath.disk_space import bytes_needed, check_room
from pathosam_qupath.errors import PathosamError, SchedulerError
from pathosam_qupath.plausibility import warnings_of
from pathosam_qupath.qupath.project import HierarchyChange
from pathosam_qupath.run_blocks import BegunImage, TissueShare, begin_image, fill_ledger
from pathosam_qupath.run_nuclei import Gathered, gather
from pathosam_qupath.run_plan import EntryPlan, RunOptions
from pathosam_qupath.run_record import EntryRecord, RunRecord, backup_of, file_hash
from pathosam_qupath.run_writing import as_it_is_now, colors_used, fitted, present, refusals
from pathosam_qupath.segmentation.classes import MODEL_NAMES
from pathosam_qupath.segmentation.pipeline import BlockPlan, SegmentOptions, nuclei_frame
from pathosam_qupath.segmentation.stain import stain_distance

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import ModelDescription
    from pathosam_qupath.qupath.project import Entry, Project

FINAL = ("written", "skipped", "failed")
"""States of images that a run is done with."""


@dataclass(frozen=True)
class Work:
    """What treating an image needs, whichever image it is.

    Attributes
    ----------
    workers : who computes the blocks.
    stop : asked after every block whether to end.
    begun : images whose turn comes, by id; workers compute them already.
    """

    workers: BlockWorkers
    options: RunOptions
    record: RunRecord
    stop: Callable[[], bool]
    begun: dict[str, BegunImage] = field(default_factory=dict)

    @property
    def model(self) -> ModelDescription:
        """The model with which the workers compute."""
        return self.workers.model

    def close(self) -> None:
        """Let go of images whose turn has not come."""
        while self.begun:
            self.begun.popitem()[1].close()


def treat(
    project: Project,
    plan: EntryPlan,
    work: Work,
    tell: Callable[..., None],
    following: EntryPlan | None = None,
) -> EntryRecord:
    """Treat one image; an error becomes its record, not the end of the run.

    Parameters
    ----------
    tell : called with the fraction done, (tiles done, tiles, nuclei), ``already=`` the
        fraction that an earlier attempt did, ``note=`` something to tell.
    following : the image that comes next; workers that can work ahead begin it.

    Returns
    -------
    The image's record; its state is not one of ``FINAL`` where the run was stopped.

    Raises
    ------
    SchedulerError : there is nobody left to compute.
    """
    record = work.record
    entry = record.manifest.entry(plan.entry.id)
    spent = entry.seconds
    began = time.monotonic()
    try:
        if plan.error is not None:
            raise plan.error
        if plan.nothing is not None:
            entry = replace(entry, state="skipped", message=plan.nothing)
        else:
            entry = _treat(project, plan, work, tell, following)
    except SchedulerError:
        raise
    except PathosamError as error:
        now = record.manifest.entry(entry.id)
        entry = replace(now, state="failed", message=str(error), exit_code=error.exit_code)
    except Exception as error:
        now = record.manifest.entry(entry.id)
        where = _store_traceback(record, entry.id)
        message = f"unexpected {type(error).__name__}: {error}. Details: {where}"
        entry = replace(now, state="failed", message=message, exit_code=1)
    entry = replace(entry, seconds=round(spent + time.monotonic() - began, 3))
    record.update(entry)
    if entry.state == "written":
        record.blocks_path(entry.id).unlink(missing_ok=True)
    return entry


def _store_traceback(record: RunRecord, entry_id: str) -> str:
    """Keep what a developer needs of an unexpected error; returns where, or why not."""
    where = record.entry_folder(entry_id) / "traceback.txt"
    text = traceback.format_exc()
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text, encoding="utf-8")
    except OSError as error:
        return f"{text.splitlines()[-1]} (the whole could not be stored: {error})"
    return str(where)


def _treat(
    project: Project,
    plan: EntryPlan,
    work: Work,
    tell: Callable[..., None],
    following: EntryPlan | None,
) -> EntryRecord:
    record, model, regions = work.record, work.model, plan.regions
    assert regions is not None
    done = _segment(plan, work, tell, following)
    if isinstance(done, EntryRecord):
        return done
    give_back_freed_memory()  # of maps; what is written now needs less
    project, entry = as_it_is_now(project, plan, work.options)
    found = _written_before(entry, record)
    if found is not None:
        return found
    check_room(record.folder, bytes_needed(entry.data_path, done.ledger.objects))
    there = present(project, entry, regions, work.options)
    gathered = gather(
        done.ledger.results(),
        (done.plan.grid.columns, done.plan.grid.rows),
        frame_of=lambda objects: nuclei_frame(objects, done.mpp, model.info, done.options),
        fit=lambda nuclei: fitted(nuclei, there, record.manifest.run),
        store=partial(record.store_nuclei, entry.id),
    )
    nuclei, remove = gathered.stored, there.replacement.remove
    predicted = EntryRecord(
        entry.id,
        entry.name,
        state="predicted",
        nuclei=len(nuclei),
        removed=len(remove),
        kept=there.replacement.kept_inside,
        overlapping=gathered.left_out,
        area=plan.area,
        regions=regions.digest(),
        tiles=int(done.plan.wanted.sum()),
        blank=gathered.blank,
        blurred=gathered.blurred,
        tissue=None if done.tissue is None else done.tissue.share,
        stain=None if done.stain is None else round(done.stain, 3),
        warnings=_warnings(done, gathered),
        hash_before=record.save_before(entry.id, entry.data_path),
        message=refusals(regions),
    )
    record.update(predicted)

    if len(nuclei) or remove:
        colors = colors_used(nuclei.classes, model, work.options)
        record.add_class_colors(colors)
        project.add_classes(colors)
        entry.write(HierarchyChange(remove=remove, batches=nuclei))
    return replace(predicted, state="written", hash_after=file_hash(entry.data_path))


def _warnings(done: _Segmented, gathered: Gathered) -> tuple[str, ...]:
    """What speaks against an image's numbers."""
    said = warnings_of(
        gathered.areas.astype(np.float64) * (done.mpp[0] * done.mpp[1]),
        done.mpp,
        tiles=int(done.plan.wanted.sum()),
        blank=gathered.blank,
        blurred=gathered.blurred,
        magnification=done.magnification,
        stain=done.stain,
    )
    if done.tissue is not None and not done.tissue.found:
        said += ("no tissue was found, so all of the image was looked at",)
    return said


def _written_before(entry: Entry, record: RunRecord) -> EntryRecord | None:
    """The record of an image whose file an earlier attempt replaced before it was cut off.

    Where QuPath's backup still is the file from before the run, nobody has saved since the
    run did, and the file's hash is that of the run's own write.
    """
    then = record.manifest.entry(entry.id)
    if then.state != "predicted" or not (entry.detections()["run"] == record.manifest.run).any():
        return None
    ours = file_hash(backup_of(entry.data_path)) == then.hash_before
    after = file_hash(entry.data_path) if ours else None
    return replace(then, state="written", hash_after=after)


@dataclass(frozen=True, eq=False)
class _Segmented:
    """An image all of whose blocks are in its ledger."""

    ledger: BlockLedger
    plan: BlockPlan
    options: SegmentOptions
    mpp: tuple[float, float]
    magnification: float | None
    tissue: TissueShare | None
    stain: float | None


def _segment(
    plan: EntryPlan, work: Work, tell: Callable[..., None], following: EntryPlan | None
) -> _Segmented | EntryRecord:
    """Put an image's blocks into its ledger.

    Where the run was asked to stop, the image's record instead, which says how far it came.
    """
    entry = work.record.manifest.entry(plan.entry.id)
    with closing(_begin(plan, work)) as begun:
        _begin_ahead(following, work)
        todo, slide = begun.blocks.plan, begun.slide
        fill_ledger(begun, work.workers, work.stop, tell)
        if begun.left:
            there = len(begun.ledger.done)
            message = f"stopped; {there} of {len(todo.blocks)} blocks are done"
            return replace(entry, message=message)
        stain = stain_distance(todo)
        return _Segmented(
            begun.ledger,
            todo,
            begun.blocks.options,
            slide.mpp,
            slide.magnification,
            begun.tissue,
            stain,
        )


def _begin(plan: EntryPlan, work: Work) -> BegunImage:
    """The image, begun, unless it has been already."""
    begun = work.begun.pop(plan.entry.id, None)
    if begun is not None:
        return begun
    options = SegmentOptions(
        seed=f"{work.record.manifest.run}/{plan.entry.id}",
        class_map=work.options.class_map or MODEL_NAMES,
        mode=work.options.mode,
    )
    return begin_image(plan, options, work.options, work.record, work.workers)


def _begin_ahead(following: EntryPlan | None, work: Work) -> None:
    """Let workers that would be idle begin the next image."""
    if following is None or not work.workers.works_ahead:
        return
    # What is wrong with that image is found again, and recorded, when its turn comes.
    with suppress(PathosamError, OSError):
        work.begun[following.entry.id] = _begin(following, work)
