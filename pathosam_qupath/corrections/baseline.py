"""What the runs left in an image: the nuclei that a person's work is compared with.

A recorded nucleus that is gone was deleted by a person unless the tool itself took it out: a
later run that replaced it, or a rollback. What a later run replaced is worked out again from
the copy of the file that it kept, by the rule that it followed. A run into an open QuPath
("live") knows neither what QuPath had not saved yet nor what was replaced there: whatever is
gone from the regions that it treated counts as replaced. Such a run can be taken back in QuPath
too. The menu has that noted (:mod:`~pathosam_qupath.corrections.withdrawn`); where nothing is
noted, a live run of which several nuclei are gone and not one is left as it was written counts
as taken back: that is what *Undo last run* leaves, as it spares what was edited.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.corrections.withdrawn import Withdrawn, read_withdrawn
from pathosam_qupath.edits import untouched
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.regions import ALL, choose_regions, is_ignored, is_wanted
from pathosam_qupath.replacing import in_region, replace_earlier
from pathosam_qupath.run_record import EntryRecord, RunRecord, open_run, run_ids

if TYPE_CHECKING:
    import geopandas as gpd

UNBOUNDED = (1 << 30, 1 << 30)
"""A size larger than any image: regions are not cut at the border to be compared."""

_BORDER = 1e-3
"""Share of the smaller of two regions that they have in common where they only touch, at most."""

FEWEST_UNDONE = 5
"""So many nuclei of a live run are gone at least where it counts as taken back unasked."""


class EntryRun:
    """One run as one image saw it.

    Parameters
    ----------
    record : the run's record.
    entry : what it did to the image.
    annotations_now : the image's annotations now, for where those of then are not known.
    detections_now : its detections now.
    """

    def __init__(
        self,
        record: RunRecord,
        entry: EntryRecord,
        annotations_now: Sequence[PathObject],
        detections_now: gpd.GeoDataFrame,
    ) -> None:
        self.id = record.manifest.run
        self.options = record.manifest.options
        self.live = record.manifest.backend == "live"
        self.entry = entry
        self._record = record
        self._now = annotations_now
        self._detections = detections_now

    @cached_property
    def predictions(self) -> gpd.GeoDataFrame | None:
        """The nuclei that the run wrote; None where the record has none."""
        return self._record.load_predictions(self.entry.id)

    @cached_property
    def withdrawn(self) -> Withdrawn:
        """What of the run was taken out again in an open QuPath."""
        noted = read_withdrawn(self._record, self.entry.id)
        if noted.undone or not self.live or self.predictions is None:
            return noted
        there = self._detections[self._detections["id"].isin(self.predictions["id"]).to_numpy()]
        gone = frozenset(self.predictions["id"]) - frozenset(there["id"])
        if len(gone - noted.ids) < FEWEST_UNDONE or not len(there):
            return noted
        if untouched(there, self.predictions, ()).any():
            return noted
        return Withdrawn(noted.ids | gone, undone=True)

    @cached_property
    def _before(self) -> tuple[list[PathObject], gpd.GeoDataFrame] | None:
        """Annotations and detections as they were before the run; None where not known."""
        from pathosam_qupath.qupath.qpdata import QpData

        path = self._record.before_path(self.entry.id)
        if not path.exists():
            return None
        data = QpData.read(path)
        return data.annotations(), data.detections()

    @property
    def knows_before(self) -> bool:
        """Whether it is known what the image held before the run."""
        return self.entry.hash_before is None or self._before is not None

    @property
    def annotations_before(self) -> Sequence[PathObject]:
        """The image's annotations before the run; none where they are not known."""
        return [] if self._before is None else self._before[0]

    @cached_property
    def ids_before(self) -> frozenset[str]:
        """Ids of annotations and detections that were there before the run."""
        if self._before is None:
            return frozenset()
        annotations, detections = self._before
        return frozenset([*(str(a.id) for a in annotations), *detections["id"]])

    @property
    def whole_image(self) -> bool:
        """Whether the run treated the image without regard to its annotations."""
        if self.live:
            return not self.options.get("regions")
        return bool(self.options.get("whole_image"))

    def treats(self, annotation: PathObject) -> bool:
        """Whether the run treated an annotation that was there before it."""
        if self.whole_image:
            return False
        if self.live:
            return str(annotation.id) in self.options["regions"]
        return is_wanted(annotation, tuple(self.options.get("annotations") or (ALL,)))

    @cached_property
    def region(self) -> BaseGeometry | None:
        """What the run treated, by the annotations of then, or else of now; None: everything."""
        then = self._now if self.live or not self.knows_before else self.annotations_before
        treated = [a for a in then if self.treats(a) or is_ignored(a)]
        regions = choose_regions(treated, UNBOUNDED, whole_image=self.whole_image)
        part = (self.options.get("where") or {}).get(self.entry.id)
        if part is not None:
            regions = regions.within(shapely.from_wkt(part), UNBOUNDED)
        return regions.union() if regions.polygons != () else shapely.Polygon()

    def replaced(self, earlier: Collection[EntryRun]) -> frozenset[str]:
        """Ids of nuclei of earlier runs that this one took out."""
        if self.withdrawn.undone:
            return frozenset()
        if self._before is None or self.live:
            # Nothing tells what was there: whatever lay in the region may have been replaced.
            gone: set[str] = set()
            for run in earlier:
                if run.predictions is not None and (self.live or self.entry.removed):
                    inside = in_region(run.predictions.geometry.to_numpy(), self.region)
                    gone.update(run.predictions["id"].to_numpy()[inside])
            return frozenset(gone)
        annotations, detections = self._before
        parents = {str(a.parent) for a in annotations if a.parent is not None}
        parents.update(detections["parent"].dropna())
        known = {run.id: run for run in earlier}
        replacement = replace_earlier(
            detections,
            self.region,
            parents=parents,
            recorded=lambda run: known[run].predictions if run in known else None,
            policy=self.options.get("policy", "replace"),
            replace_edited=bool(self.options.get("replace_edited")),
        )
        return frozenset(str(identity) for identity in replacement.remove)


