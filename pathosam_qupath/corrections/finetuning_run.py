"""How a compact network learns from corrections.

Normalisation keeps the statistics of the base model, as a few crops have none worth learning.
An encoder that does not learn is computed as in segmentation, without gradients and with its
normalisation folded in: it is three quarters of the network's work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathosam_qupath.corrections.comparison import MARGIN
from pathosam_qupath.corrections.dataset import Batch
from pathosam_qupath.corrections.evaluation import score_sample, summarize
from pathosam_qupath.corrections.finetuning import (
    BEST,
    FINISHED,
    FinetuneData,
    FinetuneOptions,
)
from pathosam_qupath.corrections.finetuning_crops import class_weights, crop_source
from pathosam_qupath.corrections.holding import between
from pathosam_qupath.corrections.learning_run import FinetuneProgress, LearningRun, Schedule
from pathosam_qupath.corrections.losses import class_loss, map_loss
from pathosam_qupath.corrections.new_classes import class_of_type
from pathosam_qupath.corrections.precision import mixed, working_dtype
from pathosam_qupath.corrections.prompt_training import train_prompts
from pathosam_qupath.corrections.training import validation_score
from pathosam_qupath.corrections.training_config import PromptTraining
from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.compact import CompactModel
from pathosam_qupath.model.network import CompactNetwork, Embedding, Encoder, fused
from pathosam_qupath.model.weights import CompactDescription, load_weights, save_weights

ENCODER_SHARE = 0.2
"""Learning rate of the encoder as a share of that of the rest."""

FROZEN_BATCHES = 8
"""Batches whose embeddings are kept for the class head."""

PROMPT_RATE = 5e-4
"""Learning rate of the prompt decoder, which is trained already: a quarter of the usual."""


class FinetuneRun(LearningRun):
    """The fine-tuning of a compact network.

    Parameters
    ----------
    network : starts from here, and is changed.
    out : folder of the run.
    """

    def __init__(
        self,
        network: CompactNetwork,
        description: CompactDescription,
        data: FinetuneData,
        out: Path,
        options: FinetuneOptions,
        device: str,
    ) -> None:
        self.begin = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.description, self.data, self.options = description, data, options
        self.classes = class_of_type(description.classes, data.own_types)
        self.crops = crop_source(data, self.classes, mpp=description.mpp, side=options.side)
        self.class_weights = class_weights(self.crops, device)
        self.frozen: list[tuple[Tensor, Tensor]] = []
        groups = _trained(network, options)
        self.encoder = None if options.what == "all" else _frozen(network, device)
        identity = json.dumps({"options": asdict(options), "data": data.identity})
        schedule = Schedule(options.total, options.validate_every, options.patience)
        way = options.way_with(data.nuclei)
        super().__init__(groups, schedule, out, identity, device, way)
        self.about = MARGIN * (1 if options.what == "class-head" else 3)  # a point of each figure

    def write_between(self, path: Path, share: float) -> None:
        """Write the weights between those that it began with (0) and the best ones (1)."""
        network, description = load_weights(self.out / BEST)
        network.load_state_dict(between(self.begin, network.state_dict(), share))
        save_weights(path, network, description)

    def finish(
        self, best: Path, progress: Callable[[FinetuneProgress], None] | None = None
    ) -> Path:
        """Train the prompt decoder on the best state; the path of the finished weights.

        This depends on that state alone, so it is begun anew where it was cut off.
        """
        finished = best.with_name(best.name.replace(BEST, FINISHED))
        steps = self.options.prompt_total
        if self.network.prompts is None or not steps:
            return best
        if finished.exists() and finished.stat().st_mtime >= best.stat().st_mtime:
            return finished
        torch.manual_seed(self.options.seed)
        network, description = load_weights(best)
        config = PromptTraining(steps, learning_rate=PROMPT_RATE)
        began = time.monotonic()

        def told(step: int, loss: float, overlap: float) -> None:
            if progress is not None:
                seconds = round(time.monotonic() - began, 2)
                progress(FinetuneProgress(step, steps, loss, overlap, False, seconds, "prompts"))

        train_prompts(
            network, self.crops, config, self.options.seed, device=self.device, progress=told
        )
        save_weights(finished, network.cpu(), description)
        return finished

    def prepared(self, step: int) -> Batch | None:
        """The crops of a step; the class head has its own."""
        return None if self.options.what == "class-head" else self._crops(step)

    def _crops(self, number: int) -> Batch:
        return self.crops.batch(self.options.batch, self.options.seed, number)

    def learn(self, batch: Batch | None) -> float:
        """Add the gradients of a batch; its loss."""
        loss = self._class_head_loss() if batch is None else self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _loss(self, batch: Batch) -> Tensor:
        images, maps, types = self._tensors(batch)
        with mixed(self.device):
            logits, middle = self.network.instances(self._embedding(images))
            class_logits = None if self.network.types is None else self.network.types(middle)
        loss = map_loss(logits.float(), maps)
        if class_logits is not None and self.class_weights is not None:
            loss = loss + 0.5 * class_loss(class_logits.float(), types, self.class_weights)
        return loss

    def _embedding(self, images: Tensor) -> Embedding:
        """What the encoder makes of crops; with gradients only where it learns."""
        if self.encoder is None:
            embedding: Embedding = self.network.encoder(images)
            return embedding
        with torch.no_grad():
            frozen: Embedding = self.encoder(images.to(working_dtype(self.device)))
        return frozen

    def _class_head_loss(self) -> Tensor:
        head = self.network.types
        assert head is not None and self.class_weights is not None
        if not self.frozen:
            with torch.no_grad(), mixed(self.device):
                for number in range(FROZEN_BATCHES):
                    images, _, types = self._tensors(self._crops(number))
                    _, features = self.network.instances(self._embedding(images))
                    self.frozen.append((features.float(), types))
        features, types = self.frozen[self.step % FROZEN_BATCHES]
        return class_loss(head(features), types, self.class_weights)

    def _tensors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        images = torch.from_numpy(batch.images).to(self.device).permute(0, 3, 1, 2)
        maps = torch.from_numpy(batch.maps).to(self.device).float() / 255.0
        types = torch.from_numpy(batch.types).to(self.device).long()
        return images.float() / 127.5 - 1.0, maps, types

    def score(self) -> float:
        """F1 and mSA as in training, and class accuracy; where nothing is held out, the step."""
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

    def keep(self) -> None:
        """Write the weights."""
        save_weights(self.out / BEST, self.network, self.description)


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


def _frozen(network: CompactNetwork, device: str) -> Encoder:
    """A copy of the encoder for inference, as segmentation computes it."""
    encoder = fused(network).encoder.to(device, working_dtype(device)).requires_grad_(False)
    return encoder.to(memory_format=torch.channels_last)
