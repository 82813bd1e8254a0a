"""Whose turn it is to use the device: a job gives way to prompts and ends when cancelled.

Between two tiles a job waits for prompts. A cancelled one must let go within a second, and a
large model on a processor takes longer than that over one tile. So cancellation is looked for
before every layer of the network too (``model.interrupting``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pathosam_qupath.model.interrupting import interruptible
from pathosam_qupath.server.job import CancelledError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pathosam_qupath.model.interface import ModelInfo, NucleusModel

_LONGEST_PAUSE = 2.0
"""Seconds that a tile of a job waits for prompts, so that a flood of them does not stop it."""


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
    """A model as a job uses it: ends soon when cancelled, lets prompts pass."""

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
        with self.turn():
            return self._model.predict(tiles)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Use the network meanwhile: after the prompts, and until the job is cancelled.

        Raises
        ------
        CancelledError : the job is cancelled.
        """
        self._turns.let_prompts_pass(self._cancelled)
        self.check()
        with interruptible(self.check):
            yield

    def check(self) -> None:
        """End a cancelled job.

        Raises
        ------
        CancelledError : the job is cancelled.
        """
        if self._cancelled.is_set():
            raise CancelledError
