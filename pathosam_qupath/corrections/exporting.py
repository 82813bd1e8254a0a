"""Corrections of projects as training data: ``corrections export``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pathosam_qupath.corrections.collect import CollectOptions, EntryCorrections, collect
from pathosam_qupath.corrections.masks import windows
from pathosam_qupath.corrections.training_regions import (
    FIRST_OWN_TYPE,
    OTHER,
    Region,
    reviewed_regions,
)
from pathosam_qupath.corrections.training_set import (
    Conflict,
    Crop,
    OnConflict,
    StoredRegion,
    TrainingSet,
    add_regions,
)
from pathosam_qupath.corrections.training_set_files import read_training_set, write_training_set
from pathosam_qupath.errors import PathosamError, UsageError
from pathosam_qupath.run_plan import open_entry
from pathosam_qupath.run_record import open_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pathosam_qupath.qupath.project import Entry, Project


@dataclass(frozen=True)
class Problem:
    """An image that could not be exported."""

    project: str
    image: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class ExportReport:
    """What an export did, and what the folder holds now.

    Attributes
    ----------
    added : regions that this export brought.
    regions, crops, nuclei : all that the folder holds; crops by split, nuclei by kind.
    classes : number of nuclei by class.
    own_classes : type ids of classes that no model of PanNuke's classes knows.
    notes : what the reader should know.
    """

    folder: str
    mpp: float
    added: int
    regions: int
    crops: Mapping[str, int]
    nuclei: Mapping[str, int]
    classes: Mapping[str, int]
    own_classes: Mapping[str, int]
    conflicts: tuple[Conflict, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Gathered:
    """What the projects gave so far."""

    classes: dict[str, int]
    regions: list[tuple[Region, tuple[float, float], tuple[Crop, ...]]] = field(
        default_factory=list
    )
    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def export_corrections(
    projects: Sequence[Callable[[], Project]],
    folder: Path,
    *,
    mpp: float,
    options: CollectOptions | None = None,
    image_mpp: float | None = None,
    on_conflict: OnConflict = "newest",
) -> ExportReport:
    """Add the reviewed regions of projects to a folder of training data.

    Parameters
    ----------
    projects : open the projects, one after the other.
    mpp : µm/px of the crops: the resolution of the model that is to learn from them.
    image_mpp : µm/px of images that do not say theirs; default: what their run was told.

    Raises
    ------
    UsageError : nothing was reviewed, the folder holds crops of another resolution or other
        things, or two projects disagree and that was to be an error.
    ImageError : the folder is damaged.
    """
    known = read_training_set(folder) or TrainingSet(mpp)
    if abs(known.mpp - mpp) > 1e-6:
        raise UsageError(
            folder,
            f"it holds crops of {known.mpp:g} µm/px, not of {mpp:g}",
            "Give the same --model, or another folder.",
        )
    gathered = _Gathered(dict(known.classes))
    for opening in projects:
        with opening() as project:
            for found in collect(project, options):
                _gather(project, found, mpp, image_mpp, gathered)
    if not gathered.regions:
        reasons = "; ".join(f"{p.image}: {p.message}" for p in gathered.problems)
        raise UsageError(
            "corrections",
            "nothing was reviewed in these projects" + (f" ({reasons})" if reasons else ""),
            "Mark regions as reviewed in QuPath (annotation class or name `reviewed`, or lock "
            "them after the run), or name them with --reviewed.",
        )
    splits = dict(known.splits)
    new = []
    for region, scale, crops in gathered.regions:
        split = replace(known, splits=splits).split_of(region.slide)
        splits[region.slide] = split
        new.append(StoredRegion(region, split, scale, crops))
    known = replace(known, classes=gathered.classes, splits=splits)
    merged, conflicts = add_regions(known, new, on_conflict)
    written = write_training_set(folder, merged, gathered.images)
    return _report(folder, written, len(new), conflicts, gathered.problems)


def _gather(
    project: Project,
    found: EntryCorrections,
    mpp: float,
    image_mpp: float | None,
    gathered: _Gathered,
) -> None:
    """Read the reviewed regions of one image and their pixels."""
    entry = next(e for e in project.entries if e.id == found.id)
    try:
        if found.message is not None:
            raise _failed(found)
        regions = reviewed_regions(project, entry, found, gathered.classes)
        if regions:
            _read_crops(project, entry, found, regions, mpp, image_mpp, gathered)
    except PathosamError as error:
        problem = Problem(str(project.path.parent), found.name, str(error), error.exit_code)
        gathered.problems.append(problem)


def _failed(found: EntryCorrections) -> PathosamError:
    error = PathosamError(f"image {found.name!r}", found.message or "", "")
    error.exit_code = found.exit_code
    return error


def _read_crops(
    project: Project,
    entry: Entry,
    found: EntryCorrections,
    regions: Sequence[Region],
    mpp: float,
    image_mpp: float | None,
    gathered: _Gathered,
) -> None:
    if image_mpp is None and found.runs:
        told = open_run(project.path.parent, found.runs[-1]).manifest.options.get("mpp")
        image_mpp = None if told is None else float(told)
    with open_entry(entry, image_mpp) as slide:
        scaled = slide.at(mpp)
        for region in regions:
            crops = []
            for window in windows(region.area, scaled.scale, (scaled.width, scaled.height)):
                name = f"{region.name}-{window.x}-{window.y}"
                pixels = scaled.read(window.x, window.y, window.width, window.height)
                gathered.images[name] = pixels
                crops.append(Crop(name, window))
            gathered.regions.append((region, scaled.scale, tuple(crops)))


def _report(
    folder: Path,
    written: TrainingSet,
    added: int,
    conflicts: Sequence[Conflict],
    problems: Sequence[Problem],
) -> ExportReport:
    kinds: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    crops: Counter[str] = Counter()
    for stored in written.regions:
        nuclei = stored.region.nuclei
        nuclei = nuclei[(nuclei["kind"] != OTHER).to_numpy()]
        kinds.update(nuclei["kind"])
        classes.update(nuclei["class"].fillna("unclassified"))
        crops[stored.split] += len(stored.crops)
    notes = []
    if "val" not in crops:
        notes.append(
            "All regions are of training slides, so nothing is held out: export a second slide, "
            "or let finetune hold regions out."
        )
    own = {name: number for name, number in written.classes.items() if number >= FIRST_OWN_TYPE}
    if own:
        notes.append(f"Classes that PanNuke does not know: {', '.join(sorted(own))}.")
    disagreeing = [c for c in conflicts if c.nuclei]
    notes += [
        f"{c.image}: {c.projects[0]} and {c.projects[1]} disagree about {c.nuclei} nuclei; "
        f"{c.winner} counts."
        for c in disagreeing
    ]
    return ExportReport(
        str(folder),
        written.mpp,
        added,
        len(written.regions),
        dict(crops),
        dict(kinds),
        dict(classes),
        own,
        tuple(conflicts),
        tuple(problems),
        tuple(notes),
    )
