"""Which objects of an image are nuclei that a person or a prompt made.

Besides those whose id a run recorded, these are

* detections that this tool marked as drawn by hand or made by a prompt (metadata
  ``PathoSAM run``: ``hand`` or ``prompt…``), and copies of a run's own;
* annotations with an area of at most :data:`LARGEST` µm² (or four times the largest recorded
  nucleus), on which at most one nucleus lies, that are new since the first run, have no
  children and neither a mark of review nor a lock: that is how a nucleus is outlined in
  QuPath;
* detections without any mark, new since the first run, that carry no other measurements than
  QuPath's shape features. Cell detection, StarDist and the like leave cells, or measurements
  of their own; ``unmarked="none"`` leaves out every such detection, ``"all"`` takes every
  one, whatever it measures and since when it is there.

What was there before a run is known from the copy of the file that the run kept. A class
derived from ``PathoSAM`` makes an object a remark of this tool, which is no nucleus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.corrections.baseline import Baseline
from pathosam_qupath.corrections.diff import COVERED, UNRECORDED, texts, valid
from pathosam_qupath.corrections.review import is_remark, review_marks
from pathosam_qupath.qupath.objects import FRAME_COLUMNS, PathObject
from pathosam_qupath.regions import is_ignored, reason_against
from pathosam_qupath.replacing import in_region

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.qupath.project import Entry

LARGEST = 1000.0
"""µm²: a larger annotation is a region, not a nucleus."""

HAND, PROMPT = "hand", "prompt"
Unmarked = Literal["new", "all", "none"]

_SHAPE_FEATURES = ("area", "length", "circularity", "solidity", "max diameter", "min diameter")


def makers(
    detections: gpd.GeoDataFrame, baseline: Baseline, runs: Sequence[str], unmarked: Unmarked
) -> NDArray[np.object_]:
    """Who made each detection: "hand", "prompt", or None where it is no nucleus of ours.

    Detections of a run whose record is gone are "unrecorded". What is said of those whose id
    is recorded has no meaning.

    Parameters
    ----------
    runs : every run that the project remembers, compared with or not.
    """
    before = baseline.known_before
    compared = {run.id for run in baseline.runs}
    foreign = [n for n in detections.columns if n not in FRAME_COLUMNS and not _is_shape_feature(n)]
    measured = detections[foreign].notna().any(axis=1).to_numpy()
    found = np.full(len(detections), None, dtype=object)
    for row, (identity, kind, mark, name) in enumerate(
        zip(
            detections["id"],
            detections["object_type"],
            texts(detections["run"]),
            texts(detections["classification"]),
            strict=True,
        )
    ):
        if is_remark(name):
            continue
        if mark is None:
            new = before is not None and identity not in before and not measured[row]
            if unmarked == "all" or (unmarked == "new" and new and kind == "detection"):
                found[row] = HAND
        elif mark.startswith(PROMPT):
            found[row] = PROMPT
        elif mark == HAND or mark in compared:
            found[row] = HAND
        elif mark not in runs:
            found[row] = UNRECORDED
    return found


def drawn_nuclei(
    annotations: Sequence[PathObject],
    nuclei: gpd.GeoDataFrame,
    baseline: Baseline,
    region: BaseGeometry | None,
    *,
    largest: float,
) -> list[PathObject]:
    """The annotations that outline a nucleus, and those whose id is recorded.

    Parameters
    ----------
    nuclei : the detections that are nuclei.
    region : where outlines count; None means everywhere.
    largest : area of a nucleus in square pixels.
    """
    recorded = set(baseline.recorded["id"])
    before = baseline.known_before
    parents = {str(a.parent) for a in annotations}.union(nuclei["parent"].dropna())
    converted = [a for a in annotations if str(a.id) in recorded]
    outlines = [
        a
        for a in annotations
        if before is not None
        and str(a.id) not in before | recorded | parents
        and not is_ignored(a)
        and not is_remark(a.classification)
        and not review_marks(a)
        and reason_against(a) is None
        and a.geometry.area <= largest
    ]
    if not outlines:
        return converted
    shapes = valid(np.array([a.geometry for a in outlines], dtype=object))
    there = valid(nuclei.geometry.to_numpy())
    first, second = shapely.STRtree(there).query(shapes, "intersects")
    shared = shapely.area(shapely.intersection(shapes[first], there[second]))
    covered = shared > COVERED * shapely.area(there[second])
    on = np.bincount(first[covered], minlength=len(shapes))
    counts = in_region(shapes, region) & (on < 2)
    return converted + [a for a, yes in zip(outlines, counts, strict=True) if yes]


def largest_nucleus(entry: Entry, baseline: Baseline) -> float:
    """The area in square pixels beyond which an annotation is a region."""
    largest = 4 * float(baseline.recorded.geometry.area.max()) if len(baseline.recorded) else 0.0
    for mpp in [run.options.get("mpp") for run in baseline.runs] + [entry.image.mpp]:
        if mpp is not None:
            x, y = (mpp, mpp) if isinstance(mpp, float | int) else mpp
            largest = max(largest, LARGEST / (x * y))
    return largest


def _is_shape_feature(name: str) -> bool:
    """Whether a measurement is one that QuPath's shape features add, of whatever part."""
    return name.split(": ")[-1].lower().startswith(_SHAPE_FEATURES)
