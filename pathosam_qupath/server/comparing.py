"""Detections of an open image beside what their runs have recorded."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from pathosam_qupath.run_record import open_run, run_ids
from pathosam_qupath.server.geometry import shape_of
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.schemas import ComparedFeature, UntouchedRequest, WithdrawnRequest

if TYPE_CHECKING:
    import geopandas as gpd


def untouched_ids(request: UntouchedRequest, project: Path) -> list[str]:
    """Ids of the detections that nobody has edited since their run.

    Parameters
    ----------
    project : the project's file, checked already.

    Raises
    ------
    ProjectError, RunError : the project, or the record of a run, cannot be read.
    """
    from pathosam_qupath.edits import untouched

    folder = project.parent
    known = set(run_ids(folder))
    by_run: defaultdict[str, list[ComparedFeature]] = defaultdict(list)
    for feature in request.objects.features:
        run = feature.properties.get("run")
        if isinstance(run, str) and run in known:
            by_run[run].append(feature)
    ids: list[str] = []
    for run, features in by_run.items():
        recorded = open_run(folder, run).load_predictions(request.entry)
        now = _frame(features)
        parents = {f.id.lower() for f in features if f.properties.get("children")}
        ids += now["id"].to_numpy()[untouched(now, recorded, parents)].tolist()
    return ids


def withdraw(run: str, request: WithdrawnRequest, project: Path) -> None:
    """Note that nuclei of a recorded run were taken out of an open image again.

    Parameters
    ----------
    project : the project's file, checked already.

    Raises
    ------
    ProblemError : the project has no such run, or the run has no such image.
    ProjectError, RunError : the record cannot be read or written.
    """
    from pathosam_qupath.corrections.withdrawn import note_withdrawn

    folder = project.parent
    known = run in run_ids(folder)
    if not known or request.entry not in {e.id for e in open_run(folder, run).manifest.entries}:
        raise ProblemError(
            404, "not_found", run, f"no such run of image {request.entry!r} is recorded", "Go on."
        )
    note_withdrawn(folder, run, request.entry, request.ids, undone=request.undone)


def _frame(features: list[ComparedFeature]) -> gpd.GeoDataFrame:
    """Detections as ``edits`` compares them."""
    import geopandas as gpd

    def text(feature: ComparedFeature, name: str) -> str | None:
        value = feature.properties.get(name)
        return value if isinstance(value, str) else None

    return gpd.GeoDataFrame(
        {
            "id": [f.id.lower() for f in features],
            "object_type": [text(f, "objectType") or "detection" for f in features],
            "classification": [text(f, "classification") for f in features],
            "name": [text(f, "name") for f in features],
            "color": [f.properties.get("color") for f in features],
            "locked": [f.properties.get("locked") is True for f in features],
        },
        geometry=[shape_of(f.geometry) for f in features],
    )