@dataclass(frozen=True, eq=False)
class Baseline:
    """What the compared runs left in an image.

    Attributes
    ----------
    runs : the runs that count, oldest first.
    recorded : their nuclei, less what the tool itself took out again.
    """

    runs: tuple[EntryRun, ...]
    recorded: gpd.GeoDataFrame

    @property
    def known_before(self) -> frozenset[str] | None:
        """Ids of what was there before the first run; None where that is not known."""
        if not self.runs:
            return frozenset()
        return self.runs[0].ids_before if self.runs[0].knows_before else None

    @property
    def region(self) -> BaseGeometry | None:
        """What the runs treated together; None means the whole image."""
        regions = [run.region for run in self.runs]
        if any(region is None for region in regions):
            return None
        return shapely.union_all([region for region in regions if region is not None])

    def last_in(self, area: BaseGeometry) -> EntryRun | None:
        """The last run that treated some of an area."""
        for run in reversed(self.runs):
            undone = run.entry.state == "rolled back" or run.withdrawn.undone
            if not undone and _share_area(run.region, area):
                return run
        return None


def read_baseline(
    project_folder: Path,
    entry_id: str,
    now: Sequence[PathObject],
    detections: gpd.GeoDataFrame,
    run: str | None = None,
) -> Baseline:
    """What the runs of a project left in one of its images.

    Parameters
    ----------
    now, detections : the image's annotations and detections now.
    run : the id of the one run to compare with; None: all.

    Raises
    ------
    RunError : a record cannot be read.
    FormatError : the copy of an earlier file is damaged.
    """
    import geopandas as gpd

    present = frozenset([*detections["id"], *(str(a.id) for a in now)])
    history = _history(project_folder, entry_id, present, now, detections)
    counted = [r for r in history if r.predictions is not None and run in (None, r.id)]
    frames = []
    for one in counted:
        frame = one.predictions
        assert frame is not None
        there = frame["id"].isin(present).to_numpy()
        if one.entry.state == "rolled back":
            frames.append(frame[there])
        elif there.all():
            frames.append(frame)
        else:
            taken = _taken_by_later(one, history, present) | one.withdrawn.ids
            frames.append(frame[there | ~frame["id"].isin(taken).to_numpy()])
    columns = ["id", "classification", "run", "geometry"]
    kept = [frame[columns] for frame in frames if len(frame)]
    empty = gpd.GeoDataFrame({name: [] for name in columns}, geometry="geometry")
    recorded = pd.concat(kept, ignore_index=True) if kept else empty
    return Baseline(tuple(counted), gpd.GeoDataFrame(recorded, geometry="geometry"))


def _share_area(region: BaseGeometry | None, area: BaseGeometry) -> bool:
    """Whether a region (None: everything) has more in common with an area than a border."""
    if region is None:
        return True
    if not region.intersects(area):
        return False
    smaller = min(region.area, area.area)
    return bool(shapely.intersection(region, area).area > _BORDER * smaller)


def _history(
    project_folder: Path,
    entry_id: str,
    present: frozenset[str],
    now: Sequence[PathObject],
    detections: gpd.GeoDataFrame,
) -> list[EntryRun]:
    """The runs that wrote to the image, oldest first."""
    history = []
    for identity in run_ids(project_folder):
        record = open_run(project_folder, identity)
        for entry in record.manifest.entries:
            if entry.id == entry_id and entry.state not in ("planned", "skipped"):
                run = EntryRun(record, entry, now, detections)
                if entry.state in ("written", "rolled back") or _has_any(run, present):
                    history.append(run)
    return history


def _has_any(run: EntryRun, present: frozenset[str]) -> bool:
    """Whether a run that was cut off, or failed, got as far as writing its nuclei."""
    return run.predictions is not None and not present.isdisjoint(run.predictions["id"])


def _taken_by_later(
    one: EntryRun, history: Sequence[EntryRun], present: Collection[str]
) -> set[str]:
    """Ids that later runs took out of what an earlier one wrote."""
    position = history.index(one)
    taken: set[str] = set()
    for number in range(position + 1, len(history)):
        later = history[number]
        replaced = later.replaced(history[:number])
        # A rollback that brought the old file back brought these nuclei back too.
        if later.entry.state == "rolled back" and not replaced.isdisjoint(present):
            continue
        taken.update(replaced)
    return taken
