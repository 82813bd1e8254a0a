"""What to look at next: fields of view that are worth a correction, as annotations.

The regions that runs treated are divided into fields; those that were reviewed or suggested
already are not suggested again. The model looks at each (at most at a given number, drawn at
random), and those that together stand for most of the doubt, beside what was reviewed, become
annotations of class ``PathoSAM: review`` to step through in QuPath. Nothing that is in the
project is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.corrections.collect import CollectOptions, EntryCorrections, collect
from pathosam_qupath.corrections.masks import Window, slide_box
from pathosam_qupath.corrections.review import REMARK
from pathosam_qupath.corrections.uncertainty import (
    FieldDoubt,
    choose_fields,
    field_doubt,
    rank_fields,
)
from pathosam_qupath.errors import PathosamError, UsageError
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.project import Color, HierarchyChange
from pathosam_qupath.run_plan import open_entry
from pathosam_qupath.run_record import open_run

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.qupath.project import Entry, Project
    from pathosam_qupath.slide import Slide

REVIEW = f"{REMARK}: review"
CLASSES: dict[str, Color] = {REVIEW: (255, 140, 0), f"{REMARK}: reviewed": (0, 140, 70)}
SCORE_KEY = "PathoSAM suggestion"

FIELD = 256
"""Side of a field in pixels of the model's resolution."""

COVERED = 0.6
"""Share of a field that has to lie in what is to be looked at."""

REVIEWED_SHARE = 0.25
"""Reviewed fields that are looked at too, at most, as a share of the others."""


@dataclass(frozen=True)
class Suggestion:
    """A field that is worth a look.

    Attributes
    ----------
    annotation : id of the annotation.
    score : share of the doubt about all fields that it stands for, beyond the reviewed ones and
        the suggestions before it, see
        :func:`~pathosam_qupath.corrections.uncertainty.choose_fields`.
    signs : of doubt, see :mod:`~pathosam_qupath.corrections.uncertainty`.
    box : left, top, right, bottom in slide pixels.
    """

    rank: int
    entry: str
    image: str
    annotation: str
    score: float
    signs: Mapping[str, float]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class SuggestReport:
    """What was suggested.

    Attributes
    ----------
    looked_at : fields that the model saw and that may be suggested, of ``fields`` that there are.
    written : whether the annotations are in the project.
    problems : images that could not be looked at, and why.
    """

    suggestions: tuple[Suggestion, ...]
    looked_at: int
    fields: int
    written: bool
    problems: tuple[str, ...]
    exit_code: int = 0


@dataclass(frozen=True)
class _Field:
    entry: int
    window: Window
    reviewed: bool


