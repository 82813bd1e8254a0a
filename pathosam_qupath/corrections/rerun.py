"""Segment again with another model, only where that makes a difference.

Regions whose nuclei change beyond a threshold under the new model
(:mod:`~pathosam_qupath.corrections.changed_fields`) are segmented as any run does it, with a
record of its own that can be rolled back. What was reviewed is left out altogether; nuclei that
were edited stay, as with every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.batch import Report, run
from pathosam_qupath.corrections.changed_fields import (
    changed_area,
    changed_fields,
    drawn_in,
    found_by,
)
from pathosam_qupath.corrections.collect import CollectOptions, EntryCorrections, collect
from pathosam_qupath.errors import PathosamError, UsageError
from pathosam_qupath.run_plan import RunOptions, open_entry, plan_entry
from pathosam_qupath.run_record import RunManifest, open_run
from pathosam_qupath.run_tissue import tissue_of
from pathosam_qupath.segmentation.classes import ClassMap

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.qupath.project import Entry, Project


@dataclass(frozen=True)
class RerunOptions:
    """Where to look, and what counts as a change.

    Attributes
    ----------
    threshold : a field changes where more than this share of its nuclei differs.
    mpp : µm/px of images that do not say theirs; None: what their run was told.
    class_map : what the model's classes are called; None: as in the image's last run.
    """

    threshold: float = 0.2
    mpp: float | None = None
    class_map: ClassMap | None = None


@dataclass(frozen=True, eq=False)
class EntryChange:
    """How far one image changes.

    Attributes
    ----------
    fields, changed : fields that there are, and those that change.
    nuclei, differing : of both models.
    area : what is to be segmented again, in slide pixels.
    mpp, class_map, tissue : what its last run was told, or this one is.
    message : why the image could not be looked at; then ``exit_code`` is not 0.
    """

    id: str
    name: str
    fields: int = 0
    changed: int = 0
    nuclei: int = 0
    differing: int = 0
    area: BaseGeometry = field(default_factory=shapely.Polygon, repr=False)
    mpp: float | None = None
    class_map: ClassMap | None = None
    tissue: str = "off"
    message: str | None = None
    exit_code: int = 0

    def summary(self) -> dict[str, object]:
        """The change in numbers; the area in square pixels of the slide."""
        told = ("area", "mpp", "class_map", "tissue")
        return {**{k: v for k, v in vars(self).items() if k not in told}, "area": self.area.area}


@dataclass(frozen=True, eq=False)
class RerunReport:
    """How far images change, and the run that wrote it.

    Attributes
    ----------
    manifest : of the run; None where nothing was written.
    """

    changes: tuple[EntryChange, ...]
    manifest: RunManifest | None = None

    def summary(self) -> dict[str, object]:
        """The report for machines."""
        return {"changes": [c.summary() for c in self.changes], "run": self.manifest}


def find_changes(
    project: Project,
    model: NucleusModel,
    *,
    base: NucleusModel | None = None,
    collected: CollectOptions | None = None,
    options: RerunOptions | None = None,
    looking: Callable[[str, int, int], None] | None = None,
) -> RerunReport:
    """Where a model's nuclei differ from those that runs wrote; writes nothing.

    Parameters
    ----------
    base : compare with this model instead of with what the runs wrote.
    collected : which images, and what counts as reviewed.
    looking : called with an image's name, and the tiles done and to do.

    Raises
    ------
    RunError : no run wrote to the images.
    """
    options = options or RerunOptions()
    changes = []
    for found in collect(project, collected):
        if found.message is None and not found.runs:
            continue
        entry = next(e for e in project.entries if e.id == found.id)
        try:
            if found.message is not None:
                raise UsageError(f"image {found.name!r}", found.message, "")
            then = open_run(project.path.parent, found.runs[-1]).manifest.options
            changes.append(_change(entry, found, then, model, base, options, looking))
        except PathosamError as error:
            code = found.exit_code or error.exit_code
            changes.append(EntryChange(found.id, found.name, message=str(error), exit_code=code))
    return RerunReport(tuple(changes))


def segment_changes(
    project: Project,
    model: NucleusModel,
    found: RerunReport,
    *,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RerunReport:
    """Segment what :func:`find_changes` found, as a run of its own.

    Parameters
    ----------
    report, stop : see :func:`pathosam_qupath.batch.run`.

    Raises
    ------
    UsageError : the images were segmented with different class names, pixel sizes or tissue.
    RunError : the run's record cannot be written.
    """
    changed = [change for change in found.changes if change.changed]
    if not changed:
        return found
    first = changed[0]
    told = (first.mpp, first.class_map, first.tissue)
    if any((c.mpp, c.class_map, c.tissue) != told for c in changed):
        raise UsageError(
            project.path,
            "the runs were told different class names, pixel sizes or tissue for the images",
            "Give --images, one group at a time.",
        )
    where = {c.id: shapely.to_wkt(c.area, rounding_precision=3) for c in changed}
    options = RunOptions(
        images=tuple(where),
        whole_image=True,
        mpp=first.mpp,
        class_map=first.class_map,
        tissue=first.tissue,
        where=where,
    )
    plans = [plan_entry(entry, options) for entry in project.entries if entry.id in where]
    record = run(project, model, options, plans, report=report, resume="auto", stop=stop)
    return RerunReport(found.changes, record.manifest)


def recorded_class_map(options: Mapping[str, Any]) -> ClassMap | None:
    """What a run called the model's classes, as its manifest has it; None: as the model did."""
    stored: Mapping[str, str | bool | None] | None = options.get("class_map")
    if stored is None:
        return None
    names = {k: v for k, v in stored.items() if v is None or isinstance(v, str)}
    return ClassMap(names, frozenset(k for k, v in stored.items() if v is False))


def _told_tissue(options: Mapping[str, Any]) -> str:
    """What a run was told of tissue, as one over the whole image is told it."""
    told = str(options.get("tissue") or "off")
    return "off" if told == "auto" and not options.get("whole_image") else told


def _change(
    entry: Entry,
    found: EntryCorrections,
    then: Mapping[str, Any],
    model: NucleusModel,
    base: NucleusModel | None,
    options: RerunOptions,
    looking: Callable[[str, int, int], None] | None,
) -> EntryChange:
    """How far an image changes; ``then`` are the options of its last run."""
    assert found.recorded is not None
    mpp = then.get("mpp") if options.mpp is None else options.mpp
    class_map = options.class_map or recorded_class_map(then)
    told = _told_tissue(then)
    with open_entry(entry, mpp) as slide:
        scale = slide.at(model.info.mpp).scale
        frame = shapely.box(0, 0, slide.width, slide.height)
        treated = frame if found.treated is None else shapely.intersection(found.treated, frame)
        tissue = tissue_of(slide, entry, RunOptions(whole_image=True, tissue=told))
        if tissue is not None:
            treated = shapely.intersection(treated, tissue.geometry)
        area = shapely.difference(treated, found.reviewed)
        seen = None if looking is None else partial(looking, entry.name)
        before = found.recorded
        if base is not None:
            before = found_by(base, slide, area, class_map, seen)
        after = found_by(model, slide, area, class_map, seen)
        changes = changed_fields(area, scale, drawn_in(before, scale), drawn_in(after, scale))
        again = changed_area(changes, options.threshold, scale, area)
    return EntryChange(
        entry.id,
        entry.name,
        len(changes),
        sum(c.change > options.threshold for c in changes),
        sum(c.nuclei for c in changes),
        sum(c.differing for c in changes),
        again,
        mpp,
        class_map,
        told,
    )
