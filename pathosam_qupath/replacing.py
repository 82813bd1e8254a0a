"""What a new run does with the nuclei that earlier runs left in the same region.

Only detections that carry this tool's mark are looked at. Those whose centroid lies in the
treated region and that nobody has edited since their run make room for the new ones; the
others stay, and a new nucleus that lies on one that stays is not written. Objects without
the mark are a person's (or another tool's) and are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.edits import untouched

if TYPE_CHECKING:
    import geopandas as gpd

Policy = Literal["replace", "keep"]

OVERLAP = 0.5
"""A new nucleus is dropped where it shares more than this of the smaller one's area."""


@dataclass(frozen=True, eq=False)
class Replacement:
    """Which earlier nuclei go and which stay.

    Attributes
    ----------
    remove : ids of detections to take out.
    kept : the marked detections that stay, wherever in the image they lie.
    kept_inside : how many of those lie in the treated region.
    """

    remove: frozenset[UUID]
    kept: gpd.GeoDataFrame
    kept_inside: int


def replace_earlier(
    existing: gpd.GeoDataFrame,
    region: BaseGeometry | None,
    *,
    parents: Collection[str],
    recorded: Callable[[str], gpd.GeoDataFrame | None],
    policy: Policy = "replace",
    replace_edited: bool = False,
) -> Replacement:
    """Decide about the nuclei of earlier runs.

    Parameters
    ----------
    existing : all detections of the image.
    region : the treated region in slide pixels; None means the whole image.
    parents : ids of every object of the image that has children.
    recorded : the predictions of a run for this image, by run id; None where there are none.
    policy : "replace" takes untouched nuclei out, "keep" leaves all of them.
    replace_edited : take edited ones out too.
    """
    marked = existing[existing["run"].notna().to_numpy()].reset_index(drop=True)
    inside = in_region(marked.geometry.to_numpy(), region)
    go = np.zeros(len(marked), dtype=bool)
    if policy == "replace":
        go = inside.copy()
        if not replace_edited:
            go &= _untouched(marked, inside, parents, recorded)
    return Replacement(
        frozenset(UUID(text) for text in marked["id"].to_numpy()[go]),
        marked[~go],
        int((inside & ~go).sum()),
    )


def in_region(shapes: NDArray[np.object_], region: BaseGeometry | None) -> NDArray[np.bool_]:
    """Which shapes have their centroid in a region: (n,) bool."""
    if region is None:
        return np.ones(len(shapes), dtype=bool)
    shapely.prepare(region)
    centroids = shapely.centroid(shapes)
    found: NDArray[np.bool_] = shapely.intersects_xy(
        region, shapely.get_x(centroids), shapely.get_y(centroids)
    )
    return found


def lies_on_kept(new: NDArray[np.object_], tree: shapely.STRtree) -> NDArray[np.bool_]:
    """Which of the new shapes lie on a kept one by more than ``OVERLAP`` of the smaller area.

    Parameters
    ----------
    tree : of the kept shapes.
    """
    on = np.zeros(len(new), dtype=bool)
    kept = tree.geometries
    if len(new) == 0 or len(kept) == 0:
        return on
    first, second = tree.query(new, predicate="intersects")
    if len(first) == 0:
        return on
    near = _boxes_share_enough(new, kept, first, second)
    first, second = first[near], second[near]
    shared = shapely.area(shapely.intersection(_valid(new[first]), _valid(kept[second])))
    smaller = np.minimum(shapely.area(new)[first], shapely.area(kept)[second])
    on[first[shared > OVERLAP * smaller]] = True
    return on


def _boxes_share_enough(
    new: NDArray[np.object_],
    kept: NDArray[np.object_],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
) -> NDArray[np.bool_]:
    """Pairs whose bounding boxes share enough; neighbours that only touch are most pairs."""
    one, other = shapely.bounds(new)[first], shapely.bounds(kept)[second]
    across = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    smaller = np.minimum(shapely.area(new)[first], shapely.area(kept)[second])
    enough: NDArray[np.bool_] = across.prod(axis=1) > OVERLAP * smaller
    return enough


def _untouched(
    marked: gpd.GeoDataFrame,
    inside: NDArray[np.bool_],
    parents: Collection[str],
    recorded: Callable[[str], gpd.GeoDataFrame | None],
) -> NDArray[np.bool_]:
    same = np.zeros(len(marked), dtype=bool)
    runs = marked["run"].to_numpy()
    for run in set(runs[inside]):
        rows = np.flatnonzero(inside & (runs == run))
        same[rows] = untouched(marked.iloc[rows], recorded(str(run)), parents)
    return same


def _valid(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """A person can drag a vertex until an outline crosses itself."""
    bad = ~shapely.is_valid(shapes)
    if bad.any():
        shapes = shapes.copy()
        shapes[bad] = shapely.make_valid(shapes[bad])
    return shapes