def suggest(
    project: Project,
    model: NucleusModel,
    count: int = 20,
    *,
    against: NucleusModel | None = None,
    options: CollectOptions | None = None,
    at_most: int = 200,
    image_mpp: float | None = None,
    seed: int = 0,
    write: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> SuggestReport:
    """Suggest fields for review, and write them into the project as annotations.

    Parameters
    ----------
    against : a second model; where both disagree is worth a look too.
    options : which images, and what counts as reviewed.
    at_most : fields that the model looks at.
    image_mpp : µm/px of images that do not say theirs; default: what their run was told.
    write : False only says what would be suggested.
    progress : called with the number of fields done and to do.

    Raises
    ------
    RunError : no run wrote to the images.
    UsageError : everything was reviewed or suggested already.
    """
    problems: list[str] = []
    entries: list[tuple[Entry, float | None]] = []
    fields: list[_Field] = []
    scales: list[tuple[float, float]] = []
    code = 0
    for found in collect(project, options):
        entry = next(e for e in project.entries if e.id == found.id)
        try:
            if found.message is not None:
                raise UsageError(f"image {found.name!r}", found.message, "")
            mpp = image_mpp if image_mpp is not None else _told_mpp(project, found)
            with open_entry(entry, mpp) as slide:
                scaled = slide.at(model.info.mpp)
                for area, reviewed in _to_look_at(slide, entry, found):
                    windows = field_windows(area, scaled.scale)
                    fields += [_Field(len(entries), w, reviewed) for w in windows]
                scales.append(scaled.scale)
            entries.append((entry, mpp))
        except PathosamError as error:
            problems.append(str(error))
            code = found.exit_code or error.exit_code
    fresh = [field for field in fields if not field.reviewed]
    if not fresh:
        raise UsageError(
            project.path,
            "; ".join(problems) or "everything was reviewed or suggested already",
            "Segment more, or delete suggestions in QuPath.",
        )
    done = [field for field in fields if field.reviewed]
    looked_at = _some(fresh, at_most, seed)
    seen = [*looked_at, *_some(done, round(REVIEWED_SHARE * at_most), seed)]
    # An image is opened once.
    seen.sort(key=lambda field: field.entry)
    doubts = _look(model, against, entries, seen, progress)
    known = [i for i, field in enumerate(seen) if field.reviewed]
    looks = np.array([doubt.look for doubt in doubts])
    suggestions = []
    for rank, choice in enumerate(choose_fields(rank_fields(doubts), looks, count, known), 1):
        field, doubt = seen[choice.index], doubts[choice.index]
        entry, _ = entries[field.entry]
        box = slide_box(field.window, scales[field.entry]).bounds
        suggestions.append(
            Suggestion(
                rank,
                entry.id,
                entry.name,
                str(uuid4()),
                round(choice.share, 4),
                {name: round(value, 4) for name, value in doubt.signs.items()},
                box,
            )
        )
    if write:
        _write(project, [entry for entry, _ in entries], suggestions)
    return SuggestReport(
        tuple(suggestions), len(looked_at), len(fresh), write, tuple(problems), code
    )


def field_windows(
    area: BaseGeometry, scale: tuple[float, float], side: int = FIELD, covered: float = COVERED
) -> list[Window]:
    """Fields that cover what is to be looked at; small parts are fields of their own.

    Parameters
    ----------
    area : in slide pixels.
    scale : (x, y) slide pixels per pixel.
    side : of a field in pixels.
    covered : share of a field that has to lie in the area.
    """
    found: list[Window] = []
    for part in shapely.get_parts(area):
        if part.is_empty or part.area == 0:
            continue
        left, top, right, bottom = part.bounds
        x0, y0 = int(left / scale[0]), int(top / scale[1])
        x1, y1 = int(np.ceil(right / scale[0])), int(np.ceil(bottom / scale[1]))
        columns = [(x, side) for x in range(x0, x1, side)] if x1 - x0 > side else [(x0, x1 - x0)]
        rows = [(y, side) for y in range(y0, y1, side)] if y1 - y0 > side else [(y0, y1 - y0)]
        windows = [Window(x, y, w, h) for y, h in rows for x, w in columns]
        boxes = np.array([slide_box(w, scale) for w in windows])
        shapely.prepare(part)
        shares = shapely.area(shapely.intersection(part, boxes)) / shapely.area(boxes)
        found += [w for w, share in zip(windows, shares, strict=True) if share >= covered]
    return found


def _some(fields: Sequence[_Field], at_most: int, seed: int) -> list[_Field]:
    """All of them, or a number of them that is drawn at random; in their order."""
    order = np.random.default_rng(seed).permutation(len(fields))[:at_most]
    return [fields[i] for i in sorted(order)]


def _to_look_at(
    slide: Slide, entry: Entry, found: EntryCorrections
) -> tuple[tuple[BaseGeometry, bool], tuple[BaseGeometry, bool]]:
    """What runs treated: the part that nobody reviewed and that was not suggested, the other."""
    frame = shapely.box(0, 0, slide.width, slide.height)
    treated = frame if found.treated is None else shapely.intersection(found.treated, frame)
    suggested = [a.geometry for a in entry.annotations() if a.classification == REVIEW]
    done = shapely.union_all([found.reviewed, *(shapely.make_valid(g) for g in suggested)])
    left, reviewed = shapely.difference(treated, done), shapely.intersection(treated, done)
    return (left, False), (reviewed, True)


def _told_mpp(project: Project, found: EntryCorrections) -> float | None:
    """The pixel size that the image's last run was told."""
    if not found.runs:
        return None
    told = open_run(project.path.parent, found.runs[-1]).manifest.options.get("mpp")
    return None if told is None else float(told)


def _look(
    model: NucleusModel,
    against: NucleusModel | None,
    entries: Sequence[tuple[Entry, float | None]],
    fields: Sequence[_Field],
    progress: Callable[[int, int], None] | None,
) -> list[FieldDoubt]:
    doubts: list[FieldDoubt] = []
    for number, (entry, mpp) in enumerate(entries):
        mine = [field.window for field in fields if field.entry == number]
        if not mine:
            continue
        with open_entry(entry, mpp) as slide:
            scaled = slide.at(model.info.mpp)
            for w in mine:
                image = scaled.read(w.x, w.y, w.width, w.height)
                doubts.append(field_doubt(model, image, against))
                if progress is not None:
                    progress(len(doubts), len(fields))
    return doubts


def _write(project: Project, entries: Sequence[Entry], suggestions: Sequence[Suggestion]) -> None:
    """Add the annotations, an image at a time."""
    project.add_classes(CLASSES)
    for entry in entries:
        new = tuple(
            PathObject(
                UUID(s.annotation),
                "annotation",
                shapely.box(*s.box),
                "Rectangle",
                classification=REVIEW,
                name=f"review {s.rank}",
                metadata={SCORE_KEY: f"{s.score:.4f}"},
            )
            for s in suggestions
            if s.entry == entry.id
        )
        if new:
            entry.write(HierarchyChange(annotations=new))
