"""Training of the compact network: the command `train`, from a configuration and a seed.

The run can be stopped at any time and is resumed from its last checkpoint; batches are
functions of seed and step, so a resumed run repeats what an uninterrupted one does. The
learning rate is constant between a warm-up and a linear decay at the end (so the length
of a run can be chosen late), and what is validated and kept is a running average of the
weights.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathosam_qupath.corrections.dataset import Batch, CropSource
from pathosam_qupath.corrections.evaluation import evaluate_samples
from pathosam_qupath.corrections.losses import class_loss, map_loss, size_weights
from pathosam_qupath.corrections.muon import Muon
from pathosam_qupath.corrections.prompt_training import train_prompts
from pathosam_qupath.corrections.samples import Sample, is_sample_folder, read_samples
from pathosam_qupath.corrections.training_config import TrainingConfig
from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model.compact import CompactModel
from pathosam_qupath.model.network import CompactNetwork
from pathosam_qupath.model.weights import CompactDescription, load_weights, save_weights

#: Files in the output folder.
BEST, LAST, CHECKPOINT, LOG = "best.safetensors", "last.safetensors", "checkpoint.pt", "log.jsonl"
#: The best weights with a prompt decoder that was trained for them, and its curve.
WITH_PROMPTS, PROMPT_LOG, PROMPT_CHECKPOINT = "model.safetensors", "prompts.jsonl", "prompts.pt"


@dataclass(frozen=True)
class TrainingProgress:
    """One line of the log: where a run stands.

    Attributes
    ----------
    loss : mean over the steps since the last line.
    validation : as :func:`~pathosam_qupath.corrections.evaluation.evaluate` reports.
    score : what checkpoints are chosen by, see :func:`validation_score`; None without
        validation data.
    """

    step: int
    steps: int
    loss: float
    seconds: float
    validation: dict[str, Any] | None
    score: float | None
    best: bool


@dataclass(frozen=True)
class TrainingData:
    """The samples of a run, split."""

    train: list[Sample]
    validation: list[Sample]


def train(
    config: TrainingConfig,
    data_dirs: Sequence[Path],
    out: Path,
    *,
    progress: Callable[[TrainingProgress], None] | None = None,
    device: str = "cpu",
    initial: Path | None = None,
) -> Path:
    """Train, or go on training, a compact model; return the path of its best weights.

    Parameters
    ----------
    data_dirs : folders of samples, or folders with the sub-folders that the configuration
        names as `train` and `validation`.
    out : folder of the run: `best.safetensors` and `last.safetensors` are models,
        `checkpoint.pt` is where the run goes on when it is called again, `log.jsonl` the
        curve; `model.safetensors` is the best one with its prompt decoder, where the
        configuration asks for prompts.
    initial : weights to start from, for fine-tuning; the network's shape must fit. A prompt
        decoder that it lacks begins untrained.

    Raises
    ------
    UsageError : when a folder holds no samples, or `out` holds a run of another seed or
        network.
    """
    torch.manual_seed(config.seed)
    data = read_training_data(config, data_dirs)
    crops = CropSource(
        data.train,
        mpp=config.mpp,
        side=config.side,
        class_of_type={t: i for i, c in enumerate(config.classes) for t in c.types},
        weights=config.source_weights,
        assumed_diameter_um=config.assumed_diameter_um,
        augmentation=config.augmentation,
    )
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(config, out, device, initial, crops.class_pixels)
    run.resume()
    run.go_on(crops, data.validation, progress)
    best = out / (BEST if (out / BEST).exists() else LAST)
    if not config.prompts.steps:
        return best
    final = out / WITH_PROMPTS
    if not final.exists() or final.stat().st_mtime < best.stat().st_mtime:
        calmer = crops.augmented(config.final_augmentation or config.augmentation)
        _finish(config, best, final, calmer, device, initial)
    return final


def _finish(
    config: TrainingConfig,
    best: Path,
    final: Path,
    crops: CropSource,
    device: str,
    initial: Path | None,
) -> None:
    """Train the prompt decoder on the best weights and save both together."""
    trained, description = load_weights(best)
    torch.manual_seed(config.seed)
    network = CompactNetwork(replace(trained.config, prompts=True))
    if initial is not None:
        begun, _ = load_weights(initial)
        if begun.prompts is not None:
            network.load_state_dict(begun.state_dict())
    network.load_state_dict(trained.state_dict(), strict=False)
    description = replace(description, network=network.config)
    log = best.with_name(PROMPT_LOG)

    def progress(step: int, loss: float, overlap: float) -> None:
        line = {"step": step, "steps": config.prompts.steps, "loss": loss, "iou": overlap}
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    train_prompts(
        network,
        crops,
        config.prompts,
        config.seed,
        device=device,
        progress=progress,
        checkpoint=best.with_name(PROMPT_CHECKPOINT),
    )
    save_weights(final, network.cpu(), description)


def read_training_data(config: TrainingConfig, data_dirs: Iterable[Path]) -> TrainingData:
    """Read and split the samples; those that are held out are validated on."""
    training: list[Sample] = []
    validation: list[Sample] = []
    for root in data_dirs:
        if is_sample_folder(root):
            folders, validating = [root], []
        else:
            folders = [root / name for name in config.train if (root / name).is_dir()]
            validating = [root / name for name in config.validation if (root / name).is_dir()]
        if not folders:
            raise UsageError(
                root,
                f"it holds neither samples nor one of the folders {', '.join(config.train)}",
                "Give a folder with `images` and `labels`, or their parent.",
            )
        for folder in folders:
            every = config.hold_out.get(folder.name, 0)
            for index, sample in enumerate(read_samples(folder)):
                held_out = every and index % every == every - 1
                (validation if held_out else training).append(sample)
        validation.extend(sample for folder in validating for sample in read_samples(folder))
    return TrainingData(training, validation)


def describe(config: TrainingConfig) -> CompactDescription:
    """What a model that this configuration gives says about itself."""
    return CompactDescription(
        name=config.name,
        mpp=config.mpp,
        tile=config.tile,
        halo=config.halo,
        classes=tuple(c.name for c in config.classes),
        colors=tuple(c.color for c in config.classes),
        network=config.network,
        postprocessing=config.postprocessing,
    )


def validation_score(report: dict[str, Any]) -> float:
    """F1 at IoU 0.5 plus mSA, averaged over sources: counts and outlines both matter."""
    mean = report["mean"]
    return float(mean["f1_50"] + mean["msa"])


class _Run:
    """The state of a run, from its first step or its checkpoint to its last step."""

    def __init__(
        self,
        config: TrainingConfig,
        out: Path,
        device: str,
        initial: Path | None,
        class_pixels: np.ndarray[Any, np.dtype[np.int64]],
    ) -> None:
        self.config, self.out, self.device = config, out, device
        self.network = CompactNetwork(config.network)
        if initial is not None:
            self._start_from(initial)
        self.network.to(device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.replicas = [self.network]
        self.replicas += [_sharing_parameters(self.network) for _ in range(config.shards - 1)]
        parallel = config.shards > 1 and device == "cpu"
        self.pool = ThreadPoolExecutor(
            config.shards, "shard", initializer=_one_thread if parallel else None
        )
        self.optimizers = _optimizers(self.network, config, self.pool)
        self.step, self.seconds, self.best_score = 0, 0.0, -1.0
        # Rare classes weigh more, by the root of their rarity.
        share = torch.from_numpy(np.maximum(class_pixels, 1) / max(class_pixels.sum(), 1))
        self.class_weights = (
            (share.mean() / share).sqrt().float().to(device) if len(share) else None
        )

    def _start_from(self, initial: Path) -> None:
        network, description = load_weights(initial)
        if replace(description.network, prompts=False) != self.config.network:
            raise ModelError(
                initial,
                f"its network {description.network} is not the configuration's",
                "Take the configuration that the model was trained with.",
            )
        self.network.load_state_dict(network.state_dict(), strict=False)

    def resume(self) -> None:
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["identity"] != self._identity():
            raise UsageError(
                self.out,
                "it holds the checkpoint of a run with another seed or network",
                "Give another output folder.",
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimizer, its_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)
        self.step, self.seconds = state["step"], state["seconds"]
        self.best_score = state["best_score"]

    def go_on(
        self,
        crops: CropSource,
        validation: Sequence[Sample],
        progress: Callable[[TrainingProgress], None] | None,
    ) -> None:
        config, losses = self.config, []
        started = time.monotonic() - self.seconds
        final = crops.augmented(config.final_augmentation or config.augmentation)

        def batch_of(step: int) -> Batch:
            source = final if _falls(config, step + 1) < 1 else crops
            return source.batch(config.batch, config.seed, step)

        with ThreadPoolExecutor(max_workers=1) as pool:
            following = pool.submit(batch_of, self.step)
            while self.step < config.steps:
                batch = following.result()
                self.step += 1
                following = pool.submit(batch_of, self.step)
                losses.append(self._train_step(batch))
                last = self.step == config.steps
                if last or self.step % config.checkpoint_every == 0:
                    self.seconds = time.monotonic() - started
                    due = last or self.step % config.validate_every == 0
                    line = self._log(float(np.mean(losses)), validation if due else ())
                    losses = []
                    if progress is not None:
                        progress(line)

    def _train_step(self, batch: Batch) -> float:
        config = self.config
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _rate(config, self.step)
        self.network.zero_grad(set_to_none=True)
        shards = [_part(batch, i, len(self.replicas)) for i in range(len(self.replicas))]
        losses = list(self.pool.map(self._backward, self.replicas, shards))
        for replica in self.replicas[1:]:
            pairs = zip(self.network.parameters(), replica.parameters(), strict=True)
            for parameter, other in pairs:
                if parameter.grad is not None and other.grad is not None:
                    parameter.grad.add_(other.grad)
                other.grad = None
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._update_average()
        return sum(losses)

    def _backward(self, network: CompactNetwork, batch: Batch) -> float:
        """Add a part's share of the gradient to ``network``; its share of the loss."""
        config = self.config
        images, maps, types = _tensors(batch, self.device)
        network.train()
        kind = self.device.split(":")[0]
        mixed = config.bfloat16 and kind != "mps"
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=mixed):
            logits, class_logits = network(images)
        weights = torch.from_numpy(size_weights(batch.labels, config.size_balance))
        loss = map_loss(logits.float(), maps, weights.to(self.device))
        if class_logits is not None and self.class_weights is not None:
            kinds = class_loss(class_logits.float(), types, self.class_weights)
            loss = loss + config.class_weight * kinds
        loss = loss / len(self.replicas)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        new = self.network.state_dict()
        for name, tensor in self.average.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(new[name], 1 - decay)
            else:
                tensor.copy_(new[name])

    def _log(self, loss: float, validation: Sequence[Sample]) -> TrainingProgress:
        description = describe(self.config)
        report, score = None, None
        if validation:
            model = CompactModel(self.average, description, weights_hash="", device=self.device)
            report = evaluate_samples(model, validation)
            score = validation_score(report)
        best = score is not None and score > self.best_score
        if best and score is not None:
            self.best_score = score
            save_weights(self.out / BEST, self.average, description)
        save_weights(self.out / LAST, self.average, description)
        self._save_checkpoint()
        line = TrainingProgress(
            self.step, self.config.steps, loss, self.seconds, report, score, best
        )
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        return line

    def _save_checkpoint(self) -> None:
        temporary = self.out / (CHECKPOINT + ".part")
        torch.save(
            {
                "identity": self._identity(),
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
                "seconds": self.seconds,
                "best_score": self.best_score,
            },
            temporary,
        )
        temporary.replace(self.out / CHECKPOINT)

    def _identity(self) -> str:
        return json.dumps({"seed": self.config.seed, "network": asdict(self.config.network)})


