"""What the segmentation asks of a model, whichever network is behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Postprocessing:
    """Thresholds and smoothing of the seeded watershed (PathoSAM's defaults).

    ``foreground_smoothing`` and ``distance_smoothing`` are Gaussian sigmas in pixels
    of the model's resolution; ``min_size`` is an area in such pixels.
    """

    foreground_threshold: float = 0.5
    center_distance_threshold: float = 0.5
    boundary_distance_threshold: float = 0.5
    foreground_smoothing: float = 1.0
    distance_smoothing: float = 1.6
    min_size: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """What a model is: its name, weights, resolution, tiling and classes.

    Attributes
    ----------
    mpp : micrometres per pixel at which the model sees tissue.
    tile : side of a square input tile in pixels, halo included.
    halo : pixels of each side of a tile whose maps are not used.
    classes : names of nucleus classes, in the order of the class channels.
    colors : (red, green, blue) per class.
    precision : in which the network's products are computed: float32, bfloat16, float16.
    stride : tiles of other sizes are accepted when their sides are multiples of this;
        0 when only square tiles of ``tile`` pixels are.
    """

    name: str
    weights_hash: str
    mpp: float
    tile: int
    halo: int
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    precision: str = "float32"
    stride: int = 0
    postprocessing: Postprocessing = field(default_factory=Postprocessing)


class ModelDescription(Protocol):
    """What is to be known of a model, wherever it computes."""

    @property
    def info(self) -> ModelInfo:
        """Its resolution, classes, weights."""

    @property
    def device(self) -> str:
        """Where it computes: cpu, cuda, cuda:1, mps."""


class NucleusModel(Protocol):
    """A network that turns tiles into maps. Thread-safe; a tile's maps never depend on
    the other tiles of the batch.
    """

    info: ModelInfo
    device: str

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps of a batch of tiles.

        Parameters
        ----------
        tiles : (n, tile, tile, 3) uint8 RGB at ``info.mpp``.

        Returns
        -------
        maps : (n, 3 + len(info.classes), tile, tile) float32 in 0…1. Channel 0 is
            foreground; 1 centre distance and 2 boundary distance (0 at the centre /
            the innermost point, 1 at the boundary and in the background); the others are class
            probabilities given nucleus (they sum to 1 at each pixel).
        """
