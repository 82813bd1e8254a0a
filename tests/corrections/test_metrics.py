"""Scores against cases computed by hand, and against slow but plain implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pathosam_qupath.corrections.metrics import (
    THRESHOLDS,
    aggregated_jaccard,
    matched_pairs,
    overlaps,
    scores,
)


def squares(*boxes: tuple[int, int, int, int], shape=(20, 40)):
    """Label i + 1 in rows r0:r1, columns c0:c1 of the i-th box."""
    labels = np.zeros(shape, np.int32)
    for label, (r0, r1, c0, c1) in enumerate(boxes, start=1):
        labels[r0:r1, c0:c1] = label
    return labels


def test_a_perfect_segmentation_scores_one():
    true = squares((0, 5, 0, 5), (10, 15, 3, 9))
    found = scores(overlaps(true, true * 7))
    assert (found.f1_50, found.msa, found.aji, found.pq) == (1, 1, 1, 1)


def test_scores_computed_by_hand():
    # True: two squares of 100 px. Predicted: 80 of the first one's 100 px (IoU 0.8), and a
    # square of 50 px in the background. TP 1, FP 1, FN 1.
    true = squares((0, 10, 0, 10), (0, 10, 20, 30))
    predicted = squares((0, 10, 0, 8), (12, 17, 10, 20))
    found = scores(overlaps(true, predicted))
    assert_allclose(found.f1_50, 2 / 4)
    # 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80 are reached: 7 of 10 thresholds with 1 / 3.
    assert_allclose(found.msa, 0.7 / 3)
    assert_allclose(found.pq, 0.8 / 2)
    # Intersection 80; unions 100 and 100 (the missed one); nobody's 50.
    assert_allclose(found.aji, 80 / 250)


def test_one_object_split_into_halves_matches_once_at_one_half():
    true = squares((0, 10, 0, 10))
    predicted = squares((0, 5, 0, 10), (5, 10, 0, 10))
    table = overlaps(true, predicted)
    assert_allclose(table.iou, [0.5, 0.5])
    assert matched_pairs(table).size == 1
    assert_allclose(scores(table).f1_50, 2 / 3)
    # Panoptic quality asks for more than one half.
    assert scores(table).pq == 0


@pytest.mark.parametrize(("predicted", "value"), [(squares(), 1.0), (squares((0, 3, 0, 3)), 0.0)])
def test_an_image_without_nuclei(predicted, value):
    found = scores(overlaps(squares(), predicted))
    assert (found.f1_50, found.msa, found.aji, found.pq) == (value,) * 4


def test_nothing_predicted_scores_zero():
    found = scores(overlaps(squares((0, 5, 0, 5)), squares()))
    assert (found.f1_50, found.msa, found.aji, found.pq) == (0, 0, 0, 0)


def test_images_of_different_size_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        overlaps(np.zeros((4, 4), int), np.zeros((4, 5), int))


label_images = st.lists(st.integers(0, 4), min_size=24, max_size=24).map(
    lambda values: np.array(values).reshape(4, 6)
)


@settings(max_examples=200, deadline=None)
@given(label_images, label_images)
def test_scores_equal_brute_force(true, predicted):
    table = overlaps(true, predicted)
    trues = [true == i for i in np.unique(true[true > 0])]
    found = [predicted == i for i in np.unique(predicted[predicted > 0])]
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in found] for a in trues])
    iou = iou.reshape(len(trues), len(found))
    for threshold in THRESHOLDS:
        assert matched_pairs(table, threshold).size == _largest_matching(iou >= threshold)
    if not trues:
        return
    result = scores(table)
    hits = [_largest_matching(iou >= t) for t in THRESHOLDS]
    n = len(trues) + len(found)
    assert_allclose(result.msa, np.mean([h / (n - h) for h in hits]))
    assert_allclose(result.f1_50, 2 * hits[0] / n)
    assert_allclose(result.pq, 2 * iou[iou > 0.5].sum() / n)
    assert_allclose(aggregated_jaccard(table), _slow_jaccard(trues, found, iou), atol=1e-12)


def _largest_matching(allowed) -> int:
    n_true, n_found = allowed.shape
    if n_true > n_found:
        allowed, n_true, n_found = allowed.T, n_found, n_true
    return max(
        (
            sum(allowed[i, j] for i, j in enumerate(order))
            for order in itertools.permutations(range(n_found), n_true)
        ),
        default=0,
    )


def _slow_jaccard(trues, found, iou) -> float:
    """As Kumar et al. write it; of equally good partners the last, as in the fast form."""
    intersection = union = 0
    used = set()
    for i, a in enumerate(trues):
        overlapping = [j for j in range(len(found)) if iou[i, j] > 0]
        if not overlapping:
            union += a.sum()
            continue
        best = max(overlapping, key=lambda j: (iou[i, j], j))
        intersection += (a & found[best]).sum()
        union += (a | found[best]).sum()
        used.add(best)
    union += sum(b.sum() for j, b in enumerate(found) if j not in used)
    return intersection / union
