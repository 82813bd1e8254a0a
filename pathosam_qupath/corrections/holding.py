"""A fine-tuned model goes back towards its base until it has lost little elsewhere.

Between a model and what was fine-tuned from it lie models that have most of what was gained and
little of what was lost (M. Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022).
On a set of samples that have nothing to do with the corrections the first of :data:`SHARES` of
the way is taken with which no figure loses more than a point.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathosam_qupath.corrections.comparison import (
    Comparison,
    FigureComparison,
    compare_results,
    counted_types,
    lost_figures,
)
from pathosam_qupath.corrections.evaluation import ImageResult, score_samples
from pathosam_qupath.corrections.learning_run import FinetuneProgress
from pathosam_qupath.corrections.samples import Sample
from pathosam_qupath.model import load_model
from pathosam_qupath.model.interface import NucleusModel

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the way from the base to what was learnt; after the last only the base is left."""

HELD = "held.json"
"""What was decided, beside the weights."""

_TELL = 2.0
"""Seconds between two words on how far it is."""


@dataclass(frozen=True, eq=False)
class RegressionSet:
    """Samples on which no figure may lose more than a point.

    Attributes
    ----------
    own_types : their type ids of classes that PanNuke does not know.
    identity : hash of them.
    """

    samples: Sequence[Sample]
    own_types: Mapping[str, int] = field(default_factory=dict)
    identity: str = ""


@dataclass(frozen=True)
class Held:
    """How much of the way from the base was gone.

    Attributes
    ----------
    share : 1: all of it, 0: nothing of it.
    weights : their file.
    comparison : of the model there (B) with its base (A) on the regression set.
    """

    share: float
    weights: Path
    comparison: Comparison


def held_back(
    base: NucleusModel,
    best: Path,
    write: Callable[[Path, float], None],
    regression: RegressionSet,
    progress: Callable[[FinetuneProgress], None] | None = None,
) -> Held:
    """How much of the way from the base to the best weights may be gone.

    Decided anew where an earlier call with the same samples was cut off; else it is read from
    the file :data:`HELD` beside the weights, which tells what was lost with each share.

    Parameters
    ----------
    base : what was fine-tuned.
    write : writes the weights at a share of the way to a file.
    """
    record = best.with_name(HELD)
    identity = [regression.identity, best.stat().st_mtime_ns]
    if record.is_file():
        known = json.loads(record.read_text())
        if known["identity"] == identity:
            share = float(known["share"])
            return Held(share, _weights_at(share, best, write), _comparison(known["comparison"]))
    look, tried = _Look(base, regression, progress), dict[float, list[dict[str, Any]]]()
    for share in SHARES:
        compared = look.compared(load_model(_weights_at(share, best, write), base.device))
        tried[share] = [asdict(figure) for figure in compared.figures]
        if not lost_figures(compared):
            break
    else:
        share, compared = 0.0, look.compared(base)
    decided = {"identity": identity, "share": share, "tried": tried, "comparison": asdict(compared)}
    temporary = record.with_suffix(".part")
    temporary.write_text(json.dumps(decided, indent=1))
    temporary.replace(record)
    return Held(share, _weights_at(share, best, write), compared)


def _weights_at(share: float, best: Path, write: Callable[[Path, float], None]) -> Path:
    """The file of the weights at a share of the way; written if it is not there."""
    if share == 1.0:
        return best
    path = best.with_name(f"{share:g}-{best.name}")
    if not path.exists() or path.stat().st_mtime < best.stat().st_mtime:
        write(path, share)
    return path


def _comparison(known: dict[str, Any]) -> Comparison:
    figures = tuple(FigureComparison(**figure) for figure in known["figures"])
    return Comparison(**{**known, "figures": figures})


class _Look:
    """Compares one model after another with their base, and tells how far that is."""

    def __init__(
        self,
        base: NucleusModel,
        regression: RegressionSet,
        progress: Callable[[FinetuneProgress], None] | None,
    ) -> None:
        self.base, self.regression, self.progress = base, regression, progress
        self.before: list[ImageResult] = []
        self.began = self.told = time.monotonic()
        self.done = 0
        self.total = len(regression.samples) * (1 + len(SHARES))

    def compared(self, model: NucleusModel) -> Comparison:
        """A model (B) and its base (A)."""
        counted = counted_types((self.base, model), self.regression.own_types)
        self.before = self.before or self._scored(self.base, counted)
        after = self.before if model is self.base else self._scored(model, counted)
        return compare_results(self.before, after, names=("base", "new"))

    def _scored(self, model: NucleusModel, counted: set[int]) -> list[ImageResult]:
        """The results of a model, in the order of the samples."""
        samples, types = self.regression.samples, self.regression.own_types
        results = []
        for result in score_samples(model, samples, own_types=types, counted=counted):
            results.append(result)
            self.done += 1
            if time.monotonic() - self.told > _TELL or len(results) == len(samples):
                self._tell(result.scores.f1_50)
        return results

    def _tell(self, score: float) -> None:
        self.told = time.monotonic()
        if self.progress is not None:
            seconds = round(self.told - self.began, 2)
            self.progress(
                FinetuneProgress(self.done, self.total, None, score, False, seconds, "holding")
            )


def between(
    begin: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Weights at a share of the way; what is no number in between is the end's."""
    return {
        name: torch.lerp(begin[name].float(), tensor.float(), share).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in end.items()
    }
