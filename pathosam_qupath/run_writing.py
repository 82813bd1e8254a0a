"""What a run writes into an image, given what is there by now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import shapely

from pathosam_qupath.errors import ChangedSinceReadError
from pathosam_qupath.qupath.objects import FRAME_COLUMNS
from pathosam_qupath.qupath.placement import smallest_holding
from pathosam_qupath.qupath.project import open_project
from pathosam_qupath.regions import Regions, choose_regions, label
from pathosam_qupath.replacing import Replacement, lies_on_kept, replace_earlier
from pathosam_qupath.run_plan import EntryPlan, RunOptions
from pathosam_qupath.run_record import open_run, run_ids
from pathosam_qupath.segmentation.classes import MODEL_NAMES
from pathosam_qupath.segmentation.classes import class_colors as colors_of_classes

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import ModelDescription
    from pathosam_qupath.qupath.objects import PathObject
    from pathosam_qupath.qupath.project import Color, Entry, Project

_MOST_REFUSALS = 5


@dataclass(frozen=True, eq=False)
class Present:
    """What new nuclei meet in an image's file.

    Attributes
    ----------
    annotations : of the image, which may become their parents.
    replacement : what goes and what stays of earlier runs' nuclei.
    kept : tree of the shapes that stay.
    """

    annotations: Sequence[PathObject]
    replacement: Replacement
    kept: shapely.STRtree


def present(project: Project, entry: Entry, regions: Regions, options: RunOptions) -> Present:
    """What new nuclei meet in an image's file."""
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
    tree = shapely.STRtree(replacement.kept.geometry.to_numpy())
    return Present(annotations, replacement, tree)


def fitted(nuclei: gpd.GeoDataFrame, there: Present, run_id: str) -> gpd.GeoDataFrame:
    """Nuclei as they are written: without those that lie on kept ones, with all columns.

    These are every column that a detection has, the parent among them.
    """
    on_kept = lies_on_kept(nuclei.geometry.to_numpy(), there.kept)
    return _placed(nuclei[~on_kept].reset_index(drop=True), there.annotations, run_id)


def refusals(regions: Regions) -> str | None:
    """Which annotations were asked for in vain, the first few by name."""
    said = [f"{label(a)} {reason}" for a, reason in regions.refused]
    if len(said) > _MOST_REFUSALS:
        said[_MOST_REFUSALS:] = [f"and {len(said) - _MOST_REFUSALS} more annotations likewise"]
    return "; ".join(said) or None


def as_it_is_now(project: Project, plan: EntryPlan, options: RunOptions) -> tuple[Project, Entry]:
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


def _recorded(project: Project, run_id: str, entry_id: str) -> gpd.GeoDataFrame | None:
    """An earlier run's predictions for an image, where its record is still there."""
    if run_id not in run_ids(project.path.parent):
        return None
    return open_run(project.path.parent, run_id).load_predictions(entry_id)


def _placed(
    nuclei: gpd.GeoDataFrame, annotations: Sequence[PathObject], run_id: str
) -> gpd.GeoDataFrame:
    """Complete a frame: every column that a detection has, parents, vertices as float32."""
    shapes = shapely.transform(
        nuclei.geometry.to_numpy(), lambda xy: xy.astype(np.float32).astype(np.float64)
    )
    frame = nuclei.set_geometry(gpd.GeoSeries(shapes, index=nuclei.index))
    fixed = {"object_type": "detection", "name": None, "color": None, "locked": False}
    frame = frame.assign(**fixed, run=run_id, parent=smallest_holding(shapes, annotations))
    measurements = [c for c in frame.columns if c not in FRAME_COLUMNS]
    return frame[[*FRAME_COLUMNS, *measurements]]


def colors_used(
    used: Collection[str], model: ModelDescription, options: RunOptions
) -> dict[str, Color]:
    """Colours of the classes that occur, by the project's names."""
    info = model.info
    colors = colors_of_classes(info.classes, info.colors, options.class_map or MODEL_NAMES)
    return {name: color for name, color in colors.items() if name in used}
