"""What a person corrected since the runs: the nuclei of a project, each with its story.

Which objects are nuclei is told in :mod:`~pathosam_qupath.corrections.candidates`, what counts
as reviewed in :mod:`~pathosam_qupath.corrections.review`. Nuclei count where they lie in a
region that a run treated or that somebody reviewed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.corrections.baseline import UNBOUNDED, Baseline, read_baseline
from pathosam_qupath.corrections.candidates import (
    HAND,
    PROMPT,
    Unmarked,
    drawn_nuclei,
    largest_nucleus,
    makers,
)
from pathosam_qupath.corrections.diff import DIFF_COLUMNS, KEPT, KINDS, UNRECORDED, compare, texts
from pathosam_qupath.corrections.review import is_remark, why_reviewed
from pathosam_qupath.errors import PathosamError, RunError, UsageError
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.placement import smallest_containing
from pathosam_qupath.regions import choose_regions, label
from pathosam_qupath.replacing import in_region
from pathosam_qupath.run_plan import is_chosen
from pathosam_qupath.run_record import open_run, run_ids

if TYPE_CHECKING:
    from pathosam_qupath.qupath.project import Entry, Project

OUTSIDE = "outside annotations"


@dataclass(frozen=True)
class CollectOptions:
    """What to compare with what.

    Attributes
    ----------
    run : a run's id, the beginning of it, or "last"; None: all runs.
    images : patterns of image names or ids; empty means every image.
    reviewed : further classes or names of annotations that were reviewed; "all": every one.
    unmarked : which detections without a mark count, see
        :mod:`~pathosam_qupath.corrections.candidates`.
    """

    run: str | None = None
    images: tuple[str, ...] = ()
    reviewed: tuple[str, ...] = ()
    unmarked: Unmarked = "new"


@dataclass(frozen=True, eq=False)
class AnnotationReview:
    """A region and what became of the nuclei in it.

    Attributes
    ----------
    id : the annotation's; None for what lies outside of annotations.
    reviewed : why it counts as reviewed; None where it does not.
    area : its geometry, less what is ignored.
    counts : number of nuclei by kind, each counted in the smallest annotation around it.
    """

    id: str | None
    label: str
    classification: str | None
    reviewed: str | None
    area: BaseGeometry = field(repr=False)
    counts: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, object]:
        """The region in words and numbers."""
        return {
            "id": self.id,
            "label": self.label,
            "classification": self.classification,
            "reviewed": self.reviewed,
            "counts": dict(self.counts),
        }


@dataclass(frozen=True, eq=False)
class EntryCorrections:
    """What was corrected in one image.

    Attributes
    ----------
    runs : ids of the runs that were compared with.
    nuclei : columns of :data:`~pathosam_qupath.corrections.diff.DIFF_COLUMNS`, and
        ``annotation`` (id of the smallest region around it, or None) and ``reviewed``.
    recorded : the nuclei as they were written.
    treated : what the runs treated; None: the whole image.
    reviewed : the reviewed area.
    others : outlines of detections that count neither as a run's nor as a person's.
    message : why the image could not be compared; then ``exit_code`` is not 0.
    """

    id: str
    name: str
    runs: tuple[str, ...] = ()
    nuclei: gpd.GeoDataFrame = field(default_factory=lambda: _no_nuclei())
    annotations: tuple[AnnotationReview, ...] = ()
    recorded: gpd.GeoDataFrame | None = None
    treated: BaseGeometry | None = field(default_factory=shapely.Polygon)
    reviewed: BaseGeometry = field(default_factory=shapely.Polygon)
    others: NDArray[np.object_] = field(default_factory=lambda: np.zeros(0, object))
    message: str | None = None
    exit_code: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of nuclei by kind."""
        return _counts(self.nuclei)

    def summary(self) -> dict[str, object]:
        """The corrections in words and numbers; what was kept is only counted."""
        changed = self.nuclei[(self.nuclei["kind"] != KEPT).to_numpy()]
        return {
            "id": self.id,
            "name": self.name,
            "runs": list(self.runs),
            "counts": self.counts,
            "reviewed_counts": _counts(self.nuclei[self.nuclei["reviewed"].to_numpy(bool)]),
            "annotations": [a.summary() for a in self.annotations],
            "corrections": [
                {name: row[name] for name in changed.columns if name != "geometry"}
                for row in changed.to_dict("records")
            ],
            "problem": self.message,
        }


