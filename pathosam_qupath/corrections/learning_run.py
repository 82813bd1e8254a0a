"""What every fine-tuning has in common, whatever network it is of.

The learning rate falls to a tenth. What is scored and kept is a running average of the weights,
or a state between the base and that average: so more of what the base can do elsewhere is left
(M. Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022).
Batches are functions of seed and step, so a run that was killed and is called again ends as if
it had not been. It ends early where nothing has been gained for a while. The state it begins with
is the first that counts, and of the others the last that is better than it and about as good as the
best: a few held-out regions cannot tell more, and at the low rates of the end weights have settled.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pathosam_qupath.corrections.dataset import Batch
from pathosam_qupath.errors import UsageError

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"

_LAYOUT = 2
"""Of a checkpoint; another number is another layout."""

AVERAGING = 0.98
"""Decay of the running average of the weights, per step."""


@dataclass(frozen=True)
class FinetuneProgress:
    """Where a run stands.

    Attributes
    ----------
    score : that of the state just validated; of the prompt decoder the mean IoU of its answers.
    best : whether that state is kept for now.
    seconds : since the stage began.
    stage : the network learns, or is compared with its base on the regression set (a step is
        an image), or the prompt decoder learns.
    """

    step: int
    steps: int
    loss: float | None
    score: float
    best: bool
    seconds: float
    stage: Literal["learning", "holding", "prompts"] = "learning"


@dataclass(frozen=True)
class Schedule:
    """How long a run goes on.

    Attributes
    ----------
    steps : at most.
    validate_every : steps between validations, where a killed run goes on.
    patience : validations without progress after which it ends.
    """

    steps: int
    validate_every: int
    patience: int


class LearningRun(ABC):
    """A fine-tuning, from its first step or its checkpoint to its end.

    Parameters
    ----------
    groups : what learns, with learning rates, as an optimizer takes them.
    out : folder of the run.
    identity : what a checkpoint must be of to be gone on with.
    way : share of the way from the weights that it begins with to the averaged ones, where what
        is scored and kept lies.
    """

    largest_gradient = 2.0
    about = 0.0
    """How much less than the best one's the score of a state is that is about as good."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        schedule: Schedule,
        out: Path,
        identity: str,
        device: str,
        way: float = 1.0,
    ) -> None:
        self.out, self.schedule, self.device = out, schedule, device
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        self.rates = [float(group["lr"]) for group in groups]
        self.learning = [p for group in groups for p in group["params"]]
        self.average = [p.detach().clone() for p in self.learning]
        self.way = way
        self.start = [p.detach().clone() for p in self.learning] if way < 1.0 else []
        self.step, self.seconds = 0, 0.0
        self.first = self.best = float("-inf")
        self.best_step, self.since_best = 0, 0
        self._identity = identity

    @abstractmethod
    def prepared(self, step: int) -> Batch | None:
        """The crops of a step; called ahead, in a thread beside."""

    @abstractmethod
    def learn(self, batch: Batch | None) -> float:
        """Add the gradients of the step at hand; its loss."""

    @abstractmethod
    def score(self) -> float:
        """How good the network is on what is held out for stopping."""

    @abstractmethod
    def keep(self) -> None:
        """Write the network down as the best one."""

    def resume(self) -> None:
        """Go to where an earlier call with the same arguments was cut off."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["identity"] != self._identity or state.get("layout") != _LAYOUT:
            raise UsageError(
                self.out,
                "it holds a fine-tuning of another model, other data or other options, or by "
                "another version of this program",
                "Choose another --name, or delete the folder to begin anew.",
            )
        with torch.no_grad():
            for parameter, kept in zip(self.learning, state["learning"], strict=True):
                parameter.copy_(kept)
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.first, self.best = state["first"], state["best"]
        self.best_step = state["best_step"]
        self.since_best = state["since_best"]

    def go_on(self, progress: Callable[[FinetuneProgress], None] | None) -> None:
        """Train to the end, or until nothing has been gained for a while."""
        started, schedule = time.monotonic() - self.seconds, self.schedule
        losses: list[float] = []
        if self.step == 0 and not (self.out / CHECKPOINT).exists():
            self._validate(None, started, progress)
        with ThreadPoolExecutor(max_workers=1) as pool:
            following = pool.submit(self.prepared, self.step + 1)
            while self.step < schedule.steps and self.since_best < schedule.patience:
                batch = following.result()
                self.step += 1
                following = pool.submit(self.prepared, self.step + 1)
                losses.append(self._train_step(batch))
                if self.step % schedule.validate_every == 0 or self.step == schedule.steps:
                    self._validate(sum(losses) / len(losses), started, progress)
                    losses = []

    def _train_step(self, batch: Batch | None) -> float:
        fall = 1 - 0.9 * (self.step - 1) / self.schedule.steps
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * fall
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.learn(batch)
        torch.nn.utils.clip_grad_norm_(self.learning, self.largest_gradient)
        self.optimizer.step()
        decay = min(AVERAGING, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, parameter in zip(self.average, self.learning, strict=True):
                kept.lerp_(parameter, 1 - decay)
        return loss

    def _validate(
        self,
        loss: float | None,
        started: float,
        progress: Callable[[FinetuneProgress], None] | None,
    ) -> None:
        with self._averaged():
            score = self.score()
            if self.step == 0:
                self.first = score
            kept = self.step == 0 or (score > self.first and score >= self.best - self.about)
            self.since_best = 0 if score > self.best else self.since_best + 1
            self.best = max(self.best, score)
            if kept:
                self.best_step = self.step
                self.keep()
        self.seconds = time.monotonic() - started
        self._save()
        line = FinetuneProgress(
            self.step, self.schedule.steps, loss, score, kept, round(self.seconds, 2)
        )
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        if progress is not None:
            progress(line)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """While the network has the weights that are scored and kept."""
        average = self.average
        if self.start:
            pairs = zip(self.start, average, strict=True)
            self.average = [torch.lerp(start, end, self.way) for start, end in pairs]
        self._exchange()
        try:
            yield
        finally:
            self._exchange()
            self.average = average

    def _exchange(self) -> None:
        for parameter, kept in zip(self.learning, self.average, strict=True):
            parameter.data, kept.data = kept.data, parameter.data

    def _save(self) -> None:
        temporary = self.out / (CHECKPOINT + ".part")
        state = {
            "identity": self._identity,
            "layout": _LAYOUT,
            "learning": [p.detach() for p in self.learning],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "first": self.first,
            "best": self.best,
            "best_step": self.best_step,
            "since_best": self.since_best,
        }
        torch.save(state, temporary)
        temporary.replace(self.out / CHECKPOINT)
