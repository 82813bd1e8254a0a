"""Training of the prompt decoder on a finished network, which stays as it is.

Each step: crops go through the network, nuclei in them are prompted as a person might
(:mod:`pathosam_qupath.corrections.simulated_prompts`), and most of the answers are looked at
once more, as the model itself does, or with a correcting click as a person might give. A phase
of minutes, so that it can be repeated after the network was trained on. Like the training of
the network it goes on from its own checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pathosam_qupath.corrections.dataset import Batch, CropSource
from pathosam_qupath.corrections.simulated_prompts import Question, corrected, questions
from pathosam_qupath.corrections.training_config import PromptTraining
from pathosam_qupath.model.compact_prompts import (
    CompactEmbedding,
    Look,
    Window,
    around,
    drawn,
    on_tile,
    window_pixels,
)
from pathosam_qupath.model.network import CompactNetwork, fused
from pathosam_qupath.model.prompt_decoder import PromptDecoder, window

#: The decay of the running average of the decoder's weights, which is what is kept.
_EMA = 0.99

#: Share of the questions that are asked once only.
_NOT_AGAIN = 0.2

#: Steps between checkpoints.
_KEEP_EVERY = 100


def train_prompts(
    network: CompactNetwork,
    crops: CropSource,
    config: PromptTraining,
    seed: int,
    *,
    device: str = "cpu",
    progress: Callable[[int, float, float], None] | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train ``network.prompts`` in place; everything else of the network stays.

    Parameters
    ----------
    crops : gives batches by seed and step.
    progress : called every 25 steps with the step, and the mean loss and IoU since.
    checkpoint : file that the training is kept in, and goes on from when it is there and of
        the same network, configuration and seed.
    """
    decoder = network.prompts
    if decoder is None:
        raise ValueError("the network has no prompt decoder")
    frozen = fused(network).to(device).to(memory_format=torch.channels_last)
    decoder = decoder.to(device).train()
    average = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=config.learning_rate, weight_decay=0.01)
    identity = _identity(network, config, seed) if checkpoint else ""
    first = _resume(checkpoint, identity, decoder, average, optimizer) if checkpoint else 0
    recent: list[tuple[float, float]] = []

    def prepared(step: int) -> _Task:
        batch = crops.batch(config.crops, seed, step)
        rng = np.random.default_rng([seed, step, 1])
        asked = questions(rng, batch.labels, config.prompts)
        return _Task(rng, asked, _embedded(frozen, batch, device) if len(asked) > 1 else [])

    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(prepared, first)
        for step in range(first, config.steps):
            if checkpoint and step > first and step % _KEEP_EVERY == 0:
                _keep(checkpoint, identity, step, decoder, average, optimizer)
            task = following.result()
            following = pool.submit(prepared, step + 1)
            rng, asked, embeddings = task.rng, task.asked, task.embeddings
            if not embeddings:
                continue
            rate = min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * step / config.steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            loss, logits, places, overlap = _answered(decoder, embeddings, asked, rng)
            _step(decoder, optimizer, loss)
            recent.append((float(loss.detach()), overlap))
            again = _again(rng, asked, logits, places)
            if len(again) > 1:
                loss, *_ = _answered(decoder, embeddings, again, rng)
                _step(decoder, optimizer, loss)
            _update(average, decoder, min(_EMA, (1 + step) / (10 + step)))
            if progress is not None and (step + 1) % 25 == 0:
                mean_loss, mean_overlap = np.mean(recent, axis=0)
                progress(step + 1, float(mean_loss), float(mean_overlap))
                recent = []
    decoder.load_state_dict(average)
    decoder.eval()


@dataclass(frozen=True, eq=False)
class _Task:
    """What a step asks, made beside the step before it; no embeddings where there is too little."""

    rng: np.random.Generator
    asked: list[Question]
    embeddings: list[CompactEmbedding]


