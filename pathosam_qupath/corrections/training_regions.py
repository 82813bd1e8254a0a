"""Reviewed regions of a project, each with its nuclei, as they go into a training set.

Regions whose reviewed annotations touch are one region. A nucleus belongs to the region that
its centroid lies in. What else lies there (other tools' detections, nuclei across the border)
is neither a nucleus nor background: it is to be ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.corrections.collect import EntryCorrections
from pathosam_qupath.corrections.diff import DELETED, texts
from pathosam_qupath.corrections.samples import IGNORED_TYPE, TYPES
from pathosam_qupath.errors import ImageError
from pathosam_qupath.replacing import in_region
from pathosam_qupath.run_record import open_run

if TYPE_CHECKING:
    from pathosam_qupath.qupath.project import Entry, ImageSource, Project

NUCLEUS_COLUMNS = ("object", "kind", "by", "run", "before", "class", "type", "geometry")
FIRST_OWN_TYPE = 16
"""Type ids from here on stand for classes of a project that PanNuke does not know."""

OTHER = "ignored"
"""The kind of what is neither nucleus nor background."""

_PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class Region:
    """A reviewed region of one slide.

    Attributes
    ----------
    name : unlike that of any other region; crops are called after it.
    project, entry, image : the project's folder, the image's id and name there.
    slide : what tells the slide (series, crop and rotation included) from others.
    annotations : ids of the annotations that it was made of.
    runs : ids of the runs that it was compared with.
    saved : when the image's objects were last saved, UTC, ISO 8601.
    area : in slide pixels.
    nuclei : columns ``NUCLEUS_COLUMNS``; geometry in slide pixels. Rows of the kind
        ``OTHER`` are no nuclei but to be ignored.
    """

    name: str
    project: str
    entry: str
    image: str
    slide: str
    annotations: tuple[str, ...]
    runs: tuple[str, ...]
    saved: str
    area: BaseGeometry
    nuclei: gpd.GeoDataFrame = field(repr=False)

    @property
    def owner(self) -> tuple[str, str]:
        """Whose region it is."""
        return self.project, self.entry

    def without(self, area: BaseGeometry) -> BaseGeometry:
        """What is left of the region outside of an area."""
        return shapely.difference(self.area, area)


def reviewed_regions(
    project: Project, entry: Entry, found: EntryCorrections, classes: dict[str, int]
) -> list[Region]:
    """The reviewed regions of an image.

    Parameters
    ----------
    found : the image's corrections.
    classes : type ids of classes that PanNuke does not know; new ones are added to it.

    Raises
    ------
    ImageError : the image's file is not found.
    """
    if found.reviewed.is_empty:
        return []
    parts = [p for p in shapely.get_parts(found.reviewed) if p.area > 0]
    folder = str(project.path.parent.resolve())
    slide = slide_key(entry.name, entry.image)
    saved = datetime.fromtimestamp(entry.data_path.stat().st_mtime, timezone.utc)
    nuclei = _nuclei(project, found, classes)
    regions = []
    for area in parts:
        mine = in_region(nuclei.geometry.to_numpy(), area) & (nuclei["kind"] != OTHER).to_numpy()
        near = shapely.intersects(nuclei.geometry.to_numpy(), area) & ~mine
        others = nuclei[near].assign(kind=OTHER, type=IGNORED_TYPE)
        ids = tuple(
            a.id
            for a in found.annotations
            if a.id is not None and a.reviewed is not None and shapely.intersects(a.area, area)
        )
        key = "\n".join([folder, entry.id, slide, *sorted(ids), shapely.to_wkt(area.centroid)])
        regions.append(
            Region(
                hashlib.sha256(key.encode()).hexdigest()[:16],
                folder,
                entry.id,
                entry.name,
                slide,
                ids,
                found.runs,
                saved.isoformat(),
                area,
                gpd.GeoDataFrame(
                    pd.concat([nuclei[mine], others], ignore_index=True), geometry="geometry"
                ),
            )
        )
    return regions


def slide_key(name: str, image: ImageSource) -> str:
    """A text that is the same for the same pixels, wherever the file lies.

    A slide has gigabytes: its size and three samples of its bytes stand for it.

    Raises
    ------
    ImageError : the file is not found or cannot be read.
    """
    path = image.path
    if path is None:
        raise ImageError(
            f"image {name!r}",
            image.problem or "the file is not found",
            "Say where it is with --path-map, or leave it out with --images.",
        )
    return f"{_sampled_hash(path)}-{image.series}-{image.rotation}-{image.crop or ''}"


def _sampled_hash(path: Path) -> str:
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            for start in sorted({0, max(0, (size - _PIECE) // 2), max(0, size - _PIECE)}):
                file.seek(start)
                digest.update(file.read(_PIECE))
    except OSError as error:
        raise ImageError(path, f"it cannot be read ({error})", "Check its permissions.") from error
    return digest.hexdigest()[:20]


def _nuclei(project: Project, found: EntryCorrections, classes: dict[str, int]) -> gpd.GeoDataFrame:
    """Every object of the image that may touch a region, with its type id."""
    rows = found.nuclei[(found.nuclei["kind"] != DELETED).to_numpy()]
    runs = {run: _type_ids(project, run) for run in found.runs}
    last = runs[found.runs[-1]] if found.runs else known_types(())
    types = []
    for name, run in zip(texts(rows["classification"]), rows["run"], strict=True):
        known = runs.get(run, last)
        if name is None:
            types.append(IGNORED_TYPE)
        elif name.lower() in known:
            types.append(known[name.lower()])
        else:
            types.append(classes.setdefault(name, max([FIRST_OWN_TYPE - 1, *classes.values()]) + 1))
    frame = pd.DataFrame(
        {
            "object": rows["id"].to_numpy(),
            "kind": np.where(rows["reviewed"], rows["kind"], OTHER),
            "by": texts(rows["by"]),
            "run": texts(rows["run"]),
            "before": [" ".join(ids) for ids in rows["before"]],
            "class": texts(rows["classification"]),
            "type": types,
        },
    )
    others = pd.DataFrame({"kind": [OTHER] * len(found.others), "type": IGNORED_TYPE})
    both = pd.concat([frame, others], ignore_index=True).reindex(columns=NUCLEUS_COLUMNS[:-1])
    shapes = shapely.make_valid(np.concatenate([rows.geometry.to_numpy(), found.others]))
    return gpd.GeoDataFrame(both.astype({"type": int}), geometry=shapes)


def _type_ids(project: Project, run: str) -> dict[str, int]:
    """Type ids by what a run called its classes, in lower case."""
    manifest = open_run(project.path.parent, run).manifest
    options = manifest.options
    # Runs into an open QuPath keep the names as they came.
    called: Mapping[str, Any] = options.get("class_map") or options.get("classes") or {}
    model_classes: Sequence[str] = manifest.model.get("classes") or ()
    known = known_types(model_classes)
    named = {
        str(called[name]).lower(): known[name.lower()]
        for name in model_classes
        if isinstance(called.get(name), str) and name.lower() in known
    }
    return {**known, **named}


def known_types(model_classes: Sequence[str]) -> dict[str, int]:
    """PanNuke's type ids by class name in lower case.

    Where the model does not tell neoplastic from epithelial nuclei, "epithelial" means both.
    """
    known = {name: number for number, name in TYPES.items()}
    if "neoplastic" not in {name.lower() for name in model_classes}:
        known["epithelial"] = next(n for n, name in TYPES.items() if " or " in name)
    return known
