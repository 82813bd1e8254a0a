"""From an image to all its blocks in the ledger, whoever computes them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathosam_qupath.block_ledger import BlockLedger, open_ledger
from pathosam_qupath.block_workers import BlockWorkers, ImageBlocks
from pathosam_qupath.c_memory import FreedMemory, give_back_freed_memory
from pathosam_qupath.resuming import block_identity
from pathosam_qupath.run_plan import EntryPlan, RunOptions, slide_file
from pathosam_qupath.run_record import RunRecord
from pathosam_qupath.run_tissue import tissue_of
from pathosam_qupath.segmentation.pipeline import Progress, SegmentOptions, plan_blocks
from pathosam_qupath.segmentation.tissue import drawn

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from pathosam_qupath.qupath.project import Entry
    from pathosam_qupath.slide import Slide

_GIVE_BACK_EVERY = 5.0
"""Seconds between two times of giving memory back: blocks of many threads tear it to pieces, so
that it would grow for as long as a slide takes."""


@dataclass(frozen=True)
class TissueShare:
    """How much of a slide is tissue, 0…1; not ``found`` where all of it counts as such."""

    share: float
    found: bool


@dataclass(frozen=True, eq=False)
class BegunImage:
    """An image whose blocks can be computed; to be closed.

    Attributes
    ----------
    tissue : None where the run does not ask for it.
    ledger : of the blocks that are there.
    blocks : all of them.
    """

    slide: Slide
    tissue: TissueShare | None
    ledger: BlockLedger
    blocks: ImageBlocks

    @property
    def left(self) -> int:
        """How many blocks are not there yet."""
        return len(self.blocks.plan.blocks) - len(self.ledger.done)

    def close(self) -> None:
        """Let go of the files."""
        self.ledger.close()
        self.slide.close()


def begin_image(
    plan: EntryPlan,
    options: SegmentOptions,
    run_options: RunOptions,
    record: RunRecord,
    workers: BlockWorkers,
) -> BegunImage:
    """Open an image and its ledger, and let workers begin that can work ahead.

    Raises
    ------
    ImageError, PixelSizeError : the pixels cannot be had, or not be segmented.
    RunError : the ledger cannot be written.
    """
    regions, entry = plan.regions, plan.entry
    assert regions is not None
    file = slide_file(entry, run_options.mpp)
    slide = file.open()
    try:
        info = workers.model.info
        tissue, outlined = _tissue(slide, entry, run_options, record)
        todo = plan_blocks(slide, regions.polygons, info, options, tissue=outlined)
        frame = f"{file.series} {file.crop} {file.rotation} {slide.mpp}"
        identity = block_identity(workers.model, options, todo, file.path, frame)
        ledger = open_ledger(record.blocks_path(entry.id), identity)
    except BaseException:
        slide.close()
        raise
    begun = BegunImage(slide, tissue, ledger, ImageBlocks(entry.name, file, todo, options))
    give_back_freed_memory()  # of the picture in which tissue was looked for
    try:
        if begun.left:
            workers.ahead(begun.blocks, done=frozenset(ledger.done))
    except BaseException:
        begun.close()
        raise
    return begun


def _tissue(
    slide: Slide, entry: Entry, options: RunOptions, record: RunRecord
) -> tuple[TissueShare | None, BaseGeometry | None]:
    """How much of an image is tissue, and its outlines; the picture is in the record."""
    tissue = tissue_of(slide, entry, options)
    if tissue is None:
        return None, None
    record.save_picture(entry.id, "tissue.jpg", drawn(tissue))
    return TissueShare(tissue.share, tissue.found), tissue.geometry


def fill_ledger(
    begun: BegunImage, workers: BlockWorkers, stop: Callable[[], bool], tell: Callable[..., None]
) -> None:
    """Put the blocks that are not there yet into the ledger; some are left where it stopped.

    Parameters
    ----------
    tell : as for :func:`run_image.treat`.
    """
    name, ledger = begun.blocks.name, begun.ledger
    if ledger.differences:
        tell(0.0, note=f"{name} is done from the start: {'; '.join(ledger.differences)}")
    total, before = max(1, len(begun.blocks.plan.blocks)), len(ledger.done)

    def at(share: float) -> float:
        return (before + (total - before) * share) / total

    last = at(0.0)

    def progress(p: Progress) -> None:
        nonlocal last
        last = at(p.tiles_done / max(1, p.tiles_total))
        tell(last, (p.tiles_done, p.tiles_total, p.nuclei), already=before / total)

    results = workers.results(
        begun.blocks,
        done=frozenset(ledger.done),
        progress=progress,
        stop=stop,
        tell=lambda note: tell(last, note=note, already=before / total),
    )
    freed = FreedMemory(_GIVE_BACK_EVERY)
    with closing(results):
        for result in results:
            ledger.append(result)
            freed.give_back()
