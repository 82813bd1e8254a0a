"""The model that the server keeps loaded."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.interrupting import watch_layers
from pathosam_qupath.server.job import CancelledError
from pathosam_qupath.server.problems import ProblemError, as_problem

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import NucleusModel

log = logging.getLogger(__name__)

LoadState = Literal["loading", "ready", "failed"]


class WarmModel:
    """One loaded model; loading goes on in the background.

    Parameters
    ----------
    device : as for :func:`pathosam_qupath.model.load_model`.
    started_with : the model's name, or a weight file that the server's owner chose.

    Attributes
    ----------
    changed : called when the state changes, in any thread.
    """

    def __init__(self, device: str, started_with: str) -> None:
        self.name = started_with
        self.started_with = started_with
        self.state: LoadState = "loading"
        self.error: ProblemError | None = None
        self.device_name = device
        self.changed: Callable[[], None] = lambda: None
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
        self.changed()
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
        self.changed()
        if error is None:
            _import_the_rest()


def _loaded(name: str, device: str) -> NucleusModel:
    """A model that has worked once, since the first time costs more than those that follow."""
    import numpy as np

    from pathosam_qupath.model import load_model

    model = load_model(name, device)
    if model.info.tile <= 0:
        raise UsageError(
            name, f"its tile of {model.info.tile} pixels is none", "Take another model."
        )
    # On a processor a few pixels do, and a network that takes none but whole tiles is as slow
    # the second time. A graphics card prepares itself for the shape of a tile.
    side = model.info.tile if model.device != "cpu" else 2 * model.info.stride
    if side:
        model.predict(np.full((1, side, side, 3), 200, np.uint8))
    watch_layers()
    return model


def _import_the_rest() -> None:
    """Import what the first job and the first prompt need, so that they need not."""
    # ruff: noqa: F401
    import geopandas
    import tiffslide

    import pathosam_qupath.picture
    import pathosam_qupath.qupath.geojson
    import pathosam_qupath.segmentation.pipeline
    import pathosam_qupath.segmentation.prompting
