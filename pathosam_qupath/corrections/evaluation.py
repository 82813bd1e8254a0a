"""Scores of a model on a folder of samples: what the command `evaluate` prints.

An image is brought to the model's resolution, goes through the model tile by tile and
through the watershed of the product, and the labels are brought back: scores are those of
the image's own pixels. Nuclei found mostly where nobody looked do not count. A source's
scores are means over its images, its class accuracy the share of right classes among all its
matched nuclei; `mean` is over the sources.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.ahead import computed_ahead
from pathosam_qupath.corrections.metrics import Scores, matched_pairs, overlaps, scores
from pathosam_qupath.corrections.samples import IGNORED_TYPE, Sample, read_samples
from pathosam_qupath.model.interface import NucleusModel
from pathosam_qupath.segmentation.opencv import without_own_threads
from pathosam_qupath.segmentation.watershed import instances

#: Type ids that a class of this name is right for.
_TYPES_OF_CLASS = {
    "neoplastic": {1, 6},
    "inflammatory": {2},
    "connective": {3},
    "dead": {4},
    "epithelial": {5, 6},
}
#: Larger images (pixels of the longer side) are tiled, so that memory stays bounded.
_LARGEST_WHOLE = 1536


@dataclass(frozen=True)
class ImageResult:
    """One image's scores.

    Attributes
    ----------
    nuclei : true ones.
    typed, right : matched nuclei whose true type some class stands for, and how many of
        them got such a class.
    """

    name: str
    source: str
    nuclei: int
    predicted: int
    scores: Scores
    typed: int
    right: int


def evaluate(
    model: NucleusModel,
    data_dir: Path,
    mpp: float = 0.25,
    *,
    progress: Callable[[ImageResult], None] | None = None,
) -> dict[str, Any]:
    """Score a model on a folder with `images`, `labels`, and perhaps `types`, `manifest.csv`.

    Parameters
    ----------
    mpp : micrometres per pixel of images for which the manifest has none.
    progress : called after each image.

    Returns
    -------
    report : {"sources": {name: {"images", "nuclei", "f1_50", "msa", "aji", "pq",
        "class_accuracy"}}, "mean": {…}}; class accuracy is None where no types are known.
    """
    return evaluate_samples(model, read_samples(data_dir), mpp, progress=progress)


def evaluate_samples(
    model: NucleusModel,
    samples: Iterable[Sample],
    mpp: float = 0.25,
    *,
    progress: Callable[[ImageResult], None] | None = None,
) -> dict[str, Any]:
    """As :func:`evaluate`, of samples that are in memory."""
    results = []
    for result in score_samples(model, samples, mpp):
        results.append(result)
        if progress is not None:
            progress(result)
    return summarize(results)


def score_samples(
    model: NucleusModel,
    samples: Iterable[Sample],
    mpp: float = 0.25,
    *,
    own_types: Mapping[str, int] | None = None,
    counted: Collection[int] | None = None,
) -> Iterator[ImageResult]:
    """Segment samples and score them, in their order; on the CPU several images at a time.

    Parameters
    ----------
    own_types : type ids of classes that PanNuke does not know, by class name.
    counted : type ids that count for the classes; None: those that the model has a class for.
    """
    workers = (os.cpu_count() or 1) if model.device == "cpu" else 2
    without_own_threads()

    def scored(sample: Sample) -> ImageResult:
        return score_sample(model, sample, mpp, own_types=own_types, counted=counted)

    return computed_ahead(scored, samples, workers)


def score_sample(
    model: NucleusModel,
    sample: Sample,
    mpp: float = 0.25,
    *,
    own_types: Mapping[str, int] | None = None,
    counted: Collection[int] | None = None,
) -> ImageResult:
    """Segment one sample and score it, see :func:`score_samples`."""
    labels, classes = segment_image(model, sample.image, sample.mpp or mpp)
    if sample.ignore is not None:
        labels = _without_ignored(labels, sample.ignore)
    table = overlaps(sample.labels, labels)
    typed = right = 0
    if sample.types is not None and model.info.classes:
        allowed = types_of_classes(model.info.classes, own_types)
        known = set().union(*allowed) if counted is None else counted
        first_pixel = np.unique(sample.labels, return_index=True)
        type_of = dict(zip(*first_pixel, strict=True))
        for pair in matched_pairs(table):
            pixel = type_of[table.true_ids[table.true[pair]]]
            true_type = int(sample.types.ravel()[pixel])
            if true_type == IGNORED_TYPE or true_type not in known:
                continue
            typed += 1
            predicted = classes[table.predicted_ids[table.predicted[pair]] - 1]
            right += true_type in allowed[predicted]
    return ImageResult(
        name=sample.name,
        source=sample.source,
        nuclei=table.true_ids.size,
        predicted=table.predicted_ids.size,
        scores=scores(table),
        typed=typed,
        right=right,
    )


def _without_ignored(labels: NDArray[np.int32], ignore: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Labels without the nuclei that lie mostly in what is to be ignored."""
    areas = np.bincount(labels.ravel())
    ignored = np.bincount(labels[ignore], minlength=areas.size)
    return np.where((2 * ignored > areas)[labels], np.int32(0), labels)


