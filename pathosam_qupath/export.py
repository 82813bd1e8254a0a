"""A project's annotations and detections as files that other programs read.

GeoJSON as QuPath writes it (drag the file onto QuPath's viewer to read it back), or
GeoParquet, which keeps a million nuclei in a file that opens in a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pathosam_qupath.errors import PathosamError, UsageError
from pathosam_qupath.run_plan import is_chosen
from pathosam_qupath.run_record import save_parquet

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.qupath.objects import PathObject
    from pathosam_qupath.qupath.project import Color, Entry, Project

Format = Literal["geojson", "parquet"]


@dataclass(frozen=True)
class Exported:
    """What was written for one image; ``message`` says why nothing was."""

    id: str
    name: str
    files: tuple[str, ...] = ()
    annotations: int = 0
    detections: int = 0
    message: str | None = None
    exit_code: int = 0


def export_project(
    project: Project,
    out: Path,
    kind: Format = "geojson",
    *,
    images: Sequence[str] = (),
    gz: bool = False,
) -> list[Exported]:
    """Write every image's objects to ``out``; an image that fails does not stop the rest.

    Parameters
    ----------
    kind : "geojson": one file with everything; "parquet": one with the annotations and one
        with the detections. In both, coordinates are full-resolution pixels.
    images : patterns of image names, or ids; empty means every image.
    gz : write ``.geojson.gz``.

    Raises
    ------
    UsageError : ``gz`` with parquet, no image fits, or ``out`` is not a folder.
    """
    if gz and kind != "geojson":
        raise UsageError("--gz", "parquet files are compressed already", "Leave it out.")
    entries = [entry for entry in project.entries if is_chosen(entry, images)]
    if not entries:
        raise UsageError(
            "--images " + " ".join(images), "no image fits", "`pathosam-qupath inspect` lists them."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}", f"not a folder ({error})", "Give another.") from error
    return [_export_safely(entry, out, kind, gz, project) for entry in entries]


def file_stem(entry: Entry) -> str:
    """A file name for an image: readable, safe on every system, unique by the entry's id."""
    safe = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", entry.name).strip(" .") or "image"
    return f"{safe[:120]}-{re.sub(r'[^A-Za-z0-9_-]+', '_', entry.id)}"


def _export_safely(entry: Entry, out: Path, kind: Format, gz: bool, project: Project) -> Exported:
    try:
        annotations, detections = entry.annotations(), entry.detections()
        if kind == "geojson":
            path = _write_geojson(entry, annotations, detections, out, gz, project.classes)
            files: tuple[Path, ...] = (path,)
        else:
            files = _write_parquet(entry, annotations, detections, out)
    except PathosamError as error:
        return Exported(entry.id, entry.name, message=str(error), exit_code=error.exit_code)
    return Exported(entry.id, entry.name, tuple(map(str, files)), len(annotations), len(detections))


def _write_geojson(
    entry: Entry,
    annotations: Sequence[PathObject],
    detections: gpd.GeoDataFrame,
    out: Path,
    gz: bool,
    colors: Mapping[str, Color],
) -> Path:
    from pathosam_qupath.qupath.geojson import write_geojson

    path = out / (file_stem(entry) + (".geojson.gz" if gz else ".geojson"))
    objects = list(annotations)
    is_cell = (detections["object_type"] == "cell").to_numpy()
    if is_cell.any():
        # A frame has one geometry per row, so cells are written with their nucleus one by one.
        objects += [o for o in entry.objects() if o.object_type == "cell"]
        detections = detections[~is_cell]
    write_geojson(path, objects, detections, class_colors=colors)
    return path


def _write_parquet(
    entry: Entry, annotations: Sequence[PathObject], detections: gpd.GeoDataFrame, out: Path
) -> tuple[Path, Path]:
    paths = (
        out / f"{file_stem(entry)}.annotations.parquet",
        out / f"{file_stem(entry)}.detections.parquet",
    )
    for path, frame in zip(paths, (annotations_frame(annotations), detections), strict=True):
        save_parquet(path, frame)
    return paths


def annotations_frame(annotations: Sequence[PathObject]) -> gpd.GeoDataFrame:
    """Annotations as a frame; measurements are columns, absent ones NaN."""
    import geopandas as gpd
    import pandas as pd

    fixed = pd.DataFrame(
        {
            "id": [str(a.id) for a in annotations],
            "roi": [a.roi for a in annotations],
            "classification": [a.classification for a in annotations],
            "name": [a.name for a in annotations],
            "color": [a.color for a in annotations],
            "locked": [a.locked for a in annotations],
            "parent": [None if a.parent is None else str(a.parent) for a in annotations],
        }
    )
    measured = pd.DataFrame([dict(a.measurements) for a in annotations], index=fixed.index)
    return gpd.GeoDataFrame(
        pd.concat([fixed, measured], axis=1), geometry=[a.geometry for a in annotations]
    )