def _optimizers(
    network: CompactNetwork, config: TrainingConfig, pool: ThreadPoolExecutor
) -> list[torch.optim.Optimizer]:
    """Muon for the kernels between hidden layers, AdamW for everything else."""
    hidden, edges, scales = [], [], []
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            # Scales and offsets are not decayed, as is usual with batch normalisation.
            scales.append(parameter)
        elif name.startswith("encoder.stem") or ".out." in name:
            edges.append(parameter)
        else:
            hidden.append(parameter)
    rest = [
        {"params": edges, "weight_decay": config.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return [
        Muon(
            hidden,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            spread=pool.map if config.shards > 1 else map,
        ),
        torch.optim.AdamW(rest, lr=config.learning_rate),
    ]


def _one_thread() -> None:
    """Let each shard's thread work alone."""
    torch.set_num_threads(1)


def _sharing_parameters(network: CompactNetwork) -> CompactNetwork:
    """A copy with gradients and statistics of its own, but the same parameters."""
    replica = copy.deepcopy(network)
    pairs = zip(replica.parameters(), network.parameters(), strict=True)
    for parameter, other in pairs:
        parameter.data = other.data
    return replica


def _part(batch: Batch, index: int, count: int) -> Batch:
    """Every ``count``-th crop of a batch, beginning with ``index``."""
    return Batch(
        **{field.name: getattr(batch, field.name)[index::count] for field in fields(batch)}
    )


def _rate(config: TrainingConfig, step: int) -> float:
    """Share of the learning rate at a step (1…steps): warm-up, constant, linear decay."""
    return min(1.0, step / max(1, config.warmup), _falls(config, step))


def _falls(config: TrainingConfig, step: int) -> float:
    """The linear decay's share: 1 until it begins."""
    return min(1.0, (config.steps + 1 - step) / max(1.0, config.decay * config.steps))


def _tensors(batch: Batch, device: str) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2)
    maps = torch.from_numpy(batch.maps).to(device).float() / 255.0
    types = torch.from_numpy(batch.types).to(device).long()
    return images.float() / 127.5 - 1.0, maps, types