def collect(project: Project, options: CollectOptions | None = None) -> list[EntryCorrections]:
    """Compare a project's images with what the runs wrote into them.

    An image that fails does not stop the rest; images that no run wrote to and in which
    nothing is marked as reviewed are left out.

    Raises
    ------
    UsageError : no image fits the patterns.
    RunError : the project remembers no run and no image has a reviewed region, or there is
        no run of that id.
    """
    options = options or CollectOptions()
    entries = [e for e in project.entries if is_chosen(e, options.images)]
    if not entries:
        names = ", ".join(repr(e.name) for e in project.entries[:8]) or "none"
        raise UsageError(
            "--images " + " ".join(options.images),
            "no image fits",
            f"Images of this project: {names}.",
        )
    folder = project.path.parent
    run = None if options.run is None else open_run(folder, options.run).manifest.run
    found = [_collect_safely(entry, project, options, run) for entry in entries]
    result = [one for one in found if one is not None]
    if not result:
        listed = ", ".join(run_ids(folder)[-5:]) or "none"
        raise RunError(
            project.path,
            "no run wrote to the chosen images, and no region in them is marked as reviewed",
            f"Runs of this project: {listed}. Run `pathosam-qupath segment` first.",
        )
    return result


def _collect_safely(
    entry: Entry, project: Project, options: CollectOptions, run: str | None
) -> EntryCorrections | None:
    try:
        return collect_entry(entry, project, options, run)
    except PathosamError as error:
        return EntryCorrections(entry.id, entry.name, message=str(error), exit_code=error.exit_code)


def collect_entry(
    entry: Entry, project: Project, options: CollectOptions, run: str | None = None
) -> EntryCorrections | None:
    """Compare one image; None where no run wrote to it and nothing in it was reviewed.

    Raises
    ------
    PathosamError : the image's data or a run's record cannot be read.
    """
    annotations, detections = entry.annotations(), entry.detections()
    baseline = read_baseline(project.path.parent, entry.id, annotations, detections, run)
    regions = _regions(annotations, baseline, options)
    reviewed = shapely.union_all([r.area for r in regions if r.reviewed is not None])
    if not baseline.runs and reviewed.is_empty:
        return None
    treated = baseline.region if baseline.runs else shapely.Polygon()
    looked_at = None if treated is None else shapely.union_all([treated, reviewed])

    known = detections["id"].isin(baseline.recorded["id"]).to_numpy()
    maker = makers(detections, baseline, run_ids(project.path.parent), options.unmarked)
    inside = in_region(detections.geometry.to_numpy(), looked_at) & ~known
    new = inside & np.isin(maker, [HAND, PROMPT])
    unrecorded = inside & (maker == UNRECORDED)
    drawn = drawn_nuclei(
        annotations,
        detections[known | new],
        baseline,
        looked_at,
        largest=largest_nucleus(entry, baseline),
    )
    current = _current(detections[known | new], maker[known | new], drawn)
    nuclei = _with_unrecorded(compare(baseline.recorded, current), detections[unrecorded])
    nuclei, regions = _placed(nuclei, regions, reviewed)
    remarks = np.array([is_remark(c) for c in texts(detections["classification"])], bool)
    return EntryCorrections(
        entry.id,
        entry.name,
        tuple(r.id for r in baseline.runs),
        nuclei,
        regions,
        baseline.recorded,
        treated,
        reviewed,
        detections.geometry.to_numpy()[inside & ~(new | unrecorded | remarks)],
    )


