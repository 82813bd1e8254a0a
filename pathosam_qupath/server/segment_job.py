"""A segment job: regions of an open image in, a file of nuclei in QuPath's GeoJSON out.

Nuclei are written to the file block by block. They are held in memory only where the run
is recorded too, since GeoParquet is written as a whole, and a few for the job's picture.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pathosam_qupath.errors import PathosamError
from pathosam_qupath.qupath.objects import FRAME_COLUMNS
from pathosam_qupath.qupath.placement import smallest_holding
from pathosam_qupath.regions import Regions, choose_regions, label
from pathosam_qupath.segmentation.classes import ClassMap, class_colors
from pathosam_qupath.server.access import Roots
from pathosam_qupath.server.geometry import annotations_of, named_parents
from pathosam_qupath.server.images import Images
from pathosam_qupath.server.job import Job, new_job_id
from pathosam_qupath.server.job_picture import PICTURED, draw_picture
from pathosam_qupath.server.jobs import Jobs
from pathosam_qupath.server.open_image import OpenImage
from pathosam_qupath.server.pacing import Device
from pathosam_qupath.server.problems import ProblemError, is_disk_full
from pathosam_qupath.server.prompt_models import modes_of, paced
from pathosam_qupath.server.recording import JobRecord, begin_record
from pathosam_qupath.server.results import Results
from pathosam_qupath.server.schemas import ClassNames, SegmentJob
from pathosam_qupath.server.warm_model import WarmModel

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.model.interface import ModelInfo, NucleusModel, Postprocessing
    from pathosam_qupath.qupath.project import Color
    from pathosam_qupath.segmentation.block_plan import SegmentOptions
    from pathosam_qupath.segmentation.pipeline import Progress

_MODEL_SECONDS = 3600.0
"""How long a job waits for its model; a large one may have to be downloaded."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What a segment job works with.

    Attributes
    ----------
    device : whose turn it is.
    """

    images: Images
    jobs: Jobs
    results: Results
    roots: Roots
    warm: WarmModel
    device: Device


@dataclass(eq=False)
class _Found:
    """Nuclei of a job so far."""

    keep: bool
    count: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    frames: list[gpd.GeoDataFrame] = field(default_factory=list)
    pictured: list[gpd.GeoDataFrame] = field(default_factory=list)

    def add(self, local: gpd.GeoDataFrame, placed: gpd.GeoDataFrame) -> None:
        if sum(map(len, self.pictured)) < PICTURED:
            self.pictured.append(local[["classification", "geometry"]])
        if self.keep:
            self.frames.append(placed)
        self.count += len(placed)
        for name, count in placed["classification"].value_counts().items():
            self.classes[str(name)] = self.classes.get(str(name), 0) + int(count)


def segment_job(request: SegmentJob, bench: Bench) -> Job:
    """The job that a request asks for, not yet submitted.

    Raises
    ------
    ProblemError : the image is not open, or none of the regions can be treated.
    """
    image = bench.images.get(request.image)
    regions, parents = _regions(request, image)
    if regions.empty:
        reasons = "; ".join(f"{label(a)} {why}" for a, why in regions.refused) or "all is ignored"
        raise ProblemError(
            422, "usage", "regions", f"there is nothing to segment ({reasons})", "Choose others."
        )
    job = Job(
        id=new_job_id(),
        kind="segment",
        lane="device",
        about=image.id,
        label=image.label,
        image=image.id,
        work=lambda job: _work(job, request, image, regions, parents, bench),
    )
    job.note = _refusals(regions)
    job.held.enter_context(bench.images.hold(image))
    return job


def class_map_of(names: ClassNames | None, info: ModelInfo) -> ClassMap:
    """What a request's names of classes mean.

    Raises
    ------
    ProblemError : a name is not one of the model's classes.
    """
    given = names or {}
    unknown = sorted(set(given) - set(info.classes))
    if unknown:
        raise ProblemError(
            422,
            "usage",
            "classes",
            f"the model {info.name} has no class {', '.join(unknown)}",
            f"Its classes are: {', '.join(info.classes) or 'none'}.",
        )
    return ClassMap(
        names={name: value or None for name, value in given.items() if value is not False},
        dropped=frozenset(name for name, value in given.items() if value is False),
    )


def _regions(request: SegmentJob, image: OpenImage) -> tuple[Regions, frozenset[str]]:
    """What to treat, in coordinates of the image, and which ids nuclei may name as parents."""
    size = image.slide.width, image.slide.height
    if request.regions is None:
        return choose_regions((), size, whole_image=True), frozenset()
    annotations = annotations_of(request.regions.features, image)
    return choose_regions(annotations, size), named_parents(request.regions.features)


def _refusals(regions: Regions) -> str | None:
    said = [f"{label(a)} {why}" for a, why in regions.refused[:5]]
    return "Left out: " + "; ".join(said) if said else None


def _work(
    job: Job,
    request: SegmentJob,
    image: OpenImage,
    regions: Regions,
    parents: frozenset[str],
    bench: Bench,
) -> Mapping[str, object]:
    """Segment, write, record; in the lane's thread."""
    from pathosam_qupath.qupath.geojson import write_geojson
    from pathosam_qupath.segmentation.pipeline import SegmentOptions

    bench.jobs.update(job, stage="waiting for the model")
    model = bench.warm.get(seconds=_MODEL_SECONDS, cancelled=job.cancelled)
    classes = class_map_of(request.options.classes, model.info)
    _check_mode(request.options.mode, model)
    record = _record(job, request, image, regions, model, bench)
    if record is None:
        job.run = new_live_run_id()
    colors = class_colors(model.info.classes, model.info.colors, classes)
    options = SegmentOptions(
        mode=request.options.mode,
        postprocessing=_postprocessing(request, model.info.postprocessing),
        class_map=classes,
        seed=f"{job.run}/{image.id}",
    )
    found = _Found(keep=record is not None)
    blocks = _nuclei(
        image,
        regions,
        paced(model, bench.device, job.cancelled),
        options,
        partial(_tell, bench.jobs, job),
    )

    def frames() -> Iterator[gpd.GeoDataFrame]:
        with closing(blocks) as stream:
            for frame in stream:
                placed = _placed(frame, regions, parents, image, str(job.run))
                found.add(frame, placed)
                yield placed

    path = bench.results.path(job.id)
    try:
        write_geojson(path, detections=frames(), class_colors=colors, foreign=True)
        size = bench.results.keep(job.id)
        if record is not None:
            bench.jobs.update(job, stage="recording")
            _finish_record(job, record, found, colors)
    except BaseException as error:
        bench.results.forget(job.id)
        if record is not None:
            record.fail(str(error) or "the job was cancelled")
        raise
    pictured = found.pictured
    job.ended_hook = lambda: _picture(job, image, pictured, colors, bench)
    return {"features": found.count, "bytes": size, "classes": found.classes}


