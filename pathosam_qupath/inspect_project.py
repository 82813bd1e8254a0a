"""What is in a project, and what of it can be segmented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pathosam_qupath.errors import PathosamError, UsageError
from pathosam_qupath.regions import (
    IGNORED_CLASS,
    choose_regions,
    is_ignored,
    label,
    reason_against,
)
from pathosam_qupath.run_plan import RunOptions, is_chosen, plan_entry

if TYPE_CHECKING:
    from pathosam_qupath.qupath.objects import PathObject
    from pathosam_qupath.qupath.project import Entry, Project

UNCLASSIFIED = "unclassified"


@dataclass(frozen=True)
class AnnotationReport:
    """One annotation: what it is and why it cannot be segmented, if it cannot."""

    id: str
    label: str
    classification: str | None
    roi: str
    area: float | None
    """µm²; None where the pixel size is not known or there is no area."""
    problem: str | None


@dataclass(frozen=True)
class EntryReport:
    """One image of a project.

    Attributes
    ----------
    size : (width, height) in pixels; ``mpp`` (x, y) in µm/px; None where not known.
    detections : number of detections, cells and tiles.
    runs : detections per run of this tool that made them.
    problem : why the image cannot be segmented at all; None where it can.
    remedy : what to do about the problem.
    """

    id: str
    name: str
    image_type: str | None
    path: str | None
    size: tuple[int, int] | None
    mpp: tuple[float, float] | None
    annotations: tuple[AnnotationReport, ...]
    classes: Mapping[str, int] = field(default_factory=dict)
    detections: int = 0
    runs: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None
    remedy: str | None = None


def inspect_project(
    project: Project, *, images: Sequence[str] = (), mpp: float | None = None
) -> list[EntryReport]:
    """Look at every image of a project (or at those whose name or id fits ``images``).

    Raises
    ------
    UsageError : no image fits.
    """
    entries = [entry for entry in project.entries if is_chosen(entry, images)]
    if images and not entries:
        names = ", ".join(repr(e.name) for e in project.entries[:8]) or "none"
        raise UsageError(
            "--images " + " ".join(images), "no image fits", f"Images of this project: {names}."
        )
    return [inspect_entry(entry, mpp=mpp) for entry in entries]


def inspect_entry(entry: Entry, *, mpp: float | None = None) -> EntryReport:
    """Look at one image; what cannot be read becomes its problem."""
    path = None if entry.image.path is None else str(entry.image.path)
    blank = EntryReport(entry.id, entry.name, None, path, None, None, ())
    try:
        annotations = entry.annotations()
        detections = entry.detections()
    except PathosamError as error:
        return _with_problem(blank, error.cause, error.remedy)
    plan = plan_entry(entry, RunOptions(mpp=mpp, whole_image=not annotations, tissue="off"))
    runs = detections["run"].dropna().value_counts()
    report = EntryReport(
        entry.id,
        entry.name,
        entry.image_type,
        path,
        plan.size,
        plan.mpp,
        _annotations(annotations, plan.mpp, plan.size),
        dict(Counter(a.classification or UNCLASSIFIED for a in annotations)),
        len(detections),
        {str(run): int(count) for run, count in runs.items()},
    )
    if plan.error is not None:
        return _with_problem(report, plan.error.cause, plan.error.remedy)
    return report


def _annotations(
    annotations: Sequence[PathObject],
    mpp: tuple[float, float] | None,
    size: tuple[int, int] | None,
) -> tuple[AnnotationReport, ...]:
    regions = choose_regions(annotations, size) if size is not None else None
    refused = {a.id: reason for a, reason in regions.refused} if regions is not None else {}
    areas = (
        {a.id: p.area for a, p in zip(regions.treated, regions.polygons or (), strict=True)}
        if regions is not None
        else {}
    )
    reports = []
    for a in annotations:
        area = None if mpp is None or a.id not in areas else areas[a.id] * mpp[0] * mpp[1]
        problem = refused.get(a.id) or reason_against(a)
        if is_ignored(a):
            problem = f"is cut out of what is segmented (class {IGNORED_CLASS})"
        reports.append(
            AnnotationReport(str(a.id), label(a), a.classification, a.roi, area, problem)
        )
    return tuple(reports)


def _with_problem(report: EntryReport, problem: str, remedy: str) -> EntryReport:
    return replace(report, problem=problem, remedy=remedy)