def _current(
    detections: gpd.GeoDataFrame, maker: NDArray[np.object_], drawn: Sequence[PathObject]
) -> gpd.GeoDataFrame:
    """The objects that are nuclei now, as :func:`compare` wants them."""
    columns = {
        "id": [*detections["id"], *(str(a.id) for a in drawn)],
        "classification": [
            *texts(detections["classification"]),
            *(a.classification for a in drawn),
        ],
        "by": [*maker, *[HAND] * len(drawn)],
    }
    shapes = [*detections.geometry, *(a.geometry for a in drawn)]
    return gpd.GeoDataFrame(pd.DataFrame(columns, dtype=object), geometry=shapes)


def _regions(
    annotations: Sequence[PathObject], baseline: Baseline, options: CollectOptions
) -> tuple[AnnotationReview, ...]:
    """The annotations that runs treated or somebody reviewed."""
    found = []
    usable = choose_regions(annotations, UNBOUNDED)
    for annotation, area in zip(usable.treated, usable.polygons or (), strict=True):
        last = baseline.last_in(area)
        earlier = () if last is None else last.annotations_before
        before = next((a for a in earlier if a.id == annotation.id), None)
        why = why_reviewed(annotation, before, options.reviewed, treated=last is not None)
        # An annotation that is newer than the run was not treated by it.
        unsure = last is not None and (last.live or not last.knows_before)
        known = annotation if unsure else before
        treated = known is not None and any(run.treats(known) for run in baseline.runs)
        if why is not None or treated:
            name = label(annotation)
            found.append(
                AnnotationReview(str(annotation.id), name, annotation.classification, why, area)
            )
    return tuple(found)


def _with_unrecorded(nuclei: gpd.GeoDataFrame, rows: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The diff with the nuclei of runs whose record is gone."""
    if not len(rows):
        return nuclei
    label = texts(rows["classification"])
    extra = {
        "id": rows["id"].to_numpy(),
        "kind": UNRECORDED,
        "by": None,
        "run": rows["run"].to_numpy(),
        "before": [()] * len(rows),
        "class_before": label,
        "classification": label,
        "geometry": rows.geometry.to_numpy(),
    }
    both = pd.concat([nuclei, pd.DataFrame(extra)], ignore_index=True)
    return gpd.GeoDataFrame(both, geometry="geometry")


def _placed(
    nuclei: gpd.GeoDataFrame, regions: tuple[AnnotationReview, ...], reviewed: BaseGeometry
) -> tuple[gpd.GeoDataFrame, tuple[AnnotationReview, ...]]:
    """The nuclei with the region each lies in, and the regions with their counts."""
    shapes = nuclei.geometry.to_numpy()
    index = smallest_containing(shapely.centroid(shapes), [r.area for r in regions])
    ids = np.array([*(r.id for r in regions), None], dtype=object)
    looked_at = np.zeros(len(nuclei), bool)
    if not reviewed.is_empty:
        looked_at = in_region(shapes, reviewed)
    nuclei = nuclei.assign(annotation=ids[index], reviewed=looked_at)
    counted = [
        AnnotationReview(
            r.id, r.label, r.classification, r.reviewed, r.area, _counts(nuclei[index == number])
        )
        for number, r in enumerate(regions)
    ]
    outside = nuclei[index < 0]
    if len(outside):
        nowhere = shapely.Polygon()
        counted.append(AnnotationReview(None, OUTSIDE, None, None, nowhere, _counts(outside)))
    return nuclei, tuple(counted)


def _counts(nuclei: gpd.GeoDataFrame) -> dict[str, int]:
    found = nuclei["kind"].value_counts()
    return {kind: int(found[kind]) for kind in KINDS if kind in found}


def _no_nuclei() -> gpd.GeoDataFrame:
    columns = [*DIFF_COLUMNS, "annotation", "reviewed"]
    return gpd.GeoDataFrame({name: [] for name in columns}, geometry="geometry")
