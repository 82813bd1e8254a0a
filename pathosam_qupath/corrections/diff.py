"""What a person did to recorded nuclei: two sets of outlines compared, by id and by place.

Where a recorded nucleus is still there under its id, its outline and class say what was done
to it. QuPath gives an object that is drawn anew, merged or split a new id; such objects are
paired with the recorded nuclei that are gone by what they cover:

* one for one: *reshaped* (or *kept*, where the outline is the same);
* one for several: *merged*; several for one: *split*;
* none: *added*, and a recorded nucleus that nothing covers is *deleted*.

A new outline drawn over a nucleus that was left in place stands for it as if that had been
removed. Two outlines cover each other where they share more than half of the smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from pathosam_qupath.edits import same_geometry, same_text

if TYPE_CHECKING:
    import geopandas as gpd

KEPT, DELETED, RESHAPED, RECLASSIFIED = "kept", "deleted", "reshaped", "reclassified"
BOTH, ADDED, MERGED, SPLIT = "reshaped and reclassified", "added", "merged", "split"
UNRECORDED = "unrecorded"
KINDS = (KEPT, DELETED, RESHAPED, RECLASSIFIED, BOTH, ADDED, MERGED, SPLIT, UNRECORDED)
"""What can have become of a nucleus; *unrecorded*: made by a run whose record is gone."""

COVERED = 0.5
"""Share of the smaller outline that two outlines of one nucleus have in common at least."""

DIFF_COLUMNS = ("id", "kind", "by", "run", "before", "class_before", "classification", "geometry")

_Group = tuple[list[int], list[int]]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Outlines that cover each other: their positions, and the area they share."""

    old: NDArray[np.intp]
    new: NDArray[np.intp]
    shared: NDArray[np.float64]


