"""How sure a model is of a field of view, and what the field looks like.

Signs of doubt, each 0 where there is none. They are sums over the field divided by its size, so
that what is expected to need correction counts, not how doubtful the few nuclei of an empty
field are (on images with known nuclei the latter says nothing about the number of errors, see
``benchmarks/corrections.py``):

* *flips*: how far the foreground changes when the image is mirrored;
* *scales*: the same where the image is seen at four fifths of its size;
* *models*: the same where another model looks at it, if there is one;
* *margin*: the share of pixels whose foreground barely passes the threshold of the watershed,
  where a little more or less light would have moved an outline;
* *seeds*: nuclei that are one or two by a little, that come or go when the threshold of the
  watershed's seeds moves, per 10,000 pixels;
* *classes*: the entropy of the class probabilities of the nuclei's pixels, as a share of the
  largest that is possible.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from pathosam_qupath.corrections.evaluation import predict_image
from pathosam_qupath.model.interface import NucleusModel
from pathosam_qupath.segmentation.watershed import instances

BARELY = 0.2
"""A foreground within this of the threshold barely passes it."""

SMALLER = 0.8
"""At which share of its size a field is seen once more."""

SEED_STEP = 0.1
"""How far the threshold of the seeds is moved both ways."""

ALIKE = 0.5
"""Fields that are this share of the usual distance apart, as they look, look rather alike."""


@dataclass(frozen=True, eq=False)
class FieldDoubt:
    """Signs of doubt about a field, and features that tell fields apart.

    Attributes
    ----------
    signs : by name, see the module's docstring; "models" only where there is another.
    look : mean and spread of the optical density of each channel, share of nuclei, and of
        each class among them.
    """

    signs: Mapping[str, float]
    look: NDArray[np.float64]


def field_doubt(
    model: NucleusModel, image: NDArray[np.uint8], other: NucleusModel | None = None
) -> FieldDoubt:
    """What a model makes of a field.

    Parameters
    ----------
    image : (height, width, 3) uint8 RGB at the model's resolution.
    other : a model to compare with, whatever its resolution.
    """
    maps = predict_image(model, image)
    foreground = maps[0]
    parameters = model.info.postprocessing
    threshold = parameters.foreground_threshold
    inside = foreground > threshold

    def change(seen: NDArray[np.float32]) -> float:
        return float(np.abs(foreground - seen).mean())

    mirrored = [
        predict_image(model, np.ascontiguousarray(image[:, ::-1]))[0][:, ::-1],
        predict_image(model, np.ascontiguousarray(image[::-1]))[0][::-1],
    ]
    signs = {
        "flips": float(np.mean([change(seen) for seen in mirrored])),
        "scales": change(_foreground_at(model, image, SMALLER)),
        "margin": float((inside & (foreground < threshold + BARELY)).mean()),
        "seeds": _unsure_seeds(model, maps),
    }
    if other is not None:
        signs["models"] = change(_foreground_at(other, image, model.info.mpp / other.info.mpp))
    shares = maps[3:, inside]
    signs["classes"] = _entropy(shares) * float(inside.mean())
    density = -np.log10((image.reshape(-1, 3).astype(np.float64) + 1.0) / 256.0)
    kinds = shares.mean(axis=1) if shares.size else np.zeros(len(maps) - 3)
    look = [*density.mean(axis=0), *density.std(axis=0), inside.mean(), *kinds]
    return FieldDoubt(signs, np.array(look, np.float64))


def rank_fields(fields: Sequence[FieldDoubt]) -> NDArray[np.float64]:
    """How much each field is worth a look, 0…1: the mean of its ranks in all signs."""
    if not fields:
        return np.zeros(0)
    signs = np.array([list(field.signs.values()) for field in fields])
    # The share of fields with less doubt, ties shared, so that scales do not matter.
    less = (signs[:, None, :] > signs[None, :, :]).mean(axis=1)
    same = (signs[:, None, :] == signs[None, :, :]).mean(axis=1)
    found: NDArray[np.float64] = (less + same / 2).mean(axis=1)
    return found


@dataclass(frozen=True)
class Choice:
    """A field that was chosen.

    Attributes
    ----------
    index : of the field.
    share : of what all fields together stand for, what this one adds to those before it.
    """

    index: int
    share: float


def choose_fields(
    scores: NDArray[np.float64],
    looks: NDArray[np.float64],
    count: int,
    reviewed: Collection[int] = (),
) -> list[Choice]:
    """The fields that together stand for most of the doubt, best first.

    A field stands for another one as far as they look alike and it is itself in doubt: what is
    learnt from it helps there. The next one chosen is always the one that adds most to what the
    reviewed and the chosen ones stand for. Doubt alone would choose fields of one kind, and
    unlikeness alone those that no other looks like (B. Mirzasoleiman et al., *Coresets for
    data-efficient training*, ICML 2020, choose training data so).

    Parameters
    ----------
    scores : (n,) as :func:`rank_fields` gives them.
    looks : (n, features).
    reviewed : indices of fields that were reviewed already; they are not chosen.
    """
    spread = looks.std(axis=0)
    scaled = (looks - looks.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    distances = cdist(scaled, scaled)
    apart = distances[distances > 0]
    reach = ALIKE * float(np.median(apart)) if apart.size else 1.0
    alike = np.exp(-0.5 * (distances / reach) ** 2)
    helps = alike * scores[:, None] * scores[None, :]  # what field i does for field j
    done = helps[sorted(reviewed)].max(axis=0, initial=0.0)
    everything = float(helps.max(axis=0, initial=0.0).sum())
    free = np.ones(len(scores), bool)
    free[sorted(reviewed)] = False
    chosen: list[Choice] = []
    while len(chosen) < count and free.any():
        gains = np.where(free, np.maximum(helps - done, 0.0).sum(axis=1), -1.0)
        best = int(gains.argmax())
        share = float(gains[best]) / everything if everything > 0 else 0.0
        chosen.append(Choice(best, share))
        done = np.maximum(done, helps[best])
        free[best] = False
    return chosen


def _entropy(shares: NDArray[np.float32]) -> float:
    """Mean entropy of the columns, as a share of the largest that is possible."""
    if len(shares) < 2 or shares.shape[1] == 0:
        return 0.0
    p = np.clip(shares.astype(np.float64), 1e-9, 1.0)
    return float(-(p * np.log(p)).sum(axis=0).mean() / np.log(len(p)))


def _foreground_at(
    model: NucleusModel, image: NDArray[np.uint8], factor: float
) -> NDArray[np.float32]:
    """The foreground that a model finds in an image of another size, at the image's own."""
    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    scaled = np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)
    seen = predict_image(model, scaled)[0]
    return np.asarray(cv2.resize(seen, (width, height)), np.float32)


def _unsure_seeds(model: NucleusModel, maps: NDArray[np.float32]) -> float:
    """Nuclei that come or go with the seeds' threshold, per 10,000 pixels."""
    parameters = model.info.postprocessing
    middle = parameters.boundary_distance_threshold
    count, fewer, more = (
        int(instances(maps, replace(parameters, boundary_distance_threshold=value)).max())
        for value in (middle, middle - SEED_STEP, middle + SEED_STEP)
    )
    changed = (abs(count - fewer) + abs(more - count)) / 2
    return float(changed / (maps[0].size / 1e4))
