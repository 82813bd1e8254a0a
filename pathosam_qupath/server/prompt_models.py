"""Promptable models as the server uses them: watched while they work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pathosam_qupath.model.prompts import PromptableModel
from pathosam_qupath.server.pacing import PacedModel

if TYPE_CHECKING:
    import threading

    import numpy as np
    from numpy.typing import NDArray

    from pathosam_qupath.model.interface import ModelInfo, NucleusModel
    from pathosam_qupath.model.prompts import Arrays, Prompt, PromptedMask, TileEmbedding
    from pathosam_qupath.server.pacing import Device


class WatchedModel:
    """A promptable model that counts how often its encoder works.

    Attributes
    ----------
    passes : so many times so far.
    """

    def __init__(self, model: PromptableModel[TileEmbedding]) -> None:
        self.info: ModelInfo = model.info
        self.passes = 0
        self._promptable = model

    def embed(self, tile: NDArray[np.uint8], /) -> TileEmbedding:
        """See :class:`pathosam_qupath.model.prompts.PromptableModel`, as for the others."""
        self.passes += 1
        return self._promptable.embed(tile)

    def embedding_from_arrays(self, arrays: Arrays, /) -> TileEmbedding:
        """An embedding from arrays."""
        return self._promptable.embedding_from_arrays(arrays)

    def prompt(self, embedding: TileEmbedding, prompts: Sequence[Prompt], /) -> list[PromptedMask]:
        """The object of each prompt."""
        return self._promptable.prompt(embedding, prompts)

    def embedded_maps(self, embedding: TileEmbedding, /) -> NDArray[np.float32]:
        """Maps of a tile."""
        return self._promptable.embedded_maps(embedding)

    def embedded_classes(self, embedding: TileEmbedding, /) -> NDArray[np.float32] | None:
        """Class probabilities of a tile."""
        return self._promptable.embedded_classes(embedding)


class PacedPromptable(WatchedModel):
    """A promptable model as a job uses it, see ``pacing.PacedModel``."""

    def __init__(
        self,
        model: NucleusModel,
        promptable: PromptableModel[TileEmbedding],
        device: Device,
        cancelled: threading.Event,
    ) -> None:
        super().__init__(promptable)
        self._paced = PacedModel(model, device, cancelled)
        self.device = model.device

    def embed(self, tile: NDArray[np.uint8], /) -> TileEmbedding:
        """What prompts need of a tile."""
        with self._paced.turn():
            return super().embed(tile)

    def prompt(self, embedding: TileEmbedding, prompts: Sequence[Prompt], /) -> list[PromptedMask]:
        """The object of each prompt."""
        with self._paced.turn():
            return super().prompt(embedding, prompts)

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps of a batch of tiles."""
        return self._paced.predict(tiles)


def paced(model: NucleusModel, device: Device, cancelled: threading.Event) -> NucleusModel:
    """A model for a job: ends soon when cancelled, lets prompts pass."""
    if isinstance(model, PromptableModel):
        return PacedPromptable(model, model, device, cancelled)
    return PacedModel(model, device, cancelled)


def answers_prompts(model: object) -> bool:
    """Whether a model can be prompted."""
    return isinstance(model, PromptableModel)


def modes_of(model: object) -> tuple[str, ...]:
    """In which ways a model segments a region."""
    return ("ais", "apg") if answers_prompts(model) else ("ais",)
