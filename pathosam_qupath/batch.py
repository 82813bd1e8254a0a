"""A run over a project: choose images and regions, segment, record, write.

Nothing here prints; progress goes to a callback, and the outcome is the run's record. An
image that fails does not stop the others. Per image, in this order: predict, put the
predictions and a copy of the old file into the record, extend the project's class list,
replace ``data.qpdata``, note its new hash. Killed anywhere in between, a plain re-run does
what an undisturbed run would have done.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import geopandas as gpd
import numpy as np
import shapely

from pathosam_qupath import __version__
from pathosam_qupath.errors import ChangedSinceReadError, PathosamError
from pathosam_qupath.qupath.objects import FRAME_COLUMNS
from pathosam_qupath.qupath.placement import smallest_holding
from pathosam_qupath.qupath.project import HierarchyChange, open_project
from pathosam_qupath.regions import Regions, choose_regions, label
from pathosam_qupath.replacing import lies_on_kept, replace_earlier
from pathosam_qupath.run_plan import EntryPlan, RunOptions, open_entry
from pathosam_qupath.run_record import (
    EntryRecord,
    RunManifest,
    RunRecord,
    create_run,
    file_hash,
    new_run_id,
    open_run,
    run_ids,
    utc_now,
)
from pathosam_qupath.segmentation.classes import MODEL_NAMES, class_colors
from pathosam_qupath.segmentation.pipeline import Progress, SegmentOptions, segment

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.qupath.project import Color, Entry, Project
    from pathosam_qupath.slide import Slide

_MOST_REFUSALS = 5
_LIBRARIES = ("numpy", "shapely", "geopandas", "opencv-python-headless", "scikit-image", "torch")


@dataclass(frozen=True)
class RunProgress:
    """Where a run is.

    Attributes
    ----------
    image, images : the image being treated (from 1) and how many there are.
    fraction : of the whole run's area, 0…1.
    tiles_done, tiles_total, nuclei : of this image.
    finished : the image's record once it is done with.
    """

    image: int
    images: int
    name: str
    fraction: float
    tiles_done: int = 0
    tiles_total: int = 0
    nuclei: int = 0
    finished: EntryRecord | None = None


Report = Callable[[RunProgress], None]


def run(
    project: Project,
    model: NucleusModel,
    options: RunOptions,
    plans: Sequence[EntryPlan],
    *,
    report: Report | None = None,
) -> RunRecord:
    """Carry a plan out: segment, record, write.

    Raises
    ------
    RunError : the run's record cannot be written.
    """
    run_id = new_run_id(project.path.parent)
    record = create_run(
        project.path.parent,
        RunManifest(
            run=run_id,
            created=utc_now(),
            project=str(project.path),
            backend=project.backend,
            model={**asdict(model.info), "device": model.device},
            options=_stored(options),
            versions=versions(project),
            entries=tuple(EntryRecord(p.entry.id, p.entry.name, area=p.area) for p in plans),
        ),
    )
    total = sum(p.area or 0.0 for p in plans if not p.nothing) or 1.0
    done = 0.0
    for number, plan in enumerate(plans, start=1):
        share = (plan.area or 0.0) / total

        def tell(
            fraction: float,
            counts: tuple[int, int, int] = (0, 0, 0),
            finished: EntryRecord | None = None,
            *,
            number: int = number,
            name: str = plan.entry.name,
            before: float = done,
            share: float = share,
        ) -> None:
            if report is not None:
                at = min(1.0, before + share * fraction)
                report(RunProgress(number, len(plans), name, at, *counts, finished=finished))

        tell(0.0)
        finished = _treat_safely(project, model, options, plan, record, tell)
        done += share
        tell(1.0, finished=finished)
    record.finish()
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


def _treat_safely(
    project: Project,
    model: NucleusModel,
    options: RunOptions,
    plan: EntryPlan,
    record: RunRecord,
    tell: Callable[..., None],
) -> EntryRecord:
    """Treat one image; an error becomes its record, not the end of the run."""
    entry = EntryRecord(plan.entry.id, plan.entry.name, area=plan.area)
    began = time.monotonic()
    try:
        if plan.error is not None:
            raise plan.error
        if plan.nothing is not None:
            entry = replace(entry, state="skipped", message=plan.nothing)
        else:
            entry = _treat(project, model, options, plan, record, tell)
    except PathosamError as error:
        now = record.manifest.entry(entry.id)
        entry = replace(now, state="failed", message=str(error), exit_code=error.exit_code)
    except Exception as error:
        now = record.manifest.entry(entry.id)
        where = _store_traceback(record, entry.id)
        message = f"unexpected {type(error).__name__}: {error}. Details: {where}"
        entry = replace(now, state="failed", message=message, exit_code=1)
    entry = replace(entry, seconds=round(time.monotonic() - began, 3))
    record.update(entry)
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
    model: NucleusModel,
    options: RunOptions,
    plan: EntryPlan,
    record: RunRecord,
    tell: Callable[..., None],
) -> EntryRecord:
    regions = plan.regions
    assert regions is not None
    run_id = record.manifest.run
    with open_entry(plan.entry, options.mpp) as slide:
        nuclei = _segment(slide, model, options, regions, f"{run_id}/{plan.entry.id}", tell)

    project, entry = _as_it_is_now(project, plan, options)
    nuclei, predicted, remove = _combine(project, entry, nuclei, regions, options, run_id)
    record.save_predictions(entry.id, nuclei)
    hash_before = record.save_before(entry.id, entry.data_path)
    predicted = replace(predicted, area=plan.area, hash_before=hash_before)
    record.update(predicted)

    if len(nuclei) or remove:
        colors = _class_colors(nuclei, model, options)
        record.add_class_colors(colors)
        project.add_classes(colors)
        entry.write(HierarchyChange(remove=remove, add=nuclei))
    return replace(predicted, state="written", hash_after=file_hash(entry.data_path))


def _combine(
    project: Project,
    entry: Entry,
    nuclei: gpd.GeoDataFrame,
    regions: Regions,
    options: RunOptions,
    run_id: str,
) -> tuple[gpd.GeoDataFrame, EntryRecord, frozenset[UUID]]:
    """What to write, given what is there: new nuclei, the counts, ids to remove."""
    annotations, existing = entry.annotations(), entry.detections()
    parents = {str(a.parent) for a in annotations if a.parent is not None}
    parents.update(existing["parent"].dropna())
    replacement = replace_earlier(
        existing,
        regions.union(),
        parents=parents,
        recorded=lambda earlier: _recorded(project, earlier, entry.id),
        policy=options.policy,
        replace_edited=options.replace_edited,
    )
    on_kept = lies_on_kept(nuclei.geometry.to_numpy(), replacement.kept.geometry.to_numpy())
    nuclei = _place(nuclei[~on_kept].reset_index(drop=True), annotations, run_id)
    predicted = EntryRecord(
        entry.id,
        entry.name,
        state="predicted",
        nuclei=len(nuclei),
        removed=len(replacement.remove),
        kept=replacement.kept_inside,
        overlapping=int(on_kept.sum()),
        message=_refusals(regions),
    )
    return nuclei, predicted, replacement.remove


def _refusals(regions: Regions) -> str | None:
    """Which annotations were asked for in vain, the first few by name."""
    said = [f"{label(a)} {reason}" for a, reason in regions.refused]
    if len(said) > _MOST_REFUSALS:
        said[_MOST_REFUSALS:] = [f"and {len(said) - _MOST_REFUSALS} more annotations likewise"]
    return "; ".join(said) or None


def _as_it_is_now(project: Project, plan: EntryPlan, options: RunOptions) -> tuple[Project, Entry]:
    """The image to write to: its file may have been saved by QuPath while it was segmented.

    Raises
    ------
    ChangedSinceReadError : what was treated is no longer what there is to treat.
    """
    try:
        plan.entry.annotations()
        return project, plan.entry
    except ChangedSinceReadError as error:
        project = open_project(project.path, project.backend)
        entry = next((e for e in project.entries if e.id == plan.entry.id), None)
        then = plan.regions
        if entry is None or then is None or plan.size is None:
            raise
        now = choose_regions(
            entry.annotations(),
            plan.size,
            wanted=options.annotations,
            whole_image=options.whole_image,
        )
        before, after = then.union(), now.union()
        if before is not after and not (before and after and before.equals(after)):
            raise ChangedSinceReadError(
                entry.data_path,
                "the annotations to segment were edited while they were being segmented",
                "Nothing was written to this image. Run the same command again.",
            ) from error
        return project, entry


def _segment(
    slide: Slide,
    model: NucleusModel,
    options: RunOptions,
    regions: Regions,
    seed: str,
    tell: Callable[..., None],
) -> gpd.GeoDataFrame:
    def progress(p: Progress) -> None:
        counts = (p.tiles_done, p.tiles_total, p.nuclei)
        tell(p.tiles_done / max(1, p.tiles_total), counts)

    return segment(
        slide,
        regions.polygons,
        model,
        options=SegmentOptions(seed=seed, class_map=options.class_map or MODEL_NAMES),
        progress=progress,
    )


def _recorded(project: Project, run_id: str, entry_id: str) -> gpd.GeoDataFrame | None:
    """An earlier run's predictions for an image, where its record is still there."""
    if run_id not in run_ids(project.path.parent):
        return None
    return open_run(project.path.parent, run_id).load_predictions(entry_id)