def types_of_classes(
    classes: Sequence[str], own_types: Mapping[str, int] | None = None
) -> list[set[int]]:
    """The type ids that each class of a model is right for.

    A model without a class for neoplastic nuclei has them among its epithelial ones.

    Parameters
    ----------
    own_types : type ids of classes that PanNuke does not know, by class name.
    """
    own = {name.lower(): {number} for name, number in (own_types or {}).items()}
    names = [name.lower() for name in classes]
    allowed = [set(_TYPES_OF_CLASS.get(name, ())) | own.get(name, set()) for name in names]
    if "neoplastic" not in names:
        for name, types in zip(names, allowed, strict=True):
            if name == "epithelial":
                types.add(1)
    return allowed


def segment_image(
    model: NucleusModel, image: NDArray[np.uint8], mpp: float
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Nuclei of an image that fits into memory.

    Parameters
    ----------
    image : (height, width, 3) uint8 RGB at ``mpp`` micrometres per pixel.

    Returns
    -------
    labels : (height, width) int32, 0 background, at the image's resolution.
    classes : (n,) class index of the label i + 1; zeros where the model has no classes.
    """
    height, width = image.shape[:2]
    factor = mpp / model.info.mpp
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    scaled = cv2.resize(image, size, interpolation=interpolation)
    maps = predict_image(model, np.asarray(scaled, np.uint8))
    labels = instances(maps, model.info.postprocessing)
    classes = np.zeros(int(labels.max()), np.int64)
    if maps.shape[0] > 3 and classes.size:
        flat = labels.ravel()
        sums = [np.bincount(flat, channel.ravel())[1:] for channel in maps[3:]]
        classes = np.argmax(sums, axis=0)
    if labels.shape != (height, width):
        back = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        labels = np.asarray(back, np.int32)
    return labels, classes


def predict_image(model: NucleusModel, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Maps (3 + classes, height, width) of an image at the model's resolution.

    The image is mirrored beyond its border. It goes through the network as a whole where
    the model takes any size and the image is small enough, else tile by tile; of a tile
    only the part inside its halo is used.
    """
    height, width = image.shape[:2]
    stride = model.info.stride
    if stride and max(height, width) <= _LARGEST_WHOLE:
        padded = _mirror(image, 0, -height % stride, -width % stride)
        whole = model.predict(padded[None])[0]
        return np.ascontiguousarray(whole[:, :height, :width])
    tile, halo = model.info.tile, model.info.halo
    core = tile - 2 * halo
    rows, columns = -(-height // core), -(-width // core)
    padded = _mirror(image, halo, halo + rows * core - height, halo + columns * core - width)
    maps = np.empty((3 + len(model.info.classes), rows * core, columns * core), np.float32)
    for row in range(rows):
        for column in range(columns):
            top, left = row * core, column * core
            crop = padded[top : top + tile, left : left + tile]
            out = model.predict(np.ascontiguousarray(crop)[None])[0]
            maps[:, top : top + core, left : left + core] = out[:, halo:-halo, halo:-halo]
    return np.ascontiguousarray(maps[:, :height, :width])


def _mirror(image: NDArray[np.uint8], before: int, bottom: int, right: int) -> NDArray[np.uint8]:
    border = cv2.BORDER_REFLECT_101
    return np.asarray(cv2.copyMakeBorder(image, before, bottom, before, right, border), np.uint8)


def summarize(results: Sequence[ImageResult]) -> dict[str, Any]:
    """The report of many images, see :func:`evaluate`."""
    by_source: dict[str, list[ImageResult]] = {}
    for result in results:
        by_source.setdefault(result.source, []).append(result)
    sources = {name: _summary(group) for name, group in sorted(by_source.items())}
    mean: dict[str, Any] = {
        "images": sum(s["images"] for s in sources.values()),
        "nuclei": sum(s["nuclei"] for s in sources.values()),
    }
    for key in ("f1_50", "msa", "aji", "pq", "class_accuracy"):
        values = [s[key] for s in sources.values() if s[key] is not None]
        mean[key] = float(np.mean(values)) if values else None
    return {"sources": sources, "mean": mean}


def _summary(group: Sequence[ImageResult]) -> dict[str, Any]:
    typed = sum(result.typed for result in group)
    summary: dict[str, Any] = {
        "images": len(group),
        "nuclei": sum(result.nuclei for result in group),
    }
    for key in ("f1_50", "msa", "aji", "pq"):
        summary[key] = float(np.mean([getattr(result.scores, key) for result in group]))
    summary["class_accuracy"] = sum(r.right for r in group) / typed if typed else None
    return summary