def compare(recorded: gpd.GeoDataFrame, current: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """What became of recorded nuclei, a row for each object that is there or was deleted.

    Parameters
    ----------
    recorded : nuclei as runs wrote them: id, classification, run, geometry.
    current : the objects that are nuclei now: id, classification, by, geometry; those whose
        id is recorded, and new ones. ``by`` says who made a new one ("hand", "prompt").

    Returns
    -------
    diff : columns ``DIFF_COLUMNS``. ``id`` is the object's id now, or the recorded one of a
        deleted nucleus; ``before`` the recorded ids that the object stands for, a tuple;
        ``classification`` its class now. An object without a class that was drawn in place
        of a recorded nucleus has that one's class.
    """
    import geopandas as gpd

    current = current.drop_duplicates("id").reset_index(drop=True)
    recorded = recorded.drop_duplicates("id").reset_index(drop=True)
    row_of = pd.Index(recorded["id"]).get_indexer(current["id"])
    present, new = np.flatnonzero(row_of >= 0), np.flatnonzero(row_of < 0)
    gone = np.setdiff1d(np.arange(len(recorded)), row_of[present])

    # What lies under a new outline is replaced by it, whether or not it was removed.
    shapes = valid(current.geometry.to_numpy())
    under = np.unique(_covering(shapes[present], shapes[new]).old)
    old_shapes = valid(recorded.geometry.to_numpy())
    old_shapes[row_of[present[under]]] = shapes[present[under]]
    gone = np.concatenate([gone, row_of[present[under]]])
    present = np.delete(present, under)

    groups = [
        ([int(gone[o]) for o in olds], [int(new[n]) for n in news])
        for olds, news in _groups(old_shapes[gone], shapes[new])
    ]
    found = pd.concat(
        [
            _by_id(recorded.iloc[row_of[present]], current.iloc[present]),
            _by_place(recorded, current, groups),
        ],
        ignore_index=True,
    )
    return gpd.GeoDataFrame(found, geometry="geometry")


def _by_id(then: gpd.GeoDataFrame, now: gpd.GeoDataFrame) -> pd.DataFrame:
    """Rows of the nuclei that are there under their ids."""
    shape = same_geometry(now.geometry.to_numpy(), then.geometry.to_numpy())
    label = same_text(now["classification"], then["classification"])
    kinds = np.array([[BOTH, RESHAPED], [RECLASSIFIED, KEPT]], dtype=object)
    return pd.DataFrame(
        {
            "id": now["id"].to_numpy(),
            "kind": kinds[shape.astype(int), label.astype(int)],
            "by": None,
            "run": then["run"].to_numpy(),
            "before": [(identity,) for identity in now["id"]],
            "class_before": texts(then["classification"]),
            "classification": texts(now["classification"]),
            "geometry": now.geometry.to_numpy(),
        },
        columns=list(DIFF_COLUMNS),
    )


def _by_place(
    recorded: gpd.GeoDataFrame, current: gpd.GeoDataFrame, groups: Sequence[_Group]
) -> pd.DataFrame:
    """Rows of new objects, and of the recorded nuclei that are gone."""
    ids, old_ids = current["id"].to_numpy(), recorded["id"].to_numpy()
    classes, old_classes = texts(current["classification"]), texts(recorded["classification"])
    shapes, old_shapes = current.geometry.to_numpy(), recorded.geometry.to_numpy()
    makers, runs = texts(current["by"]), recorded["run"].to_numpy()
    rows: list[tuple[Any, ...]] = []
    for old, new in groups:
        if not new:
            for o in old:
                row = (old_ids[o], DELETED, None, runs[o], (old_ids[o],), old_classes[o], None)
                rows.append((*row, old_shapes[o]))
            continue
        before = tuple(old_ids[o] for o in old)
        run, former = (runs[old[0]], old_classes[old[0]]) if old else (None, None)
        for n in new:
            label = former if classes[n] is None else classes[n]
            if not old:
                kind = ADDED
            elif len(old) > 1:
                kind = MERGED
            elif len(new) > 1:
                kind = SPLIT
            elif same_geometry(shapes[[n]], old_shapes[old])[0]:
                kind = KEPT if label == former else RECLASSIFIED
            else:
                kind = RESHAPED if label == former else BOTH
            rows.append((ids[n], kind, makers[n], run, before, former, label, shapes[n]))
    return pd.DataFrame(rows, columns=list(DIFF_COLUMNS))


def _groups(old: NDArray[np.object_], new: NDArray[np.object_]) -> list[_Group]:
    """Which recorded and new outlines belong together; every one is in exactly one group.

    Of a group's recorded nuclei the one that shares most comes first.
    """
    pairs = _covering(old, new)
    count = len(old) + len(new)
    graph = sparse.csr_matrix(
        (np.ones(len(pairs.old), np.int8), (pairs.old, pairs.new + len(old))), (count, count)
    )
    _, part = sparse.csgraph.connected_components(graph, directed=False)
    members: dict[int, _Group] = {}
    for position, index in enumerate(part.tolist()):
        olds, news = members.setdefault(index, ([], []))
        if position < len(old):
            olds.append(position)
        else:
            news.append(position - len(old))
    shared = dict(zip(zip(pairs.old, pairs.new, strict=True), pairs.shared, strict=True))
    groups: list[_Group] = []
    for olds, news in members.values():
        area = np.array([[shared.get((o, n), 0.0) for n in news] for o in olds])
        if len(olds) > 1 and len(news) > 1:
            groups += _partners(olds, news, area)
        else:
            most = area.max(axis=1, initial=0.0) if olds else np.zeros(0)
            groups.append(([olds[i] for i in np.argsort(-most, kind="stable")], news))
    return groups


def _partners(olds: list[int], news: list[int], area: NDArray[np.float64]) -> list[_Group]:
    """Several recorded nuclei under several new outlines, as pairs that share most.

    What is left over joins the pair whose outline it shares most with.
    """
    rows, columns = linear_sum_assignment(-area)
    groups = [([olds[r]], [news[c]]) for r, c in zip(rows, columns, strict=True) if area[r, c] > 0]
    of_old = {olds_[0]: (olds_, news_) for olds_, news_ in groups}
    of_new = {news_[0]: (olds_, news_) for olds_, news_ in groups}
    for row, o in enumerate(olds):
        if o not in of_old:
            of_new[news[int(area[row].argmax())]][0].append(o)
    for column, n in enumerate(news):
        if n not in of_new:
            of_old[olds[int(area[:, column].argmax())]][1].append(n)
    return groups


def _covering(old: NDArray[np.object_], new: NDArray[np.object_]) -> _Pairs:
    """Pairs that share more than ``COVERED`` of the smaller one."""
    if len(old) == 0 or len(new) == 0:
        none = np.zeros(0, np.intp)
        return _Pairs(none, none, np.zeros(0))
    first, second = shapely.STRtree(new).query(old, predicate="intersects")
    shared = shapely.area(shapely.intersection(old[first], new[second]))
    smaller = np.minimum(shapely.area(old)[first], shapely.area(new)[second])
    enough = shared > COVERED * smaller
    return _Pairs(first[enough], second[enough], shared[enough])


def valid(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Outlines that can be intersected; people draw ones that cross themselves."""
    shapes = shapes.copy()
    bad = ~shapely.is_valid(shapes)
    shapes[bad] = shapely.make_valid(shapes[bad])
    return shapes


def texts(column: pd.Series) -> NDArray[np.object_]:
    """A column of texts with None where one is missing."""
    return np.asarray(column.astype(object).where(column.notna(), None), dtype=object)