def _nuclei(
    image: OpenImage,
    regions: Regions,
    model: NucleusModel,
    options: SegmentOptions,
    progress: Callable[[Progress], None],
) -> Generator[gpd.GeoDataFrame, None, None]:
    """Rows of nuclei, one frame per block, in coordinates of the image."""
    from pathosam_qupath.segmentation.close_up import close_up
    from pathosam_qupath.segmentation.pipeline import nuclei_frame, plan_blocks, segment_blocks

    plan, info = plan_blocks(image.slide, regions.polygons, model.info, options), model.info
    near = None
    if model.device == "cpu":
        near = close_up(plan, info, options, threads=os.cpu_count() or 1)
    blocks = segment_blocks(
        plan if near is None else near.plan, model, options=options, progress=progress
    )
    with closing(blocks):
        for block in blocks:
            objects = block.objects if near is None else near.on_slide(block.objects)
            yield nuclei_frame([objects], image.slide.mpp, info, options)


def _tell(jobs: Jobs, job: Job, p: Progress) -> None:
    done = p.tiles_done / max(1, p.tiles_total)
    jobs.update(
        job,
        stage="segmenting",
        tiles_done=p.tiles_done,
        tiles_total=p.tiles_total,
        nuclei=p.nuclei,
        fraction=min(0.99, done),
    )


def new_live_run_id() -> str:
    """An id for a run that no project remembers; of the same form as one that is."""
    moment = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"{moment}-{uuid.uuid4().hex[:4]}"


def _check_mode(mode: str, model: NucleusModel) -> None:
    if mode not in modes_of(model):
        raise ProblemError(
            422,
            "usage",
            f"mode {mode!r}",
            f"the model {model.info.name} does not segment so",
            f"Use {' or '.join(modes_of(model))}.",
        )


def _postprocessing(request: SegmentJob, usual: Postprocessing) -> Postprocessing:
    given = request.options.model_dump(exclude={"mode", "classes"}, exclude_none=True)
    return replace(usual, **given)


def _placed(
    frame: gpd.GeoDataFrame, regions: Regions, parents: frozenset[str], image: OpenImage, run: str
) -> gpd.GeoDataFrame:
    """Nuclei as detections: every column that one has, vertices on the slide as float32."""
    import geopandas as gpd

    shapes = frame.geometry.to_numpy()
    parent = smallest_holding(shapes, regions.treated)
    parent[[p not in parents for p in parent]] = None
    on_slide = shapely.transform(
        image.placement.shapes_to_slide(shapes), lambda xy: xy.astype(np.float32).astype(np.float64)
    )
    placed = frame.set_geometry(gpd.GeoSeries(on_slide, index=frame.index)).assign(
        object_type="detection", name=None, color=None, locked=False, run=run, parent=parent
    )
    return placed[[*FRAME_COLUMNS, *(c for c in placed.columns if c not in FRAME_COLUMNS)]]


def _record(
    job: Job,
    request: SegmentJob,
    image: OpenImage,
    regions: Regions,
    model: NucleusModel,
    bench: Bench,
) -> JobRecord | None:
    """Begin the run's record where one is asked for; a project that cannot keep it is no error."""
    if request.record is None:
        return None
    options: dict[str, Any] = {
        **request.options.model_dump(exclude_none=True),
        "regions": sorted(str(a.id) for a in regions.treated),
    }
    area = regions.area * image.slide.mpp[0] * image.slide.mpp[1]
    try:
        project = bench.roots.check_project(request.record.project)
        record = begin_record(project, request.record.entry, model, options, area)
    except (PathosamError, ProblemError) as error:
        if is_disk_full(error):
            raise
        job.note = "; ".join(filter(None, (job.note, f"The run is not recorded: {error}")))
        return None
    job.run = record.run
    return record


def _finish_record(job: Job, record: JobRecord, found: _Found, colors: dict[str, Color]) -> None:
    import pandas as pd

    if found.frames:
        record.finish(pd.concat(found.frames, ignore_index=True), colors, job.elapsed())
    job.recorded = bool(found.frames)


def _picture(
    job: Job,
    image: OpenImage,
    frames: list[gpd.GeoDataFrame],
    colors: dict[str, Color],
    bench: Bench,
) -> None:
    """The job's picture, for the page only."""
    if frames:
        draw_picture(bench.results.picture_path(job.id), image, frames, colors)
        job.has_picture = True
