"""Prompts as a person might give them, drawn from instance masks.

Clicks anywhere in a nucleus, boxes that are not tight, several clicks with some beside the
nucleus, rough masks; and, for a second round, a click where the first answer is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.model.prompts import Prompt, mask_box

#: Nuclei of fewer pixels in a crop are not prompted.
_SMALLEST = 40


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt and the nucleus that it means.

    Attributes
    ----------
    crop : index of the crop in its batch.
    prompt : in pixels of the crop.
    target : (side, side) bool, the nucleus.
    """

    crop: int
    prompt: Prompt
    target: NDArray[np.bool_]


def questions(
    rng: np.random.Generator, labels: NDArray[np.uint16], per_crop: int
) -> list[Question]:
    """Prompts for nuclei of a batch (n, side, side) that lie wholly in their crops."""
    asked = []
    for crop, ids in enumerate(labels):
        areas = np.bincount(ids.ravel())
        border = np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]])
        areas[border] = 0
        areas[:1] = 0
        chosen = np.flatnonzero(areas >= _SMALLEST)
        for label in rng.permutation(chosen)[:per_crop]:
            target = ids == label
            asked.append(Question(crop, _prompt(rng, target, ids), target))
    return asked


def corrected(
    rng: np.random.Generator, question: Question, answer: NDArray[np.bool_]
) -> Question | None:
    """The question again with the answer as a mask and a click where it is wrong.

    None where the answer is right but for its rim.
    """
    missing, wrong = question.target & ~answer, answer & ~question.target
    is_missing = missing.sum() >= wrong.sum()
    at = _inner_point(rng, missing if is_missing else wrong, smallest_depth=1.5)
    if at is None or not answer.any():
        return None
    prompt = question.prompt
    labels = prompt.labels or (True,) * len(prompt.points)
    changed = replace(
        prompt,
        points=(*prompt.points, at),
        labels=(*labels, bool(is_missing)),
        mask=answer,
    )
    return replace(question, prompt=changed)


def _prompt(rng: np.random.Generator, target: NDArray[np.bool_], ids: NDArray[np.uint16]) -> Prompt:
    kind = rng.choice(5, p=[0.4, 0.3, 0.1, 0.08, 0.12])
    if kind == 0:
        return Prompt(points=(_click(rng, target),))
    if kind == 1:
        return Prompt(box=_box(rng, target))
    if kind == 2:
        return _many_clicks(rng, target, ids, None)
    if kind == 3:
        return _many_clicks(rng, target, ids, _box(rng, target))
    mask = _rough(rng, target, ids)
    return Prompt(mask=mask, box=_box(rng, mask) if rng.random() < 0.5 else None)


def _click(rng: np.random.Generator, target: NDArray[np.bool_]) -> tuple[float, float]:
    """A point of the nucleus, more often far from its outline."""
    return _inner_point(rng, target, smallest_depth=float(rng.uniform(0.0, 3.0))) or _any(
        rng, target
    )


def _inner_point(
    rng: np.random.Generator, mask: NDArray[np.bool_], smallest_depth: float
) -> tuple[float, float] | None:
    """A random point at least so many pixels inside a mask, or None."""
    if not mask.any():
        return None
    x0, y0, x1, y1 = mask_box(mask)
    padded = np.pad(mask[y0:y1, x0:x1], 1).astype(np.uint8)
    deep = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] >= max(smallest_depth, 0.5)
    if not deep.any():
        return None
    x, y = _any(rng, deep)
    return x + x0, y + y0


def _any(rng: np.random.Generator, mask: NDArray[np.bool_]) -> tuple[float, float]:
    """A random point of a mask."""
    rows, columns = np.nonzero(mask)
    chosen = rng.integers(rows.size)
    return float(columns[chosen] + rng.random()), float(rows[chosen] + rng.random())


def _box(rng: np.random.Generator, target: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = mask_box(target)
    slack = 0.05 * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0]) + 0.5
    moved = np.array([x0, y0, x1, y1]) + rng.normal(0.0, slack) * rng.integers(0, 2)
    moved += rng.uniform(0.0, 1.5) * np.array([-1, -1, 1, 1])
    side = target.shape[0]
    left, top = np.clip(moved[:2], 0, side - 4)
    right, bottom = np.clip(moved[2:], (left + 3, top + 3), side)
    return float(left), float(top), float(right), float(bottom)


def _many_clicks(
    rng: np.random.Generator,
    target: NDArray[np.bool_],
    ids: NDArray[np.uint16],
    box: tuple[float, float, float, float] | None,
) -> Prompt:
    """One to three clicks in the nucleus, none to two near it in others or in none."""
    points = [_click(rng, target) for _ in range(rng.integers(1, 4))]
    labels = [True] * len(points)
    near = cv2.dilate(target.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    beside = near & ~cv2.dilate(target.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    neighbours = beside & (ids > 0)
    for _ in range(rng.integers(0, 3)):
        among = neighbours if neighbours.any() and rng.random() < 0.7 else beside
        if among.any():
            points.append(_any(rng, among))
            labels.append(False)
    return Prompt(points=tuple(points), labels=tuple(labels), box=box)


def _rough(
    rng: np.random.Generator, target: NDArray[np.bool_], ids: NDArray[np.uint16]
) -> NDArray[np.bool_]:
    """The nucleus drawn too small, too large, aside, or with a piece of what is around."""
    mask = target.astype(np.uint8)
    size = int(rng.integers(1, 5))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * size + 1, 2 * size + 1))
    changed = cv2.dilate(mask, kernel) if rng.random() < 0.5 else cv2.erode(mask, kernel)
    shift = rng.integers(-3, 4, 2)
    changed = np.roll(changed, tuple(shift), (0, 1))
    if rng.random() < 0.3:
        around = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0
        touched = np.unique(ids[around & (ids > 0) & ~target])
        if touched.size:
            changed = np.maximum(changed, (ids == rng.choice(touched)).astype(np.uint8))
    rough: NDArray[np.bool_] = changed > 0
    return rough if rough.any() else target
