"""The model that the server keeps loaded, and whose turn it is to use the device."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.errors import UsageError
from pathosam_qupath.server.problems import ProblemError, as_problem

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import ModelInfo, NucleusModel

log = logging.getLogger(__name__)

LoadState = Literal["loading", "ready", "failed"]

_LONGEST_PAUSE = 2.0
"""Seconds that a tile of a job waits for prompts, so that a flood of them does not stop it."""


class CancelledError(Exception):
    """The job was cancelled; its work ends here."""


class Device:
    """Whose turn it is: prompts go before the next tile of a job."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._prompts = 0
        self._one_prompt = threading.Lock()

    @contextmanager
    def prompting(self) -> Iterator[None]:
        """Hold jobs up at their next tile; one prompt at a time."""
        with self._changed:
            self._prompts += 1
        try:
            with self._one_prompt:
                yield
        finally:
            with self._changed:
                self._prompts -= 1
                self._changed.notify_all()

    def let_prompts_pass(self, cancelled: threading.Event) -> None:
        """Wait while prompts are being answered, for a while."""
        until = time.monotonic() + _LONGEST_PAUSE
        with self._changed:
            while self._prompts and not cancelled.is_set():
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, 0.1))


class PacedModel:
    """A model as a job uses it: ends between two tiles when cancelled, lets prompts pass."""

    def __init__(self, model: NucleusModel, device: Device, cancelled: threading.Event) -> None:
        self.info: ModelInfo = model.info
        self.device: str = model.device
        self._model, self._turns, self._cancelled = model, device, cancelled

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps of a batch of tiles.

        Raises
        ------
        CancelledError : instead, once the job is cancelled.
        """
        self.let_others_pass()
        return self._model.predict(tiles)

    def let_others_pass(self) -> None:
        """Wait for prompts, and end a cancelled job.

        Raises
        ------
        CancelledError : the job is cancelled.
        """
        self._turns.let_prompts_pass(self._cancelled)
        if self._cancelled.is_set():
            raise CancelledError


class WarmModel:
    """One loaded model; loading goes on in the background.

    Parameters
    ----------
    device : as for :func:`pathosam_qupath.model.load_model`.
    started_with : the model's name, or a weight file that the server's owner chose.
    changed : called when the state changes, in any thread.
    """

    def __init__(
        self, device: str, started_with: str, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.name = started_with
        self.started_with = started_with
        self.state: LoadState = "loading"
        self.error: ProblemError | None = None
        self.device_name, self._changed = device, changed
        self._model: NucleusModel | None = None
        self._turn = threading.Condition()
        self._loads = 0

    def allowed(self) -> tuple[str, ...]:
        """Names that clients may choose; nothing else is ever loaded for them."""
        from pathosam_qupath.model import segmenting_models

        return tuple(dict.fromkeys((self.started_with, *segmenting_models())))

    def load(self, name: str) -> threading.Thread:
        """Begin to load a model; the one that was loaded stays in use by those that have it.

        Raises
        ------
        ProblemError : it is not one of the allowed names.
        """
        if name not in self.allowed():
            raise ProblemError(
                404,
                "unknown_model",
                f"model {name!r}",
                "no model has this name",
                f"Give one of {', '.join(self.allowed())}.",
            )
        with self._turn:
            self._loads += 1
            self.name, self.state, self.error, self._model = name, "loading", None, None
            turn = self._loads
        self._changed()
        thread = threading.Thread(target=self._load, args=(name, turn), name="load", daemon=True)
        thread.start()
        return thread

    def get(self, *, seconds: float, cancelled: threading.Event | None = None) -> NucleusModel:
        """The model, waited for.

        Raises
        ------
        ProblemError : it could not be loaded, or not within ``seconds``.
        CancelledError : ``cancelled`` was set first.
        """
        until = time.monotonic() + seconds
        with self._turn:
            while self.state == "loading":
                if cancelled is not None and cancelled.is_set():
                    raise CancelledError
                left = until - time.monotonic()
                if left <= 0:
                    raise ProblemError(
                        409,
                        "not_ready",
                        f"model {self.name!r}",
                        "it is still being loaded",
                        "Wait until /v1/health says ready.",
                    )
                self._turn.wait(min(left, 0.2))
            self.check()
            assert self._model is not None
            return self._model

    def check(self) -> None:
        """Raise where the model could not be loaded.

        Raises
        ------
        ProblemError : why, and what to do.
        """
        if self.error is not None:
            problem = self.error
            raise ProblemError(409, "model_failed", problem.subject, problem.cause, problem.remedy)

    @property
    def loaded(self) -> NucleusModel | None:
        """The model where it is ready."""
        return self._model

    def free_memory(self) -> None:
        """Give back what the device's allocator keeps."""
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, name: str, turn: int) -> None:
        model, error = None, None
        try:
            model = _loaded(name, self.device_name)
        except Exception as failure:
            error = as_problem(failure)
            if error.code == "unexpected":
                log.exception("model %s could not be loaded", name)
        with self._turn:
            if turn == self._loads:
                self._model, self.error = model, error
                self.state = "ready" if error is None else "failed"
            self._turn.notify_all()
        self._changed()


def _loaded(name: str, device: str) -> NucleusModel:
    """A model that has seen one tile, since the first costs more than those that follow."""
    from pathosam_qupath.model import load_model

    model = load_model(name, device)
    side = model.info.tile
    if side <= 0:
        raise UsageError(name, f"its tile of {side} pixels is none", "Take another model.")
    model.predict(np.full((1, side, side, 3), 200, np.uint8))
    return model
