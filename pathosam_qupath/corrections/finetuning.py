"""Fine-tuning of a compact model on corrected regions: ``finetune``.

Three depths: the *class head* on frozen embeddings, which are computed once, so that it takes
seconds; the *decoder* (with the class head, which reads its features); *all*, the encoder at a
fifth of the learning rate. Normalisation keeps the statistics of the base model, as a few
crops have none worth learning. Batches are functions of seed and step, so a run that was
killed and is called again ends as if it had not been. What is kept is the state that scores
best on the regions that are held out for stopping; the base model is the first of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pathosam_qupath.corrections.augmentation import AugmentationConfig
from pathosam_qupath.corrections.dataset import Batch, CropSource
from pathosam_qupath.corrections.evaluation import score_sample, summarize
from pathosam_qupath.corrections.losses import class_loss, map_loss
from pathosam_qupath.corrections.new_classes import class_of_type, with_classes
from pathosam_qupath.corrections.samples import Sample
from pathosam_qupath.corrections.training import validation_score
from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.compact import CompactModel
from pathosam_qupath.model.network import CompactNetwork
from pathosam_qupath.model.weights import CompactDescription, load_weights, save_weights

What = Literal["class-head", "decoder", "all"]

BEST, CHECKPOINT, LOG = "best.safetensors", "checkpoint.pt", "log.jsonl"
ENCODER_SHARE = 0.2
"""Learning rate of the encoder as a share of that of the rest."""

FROZEN_BATCHES = 8
"""Batches whose embeddings are kept for the class head."""

_STEPS: dict[What, int] = {"class-head": 400, "decoder": 400, "all": 800}
_RATES: dict[What, float] = {"class-head": 2e-3, "decoder": 3e-4, "all": 3e-4}


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune.

    Attributes
    ----------
    steps, learning_rate : None: what suits ``what``.
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
    validate_every: int = 100
    patience: int = 3

    @property
    def total(self) -> int:
        """Steps at most."""
        return self.steps or _STEPS[self.what]

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or _RATES[self.what]


@dataclass(frozen=True)
class FinetuneProgress:
    """Where a run stands; ``score`` is that of the state just validated."""

    step: int
    steps: int
    loss: float | None
    score: float
    best: bool
    seconds: float


@dataclass(frozen=True, eq=False)
class FinetuneData:
    """What to learn from.

    Attributes
    ----------
    train : corrected regions.
    stopping : regions that are held out to tell when to stop.
    replay : samples of the base model's training, against forgetting.
    own_types : type ids of classes that PanNuke does not know.
    identity : hash of all of it.
    """

    train: Sequence[Sample]
    stopping: Sequence[Sample]
    replay: Sequence[Sample] = ()
    own_types: Mapping[str, int] = field(default_factory=dict)
    identity: str = ""


def finetune(
    base: Path,
    data: FinetuneData,
    out: Path,
    options: FinetuneOptions,
    *,
    name: str,
    device: str = "cpu",
    progress: Callable[[FinetuneProgress], None] | None = None,
) -> Path:
    """Fine-tune a compact model, or go on with it; the path of the best weights.

    Parameters
    ----------
    base : weights to start from.
    out : folder of the run.
    name : what the new model calls itself.

    Raises
    ------
    UsageError : a class of the data is unknown to the model and may not be added, there is
        nothing to learn, or ``out`` holds another run.
    """
    network, description = load_weights(base)
    network, description = with_classes(
        network, description, data.train, data.own_types, may_add=options.what != "decoder"
    )
    description = replace(description, name=name)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    run = _Run(network, description, data, out, options, device)
    run.resume()
    run.go_on(progress)
    return out / BEST


class _Run:
    """A fine-tuning, from its first step or its checkpoint to its end."""

    def __init__(
        self,
        network: CompactNetwork,
        description: CompactDescription,
        data: FinetuneData,
        out: Path,
        options: FinetuneOptions,
        device: str,
    ) -> None:
        self.network = network.to(device)
        self.description, self.data, self.out = description, data, out
        self.options, self.device = options, device
        self.classes = class_of_type(description.classes, data.own_types)
        self.crops = _crop_source(description, data, options, self.classes)
        self.class_weights = _class_weights(self.crops, device)
        groups = _trained(network, options)
        self.optimizer = torch.optim.AdamW(groups, lr=options.rate, weight_decay=0.01)
        self.rates = [float(group["lr"]) for group in groups]
        self.step, self.seconds, self.best, self.since_best = 0, 0.0, float("-inf"), 0
        self.frozen: list[tuple[Tensor, Tensor]] = []

    def resume(self) -> None:
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["identity"] != self._identity():
            raise UsageError(
                self.out,
                "it holds a fine-tuning of another model, other data or other options",
                "Choose another --name, or delete the folder to begin anew.",
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.best, self.since_best = state["best"], state["since_best"]

    def go_on(self, progress: Callable[[FinetuneProgress], None] | None) -> None:
        started = time.monotonic() - self.seconds
        losses: list[float] = []
        if self.step == 0 and not (self.out / CHECKPOINT).exists():
            self._validate(None, started, progress)
        while self.step < self.options.total and self.since_best < self.options.patience:
            self.step += 1
            losses.append(self._train_step())
            if self.step % self.options.validate_every == 0 or self.step == self.options.total:
                self._validate(sum(losses) / len(losses), started, progress)
                losses = []

    def _train_step(self) -> float:
        fall = 1 - 0.9 * (self.step - 1) / self.options.total
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * fall
        loss = self._class_head_loss() if self.options.what == "class-head" else self._loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self) -> Tensor:
        images, maps, types = self._tensors(self._batch(self.step))
        self.network.eval()
        logits, class_logits = self.network(images)
        loss = map_loss(logits, maps)
        if class_logits is not None and self.class_weights is not None:
            loss = loss + 0.5 * class_loss(class_logits, types, self.class_weights)
        return loss

    def _class_head_loss(self) -> Tensor:
        head = self.network.types
        assert head is not None and self.class_weights is not None
        if not self.frozen:
            self.network.eval()
            with torch.no_grad():
                for number in range(FROZEN_BATCHES):
                    images, _, types = self._tensors(self._batch(number))
                    _, features = self.network.instances(self.network.encoder(images))
                    self.frozen.append((features.detach(), types))
        features, types = self.frozen[self.step % FROZEN_BATCHES]
        return class_loss(head(features), types, self.class_weights)

    def _batch(self, number: int) -> Batch:
        return self.crops.batch(self.options.batch, self.options.seed, number)

    def _tensors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        images = torch.from_numpy(batch.images).to(self.device).permute(0, 3, 1, 2)
        maps = torch.from_numpy(batch.maps).to(self.device).float() / 255.0
        types = torch.from_numpy(batch.types).to(self.device).long()
        return images.float() / 127.5 - 1.0, maps, types

    def _validate(
        self,
        loss: float | None,
        started: float,
        progress: Callable[[FinetuneProgress], None] | None,
    ) -> None:
        score = self._score()
        better = score > self.best
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best = score
            save_weights(self.out / BEST, self.network, self.description)
        self.seconds = time.monotonic() - started
        self._save()
        line = FinetuneProgress(
            self.step, self.options.total, loss, score, better, round(self.seconds, 2)
        )
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        if progress is not None:
            progress(line)

    def _score(self) -> float:
        """F1 and mSA as in training, and class accuracy; 0 where nothing is held out."""
        if not self.data.stopping:
            # Nothing tells when to stop, so the last state is kept.
            return float(self.step)
        model = CompactModel(self.network, self.description, weights_hash="", device=self.device)
        own = self.data.own_types
        results = [
            score_sample(model, s, own_types=own, counted=set(self.classes))
            for s in self.data.stopping
        ]
        report = summarize(results)
        return validation_score(report) + (report["mean"]["class_accuracy"] or 0.0)

    def _save(self) -> None:
        temporary = self.out / (CHECKPOINT + ".part")
        state = {
            "identity": self._identity(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "since_best": self.since_best,
        }
        torch.save(state, temporary)
        temporary.replace(self.out / CHECKPOINT)

    def _identity(self) -> str:
        return json.dumps({"options": asdict(self.options), "data": self.data.identity})


def _trained(network: CompactNetwork, options: FinetuneOptions) -> list[dict[str, Any]]:
    """The parameters that learn, with their learning rates; the others are frozen."""
    network.requires_grad_(False)
    if options.what == "class-head":
        if network.types is None:
            raise UsageError(
                "--what class-head", "the model has no classes", "Take --what decoder or all."
            )
        parts: list[tuple[nn.Module | None, float]] = [(network.types, 1.0)]
    else:
        parts = [(network.instances, 1.0), (network.types, 1.0)]
    if options.what == "all":
        parts.append((network.encoder, ENCODER_SHARE))
    groups = []
    for part, share in parts:
        if part is not None:
            part.requires_grad_(True)
            groups.append({"params": list(part.parameters()), "lr": options.rate * share})
    return groups


def _crop_source(
    description: CompactDescription,
    data: FinetuneData,
    options: FinetuneOptions,
    classes: Mapping[int, int],
) -> CropSource:
    """Crops of the corrections, and as many of the replayed samples where there are any."""
    if not any((sample.labels > 0).any() for sample in data.train):
        raise UsageError(
            "the corrections",
            "there is no nucleus in them to learn from",
            "Review regions that hold nuclei, and export again.",
        )
    corrected = "corrections"
    samples = [replace(sample, source=corrected) for sample in data.train]
    replayed = [replace(sample, source="replay") for sample in data.replay]
    return CropSource(
        [*samples, *replayed],
        mpp=description.mpp,
        side=options.side,
        class_of_type=classes,
        weights={},
        assumed_diameter_um=8.0,
        augmentation=AugmentationConfig(),
    )


def _class_weights(crops: CropSource, device: str) -> Tensor | None:
    """As in training: rare classes weigh more, by the root of their rarity."""
    pixels = torch.from_numpy(crops.class_pixels).double()
    if not len(pixels):
        return None
    share = pixels.clamp(min=1) / pixels.sum().clamp(min=1)
    # A class that is not in the data would weigh endlessly.
    weights = (share.mean() / share).sqrt().clamp(max=5.0)
    return weights.float().to(device)