def _place(nuclei: gpd.GeoDataFrame, annotations: Sequence[Any], run_id: str) -> gpd.GeoDataFrame:
    """Complete a frame: every column that a detection has, parents, vertices as float32."""
    shapes = shapely.transform(
        nuclei.geometry.to_numpy(), lambda xy: xy.astype(np.float32).astype(np.float64)
    )
    frame = nuclei.set_geometry(gpd.GeoSeries(shapes, index=nuclei.index))
    fixed = {"object_type": "detection", "name": None, "color": None, "locked": False}
    frame = frame.assign(**fixed, run=run_id, parent=smallest_holding(shapes, annotations))
    measurements = [c for c in frame.columns if c not in FRAME_COLUMNS]
    return frame[[*FRAME_COLUMNS, *measurements]]


def _class_colors(
    nuclei: gpd.GeoDataFrame, model: NucleusModel, options: RunOptions
) -> dict[str, Color]:
    """Colours of the classes that occur, by the project's names."""
    info = model.info
    colors = class_colors(info.classes, info.colors, options.class_map or MODEL_NAMES)
    used = set(nuclei["classification"].dropna())
    return {name: color for name, color in colors.items() if name in used}


def _stored(options: RunOptions) -> dict[str, Any]:
    """The options as the manifest keeps them."""
    stored = asdict(replace(options, class_map=None))
    if options.class_map is not None:
        names, dropped = options.class_map.names, options.class_map.dropped
        stored["class_map"] = {**names, **dict.fromkeys(sorted(dropped), False)}
    return stored
