"""Scores of an instance segmentation against a reference, as the field defines them.

All come from one table of overlaps. With IoU the intersection over union of a predicted
and a true object, and TP, FP, FN counted over a one-to-one matching of objects:

* **F1@0.5** = 2 TP / (2 TP + FP + FN), a match being IoU >= 0.5.
* **mSA** = mean over the thresholds 0.50, 0.55 … 0.95 of TP / (TP + FP + FN): the metric of
  PathoSAM's paper and of the Data Science Bowl 2018 (Caicedo et al., Nat Methods 2019).
* **PQ** = sum of the IoUs of matches (IoU > 0.5) / (TP + FP/2 + FN/2)
  (Kirillov et al., CVPR 2019; for nuclei Graham et al., Med Image Anal 2019).
* **AJI**: each true object with its best predicted one: sum of intersections / (sum of
  unions + area of the predicted objects that were nobody's best)
  (Kumar et al., IEEE TMI 2017).

An image without true objects scores 1 when nothing was predicted, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

#: The thresholds of mSA.
THRESHOLDS = np.arange(10, 20) / 20


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The table behind the scores: pairs of a true and a predicted object that share pixels.

    Attributes
    ----------
    true, predicted : (pairs,) position of the object in ``true_ids`` / ``predicted_ids``.
    intersection : (pairs,) shared pixels.
    iou : (pairs,) intersection over union.
    true_ids, predicted_ids : labels that occur, ascending.
    true_areas, predicted_areas : pixels of each.
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    intersection: NDArray[np.int64]
    iou: NDArray[np.float64]
    true_ids: NDArray[np.int64]
    predicted_ids: NDArray[np.int64]
    true_areas: NDArray[np.int64]
    predicted_areas: NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """The scores of one image, see the module's docstring."""

    f1_50: float
    msa: float
    aji: float
    pq: float


def overlaps(true: NDArray[np.integer], predicted: NDArray[np.integer]) -> Overlaps:
    """Count the shared pixels of two label images (height, width); 0 is background."""
    if true.shape != predicted.shape:
        raise ValueError(f"label images of {true.shape} and {predicted.shape} cannot be compared")
    true_ids, true_index, true_areas = _compact(true)
    predicted_ids, predicted_index, predicted_areas = _compact(predicted)
    both = (true_index > 0) & (predicted_index > 0)
    width = predicted_ids.size
    keys, counts = np.unique(
        (true_index[both] - 1) * width + predicted_index[both] - 1, return_counts=True
    )
    rows, columns = np.divmod(keys, max(width, 1))
    union = true_areas[rows] + predicted_areas[columns] - counts
    return Overlaps(
        rows,
        columns,
        counts.astype(np.int64),
        counts / np.maximum(union, 1),
        true_ids,
        predicted_ids,
        true_areas,
        predicted_areas,
    )


def scores(table: Overlaps) -> Scores:
    """All scores of one image."""
    n_true, n_predicted = table.true_ids.size, table.predicted_ids.size
    if n_true == 0:
        value = float(n_predicted == 0)
        return Scores(value, value, value, value)
    hits = np.array([matched_pairs(table, threshold).size for threshold in THRESHOLDS])
    accuracy = hits / (n_true + n_predicted - hits)
    f1 = 2 * hits[0] / (n_true + n_predicted)
    # Above one half an object has at most one partner, so no matching is needed.
    sure = table.iou[table.iou > 0.5]
    quality = 2 * sure.sum() / (n_true + n_predicted)
    return Scores(float(f1), float(accuracy.mean()), aggregated_jaccard(table), float(quality))


def matched_pairs(table: Overlaps, threshold: float = 0.5) -> NDArray[np.int64]:
    """Indices of the pairs of a largest one-to-one matching with IoU >= ``threshold``."""
    pairs: NDArray[np.int64] = np.flatnonzero(table.iou >= threshold)
    if threshold > 0.5 or pairs.size == 0:
        return pairs
    shape = (table.true_ids.size, table.predicted_ids.size)
    graph = sparse.csr_matrix(
        (np.ones(pairs.size, np.int8), (table.true[pairs], table.predicted[pairs])), shape
    )
    partner = sparse.csgraph.maximum_bipartite_matching(graph, perm_type="column")
    matched: NDArray[np.bool_] = partner[table.true[pairs]] == table.predicted[pairs]
    return pairs[matched]


def aggregated_jaccard(table: Overlaps) -> float:
    """AJI of one image that has true objects."""
    # Pairs by true object, the best IoU last: the last entry of each object is its best.
    order = np.lexsort((table.iou, table.true))
    last = np.append(table.true[order][1:] != table.true[order][:-1], True)[: order.size]
    best = order[last]
    intersection = table.intersection[best].sum()
    union = (
        table.true_areas.sum() + table.predicted_areas[table.predicted[best]].sum() - intersection
    )
    nobodys = np.setdiff1d(np.arange(table.predicted_ids.size), table.predicted[best])
    return float(intersection / (union + table.predicted_areas[nobodys].sum()))


def _compact(
    labels: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Labels that occur, the image of their positions (0 background), their areas."""
    counts = np.bincount(labels.ravel())
    counts[:1] = 0
    ids = np.nonzero(counts)[0]
    position = np.zeros(counts.size, np.int64)
    position[ids] = np.arange(1, ids.size + 1)
    return ids.astype(np.int64), position[labels], counts[ids].astype(np.int64)
