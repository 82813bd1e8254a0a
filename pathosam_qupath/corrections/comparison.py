"""Two models on the same images: which is better, and how sure that is.

Both models see every image; the differences of their scores are resampled over images
(paired bootstrap, Efron 1979), which gives the interval that holds the mean difference with
95 % confidence. The rule for each figure, with B−A the mean difference:

* *worse*: B loses more than :data:`MARGIN` (one point), or the interval lies below 0;
* *better*: the interval lies above 0;
* *no worse*: anything else.

Of fewer than :data:`FEWEST` images the interval says nothing, and only the margin counts, both
ways. All in all B is worse where any figure is, better where any is and none is worse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.corrections.evaluation import ImageResult, score_sample, types_of_classes
from pathosam_qupath.corrections.samples import Sample, is_sample_folder, read_samples
from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.interface import NucleusModel

Verdict = Literal["better", "no worse", "worse"]

MARGIN = 0.01
"""A loss of one point of a figure is a loss, however wide the interval."""

FEWEST = 5
RESAMPLES = 4000
_FIGURES = ("pq", "f1_50", "msa")


@dataclass(frozen=True)
class FigureComparison:
    """One figure of both models.

    Attributes
    ----------
    a, b : the figure; None where it cannot be had (no classes).
    difference : B − A.
    low, high : the 95 % interval of the difference.
    """

    figure: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Comparison:
    """Two models on one set of images; means are over images."""

    a: str
    b: str
    images: int
    nuclei: int
    figures: tuple[FigureComparison, ...]
    verdict: Verdict


def compare_models(
    a: NucleusModel,
    b: NucleusModel,
    data: Path,
    mpp: float = 0.25,
    *,
    names: tuple[str, str] | None = None,
    progress: Callable[[ImageResult], None] | None = None,
) -> Comparison:
    """Compare two models on a folder of samples, or on the held-out ones of an export.

    Parameters
    ----------
    mpp : µm/px of images that do not say theirs.
    names : what the models are called in the result; default: as they call themselves.
    progress : called after each image with the results of B.

    Raises
    ------
    UsageError : the folder holds no samples, or an export without held-out ones.
    ImageError : the folder is a damaged export.
    """
    samples = list(read_samples(held_out_folder(data)))
    return compare_on_samples(
        a, b, samples, mpp, own_types=own_types(data), names=names, progress=progress
    )


def compare_on_samples(
    a: NucleusModel,
    b: NucleusModel,
    samples: Sequence[Sample],
    mpp: float = 0.25,
    *,
    own_types: Mapping[str, int] | None = None,
    names: tuple[str, str] | None = None,
    progress: Callable[[ImageResult], None] | None = None,
) -> Comparison:
    """As :func:`compare_models`, of samples that are in memory."""
    counted = counted_types((a, b), own_types)
    results: tuple[list[ImageResult], list[ImageResult]] = ([], [])
    for sample in samples:
        for model, scored in zip((a, b), results, strict=True):
            scored.append(score_sample(model, sample, mpp, own_types=own_types, counted=counted))
        if progress is not None:
            progress(results[1][-1])
    return compare_results(*results, names=names or (a.info.name, b.info.name))


def compare_results(
    a: Sequence[ImageResult],
    b: Sequence[ImageResult],
    *,
    names: tuple[str, str],
    seed: int = 0,
) -> Comparison:
    """Compare what two models scored on the same images, in the same order."""
    chosen = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    figures = []
    for name in _FIGURES:
        values = [np.array([getattr(r.scores, name) for r in results]) for results in (a, b)]
        ones = np.ones(len(a))
        figures.append(_figure(name, values, [ones, ones], chosen))
    right = [np.array([r.right for r in results], float) for results in (a, b)]
    typed = [np.array([r.typed for r in results], float) for results in (a, b)]
    figures.append(_figure("class_accuracy", right, typed, chosen))
    verdicts = {figure.verdict for figure in figures}
    overall: Verdict = (
        "worse" if "worse" in verdicts else "better" if "better" in verdicts else "no worse"
    )
    nuclei = sum(result.nuclei for result in a)
    return Comparison(*names, len(a), nuclei, tuple(figures), overall)


def counted_types(
    models: Sequence[NucleusModel], own_types: Mapping[str, int] | None = None
) -> set[int]:
    """Type ids that count for the classes: one that only one model has is the other's mistake."""
    classes = [model.info.classes for model in models]
    return set().union(
        *(types for names in classes for types in types_of_classes(names, own_types))
    )


def lost_figures(comparison: Comparison) -> list[str]:
    """The figures of which B has more than a point less."""
    return [f.figure for f in comparison.figures if (f.difference or 0.0) < -MARGIN]


def held_out_folder(data: Path) -> Path:
    """Where the samples to compare on lie: the folder itself, or an export's ``val``.

    Raises
    ------
    UsageError : there are none.
    ImageError : the folder is a damaged export.
    """
    from pathosam_qupath.corrections.training_set_files import verify_training_set

    verify_training_set(data)
    if is_sample_folder(data):
        return data
    if is_sample_folder(data / "val"):
        return data / "val"
    raise UsageError(
        data,
        "it holds neither samples nor a folder `val` with held-out ones",
        "Give a folder with `images` and `labels`, or an export of at least two slides.",
    )


def own_types(data: Path) -> dict[str, int]:
    """Type ids of classes that PanNuke does not know, as ``classes.json`` has them.

    The file lies in a folder of samples or in the export that the folder belongs to.

    Raises
    ------
    UsageError : it cannot be read.
    """
    path = next((f / "classes.json" for f in (data, data.parent) if _has_classes(f)), None)
    if path is None:
        return {}
    try:
        return {str(name): int(number) for name, number in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(path, f"it cannot be read ({error})", "Export again.") from error


def _has_classes(folder: Path) -> bool:
    return (folder / "classes.json").is_file()


def _figure(
    name: str,
    values: Sequence[NDArray[np.float64]],
    weights: Sequence[NDArray[np.float64]],
    chosen: NDArray[np.intp],
) -> FigureComparison:
    """Compare ratios of sums over images: means where the weights are 1."""
    if any(w.sum() == 0 for w in weights):
        return FigureComparison(name, None, None, None, None, None, None)
    a, b = (float(v.sum() / w.sum()) for v, w in zip(values, weights, strict=True))
    drawn = []
    for v, w in zip(values, weights, strict=True):
        total = w[chosen].sum(axis=1)
        ratio = np.full(len(chosen), np.nan)
        drawn.append(np.divide(v[chosen].sum(axis=1), total, out=ratio, where=total > 0))
    low, high = (float(q) for q in np.nanquantile(drawn[1] - drawn[0], [0.025, 0.975]))
    return FigureComparison(name, a, b, b - a, low, high, _verdict(b - a, low, high, chosen))


def _verdict(difference: float, low: float, high: float, chosen: NDArray[np.intp]) -> Verdict:
    certain = chosen.shape[1] >= FEWEST
    if difference < -MARGIN or (certain and high < 0):
        return "worse"
    if low > 0 if certain else difference > MARGIN:
        return "better"
    return "no worse"
