"""Fine-tuning of a compact model on corrected regions: ``finetune``.

Three depths: the *class head* on frozen embeddings, which are computed once, so that it takes
seconds; the *decoder* (with the class head, which reads its features); *all*, the encoder at a
fifth of the learning rate. What is kept is a running average of the weights, in the state that
scores best on the regions that are held out for stopping; the base model is the first of them.
Where a regression set is given it goes back towards the base until little is lost there
(:mod:`~pathosam_qupath.corrections.holding`).

Clicks and boxes are answered by a decoder of their own, which reads the features, and the maps,
that the other depths change. It is therefore trained on for a minute on the network as it came
out (:mod:`~pathosam_qupath.corrections.prompt_training`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pathosam_qupath.corrections.comparison import Comparison
from pathosam_qupath.corrections.holding import RegressionSet, held_back
from pathosam_qupath.corrections.learning_run import FinetuneProgress
from pathosam_qupath.corrections.new_classes import with_classes
from pathosam_qupath.corrections.samples import Sample
from pathosam_qupath.errors import UsageError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.weights import load_weights

What = Literal["class-head", "decoder", "lora", "all"]

BEST = "best.safetensors"
FINISHED = "model.safetensors"
"""The best state with a prompt decoder that was trained on it."""

_STEPS: dict[What, int] = {"class-head": 400, "decoder": 150, "lora": 300, "all": 400}
_RATES: dict[What, float] = {"class-head": 2e-3, "decoder": 5e-4, "lora": 1e-4, "all": 3e-4}
_PROMPT_STEPS: dict[What, int] = {"class-head": 0, "decoder": 60, "lora": 0, "all": 120}

BASE_WORTH = 400
"""How many nuclei to learn from weigh as much as what the base knows, see ``way_with``."""


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune.

    Attributes
    ----------
    what : "lora" is for SAMs (:mod:`~pathosam_qupath.corrections.pathosam_finetuning`).
    steps, learning_rate, prompt_steps : None: what suits ``what``; the last are those of the
        prompt decoder, and it stays as it is with 0.
    way : how far from the base what is kept lies, 1: where learning went; None: what suits
        ``what`` and the number of nuclei, see :meth:`way_with`.
    batch, side : crops per step, pixels of a crop's side.
    validate_every : steps between validations, where a killed run goes on.
    patience : validations without progress after which it ends.
    """

    what: What = "class-head"
    seed: int = 0
    steps: int | None = None
    learning_rate: float | None = None
    batch: int = 8
    side: int = 256
    validate_every: int = 50
    patience: int = 4
    prompt_steps: int | None = None
    way: float | None = None

    @property
    def total(self) -> int:
        """Steps at most."""
        return self.steps or _STEPS[self.what]

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or _RATES[self.what]

    def way_with(self, nuclei: int) -> float:
        """How far from the base what is kept lies, with so many nuclei to learn from.

        A decoder goes halfway with up to :data:`BASE_WORTH` nuclei, and three quarters with thrice
        as many: the more there are, the more is gained by going on, and the less is lost
        elsewhere.
        """
        if self.way is not None:
            return self.way
        if self.what != "decoder":
            return 1.0
        return min(0.75, max(0.5, nuclei / (nuclei + BASE_WORTH)))

    @property
    def prompt_total(self) -> int:
        """Steps of the prompt decoder."""
        return _PROMPT_STEPS[self.what] if self.prompt_steps is None else self.prompt_steps


@dataclass(frozen=True, eq=False)
class FinetuneData:
    """What to learn from.

    Attributes
    ----------
    train : corrected regions.
    stopping : regions that are held out to tell when to stop.
    replay : samples of the base model's training, against forgetting.
    own_types : type ids of classes that PanNuke does not know.
    identity : hash of all of it but the regression set.
    regression : on which no figure may lose more than a point.
    """

    train: Sequence[Sample]
    stopping: Sequence[Sample]
    replay: Sequence[Sample] = ()
    own_types: Mapping[str, int] = field(default_factory=dict)
    identity: str = ""
    regression: RegressionSet | None = None

    @property
    def nuclei(self) -> int:
        """How many nuclei there are to learn from in the corrected regions."""
        return sum(int(np.count_nonzero(np.unique(sample.labels))) for sample in self.train)


@dataclass(frozen=True)
class Finetuned:
    """What came of a fine-tuning.

    Attributes
    ----------
    weights : their file.
    way : how far from the base they lie, 1: where learning went, 0: they are the base's.
    share : how much of the way that would have been gone this is, for the regression set.
    regression : of the model (B) with its base (A) on the regression set; None: there is none.
    """

    weights: Path
    way: float
    share: float = 1.0
    regression: Comparison | None = None


def finetune(
    base: Path,
    data: FinetuneData,
    out: Path,
    options: FinetuneOptions,
    *,
    name: str,
    device: str = "cpu",
    progress: Callable[[FinetuneProgress], None] | None = None,
) -> Finetuned:
    """Fine-tune a compact model, or go on with it.

    Parameters
    ----------
    base : weights to start from.
    out : folder of the run.
    name : what the new model calls itself.

    Raises
    ------
    UsageError : a class of the data is unknown to the model and may not be added, there is
        nothing to learn, ``out`` holds another run, or LoRA is asked for.
    """
    if options.what == "lora":
        raise UsageError(
            "--what lora",
            "a compact model has no attention for low-rank paths to go beside",
            "Take --what decoder or all; lora is for PathoSAM.",
        )
    from pathosam_qupath.corrections.finetuning_run import FinetuneRun

    network, description = load_weights(base)
    network, description = with_classes(
        network, description, data.train, data.own_types, may_add=options.what != "decoder"
    )
    description = replace(description, name=name)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    run = FinetuneRun(network, description, data, out, options, device)
    run.resume()
    run.go_on(progress)
    done = Finetuned(out / BEST, run.way if run.best_step else 0.0)
    if data.regression is not None:
        old = load_model(base, device)
        held = held_back(old, done.weights, run.write_between, data.regression, progress)
        done = Finetuned(held.weights, done.way * held.share, held.share, held.comparison)
    return replace(done, weights=run.finish(done.weights, progress)) if done.way else done