def _identity(network: CompactNetwork, config: PromptTraining, seed: int) -> str:
    """What a checkpoint must be of: the network that stays as it is, configuration and seed."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not name.startswith("prompts."):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return json.dumps({"network": digest.hexdigest(), "seed": seed, **asdict(config)})


def _keep(
    path: Path,
    identity: str,
    step: int,
    decoder: PromptDecoder,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    temporary = path.with_name(path.name + ".part")
    state = {
        "identity": identity,
        "step": step,
        "decoder": decoder.state_dict(),
        "average": average,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, temporary)
    temporary.replace(path)


def _resume(
    path: Path,
    identity: str,
    decoder: PromptDecoder,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Load a checkpoint of this training; the step to go on with, 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=decoder.out.weight.device, weights_only=True)
    if state["identity"] != identity:
        return 0
    decoder.load_state_dict(state["decoder"])
    optimizer.load_state_dict(state["optimizer"])
    for name, tensor in average.items():
        tensor.copy_(state["average"][name])
    return int(state["step"])


def _embedded(network: CompactNetwork, batch: Batch, device: str) -> list[CompactEmbedding]:
    """The embedding of each crop, as the model will give it."""
    images = torch.from_numpy(batch.images).to(device)
    kind = device.split(":")[0]
    with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=kind != "mps"):
        outputs = network.outputs((images.float() / 127.5 - 1.0).permute(0, 3, 1, 2))
    maps = torch.sigmoid(outputs.logits.float())
    none = torch.zeros(0, 1, 1)
    return [
        CompactEmbedding(
            images[i].permute(2, 0, 1), maps[i], none, outputs.middle[i], outputs.coarse[i]
        )
        for i in range(len(images))
    ]


def _answered(
    decoder: PromptDecoder,
    embeddings: Sequence[CompactEmbedding],
    asked: Sequence[Question],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, list[Window], float]:
    """Loss, mask logits, windows and mean IoU of the answers."""
    parts: list[tuple[Tensor, ...]] = []
    places = []
    for question in asked:
        # Some are seen from farther away, as large nuclei will be.
        place = around(question.prompt, 2 if rng.random() < 0.1 else 1)
        embedding = embeddings[question.crop]
        target = window(torch.from_numpy(question.target)[None], place.origin, 1, place.scale)
        parts.append(
            (
                window_pixels(embedding, place.origin, place.scale),
                window(embedding.middle, place.origin, 4, place.scale),
                window(embedding.coarse, place.origin, 8, place.scale),
                drawn(question.prompt, place),
                target[0],
            )
        )
        places.append(place)
    weight = decoder.out.weight
    pixels, middle, coarse, images, target = (
        torch.stack(part).to(weight.device) for part in zip(*parts, strict=True)
    )
    channels_last = torch.channels_last
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.device.type != "mps"):
        logits, quality = decoder(
            pixels.contiguous(memory_format=channels_last),
            middle.contiguous(memory_format=channels_last),
            coarse.contiguous(memory_format=channels_last),
            images.contiguous(memory_format=channels_last),
        )
    logits, quality = logits.float(), quality.float()
    loss, overlap = _loss(logits, quality, target)
    return loss, logits.detach(), places, overlap


def _loss(logits: Tensor, quality: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy near the object, Dice, and the error of the expected IoU."""
    near = functional.max_pool2d(target[:, None], 33, 1, 16)[:, 0]
    weight = 0.1 + 0.9 * near
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (entropy * weight).sum((1, 2)) / weight.sum((1, 2))
    shares = torch.sigmoid(logits)
    common = (shares * target).sum((1, 2))
    dice = 1 - (2 * common + 1) / (shares.sum((1, 2)) + target.sum((1, 2)) + 1)
    with torch.no_grad():
        answer, truth = logits > 0, target > 0.5
        union = (answer | truth).sum((1, 2)).clamp(min=1)
        overlap = (answer & truth).sum((1, 2)) / union
    expected = (torch.sigmoid(quality) - overlap).square()
    return (entropy + dice + expected).mean(), float(overlap.mean())


def _again(
    rng: np.random.Generator, asked: Sequence[Question], logits: Tensor, places: Sequence[Window]
) -> list[Question]:
    """Most questions once more with their answers, half of these with a correcting click."""
    again = []
    for question, answer, place in zip(asked, logits, places, strict=True):
        chance = rng.random()
        if chance < _NOT_AGAIN:
            continue
        mask: NDArray[np.bool_] = on_tile(
            [Look(answer.cpu().numpy(), place, 0.0)], question.target.shape
        )
        if not mask.any():
            continue
        if chance < (1 + _NOT_AGAIN) / 2:
            second: Question | None = replace(question, prompt=replace(question.prompt, mask=mask))
        else:
            second = corrected(rng, question, mask)
        if second is not None:
            again.append(second)
    return again


def _step(decoder: PromptDecoder, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 2.0)
    optimizer.step()


@torch.no_grad()
def _update(average: dict[str, Tensor], decoder: PromptDecoder, decay: float) -> None:
    for name, tensor in decoder.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)
