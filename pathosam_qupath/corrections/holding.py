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

from pathosam_qupath.corrections.comparison import compare_results, lost_figures
from pathosam_qupath.corrections.evaluation import ImageResult, score_samples, types_of_classes
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


def share_held(
    base: NucleusModel,
    weights_at: Callable[[float], Path],
    regression: RegressionSet,
    out: Path,
    progress: Callable[[FinetuneProgress], None] | None = None,
) -> float:
    """How much of the way from the base may be gone, 0: nothing of it.

    Decided anew where an earlier call with the same samples was cut off; else it is read.

    Parameters
    ----------
    base : what was fine-tuned.
    weights_at : writes the weights at a share of the way; their file.
    out : folder of the fine-tuning, whose file :data:`HELD` tells what was lost with each share.
    """
    record, learnt = out / HELD, weights_at(1.0)
    identity = [regression.identity, learnt.stat().st_mtime_ns]
    if record.is_file():
        known = json.loads(record.read_text())
        if known["identity"] == identity:
            return float(known["share"])
    look, counted = _Look(regression, progress), set[int]()
    for model in (base, load_model(learnt, base.device)):
        counted.update(*types_of_classes(model.info.classes, regression.own_types))
    before, tried = look.scored(base, counted), dict[float, list[dict[str, Any]]]()
    kept = 0.0
    for share in SHARES:
        model = load_model(weights_at(share), base.device)
        compared = compare_results(before, look.scored(model, counted), names=("base", "new"))
        tried[share] = [asdict(figure) for figure in compared.figures]
        if not lost_figures(compared):
            kept = share
            break
    temporary = record.with_suffix(".part")
    decided = {"identity": identity, "share": kept, "tried": tried}
    temporary.write_text(json.dumps(decided, indent=1))
    temporary.replace(record)
    return kept


class _Look:
    """Looks at the samples with one model after another, and tells how far that is."""

    def __init__(
        self, regression: RegressionSet, progress: Callable[[FinetuneProgress], None] | None
    ) -> None:
        self.regression, self.progress = regression, progress
        self.began = self.told = time.monotonic()
        self.done = 0
        self.total = len(regression.samples) * (1 + len(SHARES))

    def scored(self, model: NucleusModel, counted: set[int]) -> list[ImageResult]:
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
