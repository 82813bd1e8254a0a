"""The configuration of a training run: one JSON file, one frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pathosam_qupath.corrections.augmentation import AugmentationConfig
from pathosam_qupath.corrections.samples import TYPES
from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.model.network import STRIDE, NetworkConfig


@dataclass(frozen=True)
class NucleusClass:
    """A class to learn: its name and colour in QuPath and the type ids that mean it."""

    name: str
    color: tuple[int, int, int]
    types: tuple[int, ...]


@dataclass(frozen=True)
class PromptTraining:
    """How the prompt decoder is trained, on the finished network.

    Attributes
    ----------
    steps : 0 trains no prompt decoder.
    crops, prompts : crops per step, and at most so many nuclei prompted in each.
    learning_rate : falls along a cosine after a short warm-up.
    """

    steps: int = 0
    crops: int = 4
    prompts: int = 8
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a training run depends on besides the images.

    Attributes
    ----------
    name : of the model.
    train, validation : sub-folders of a data folder that hold samples.
    hold_out : sub-folder to n: every n-th sample (by name) is kept from training and is
        where the classes are validated.
    mpp : micrometres per pixel that the model works at.
    source_weights : relative frequency of the sources (first words of `original_dataset`).
    assumed_diameter_um : nuclear diameter that gives images without a pixel size one.
    steps, batch, side : number of steps, crops per step, pixels of a crop's side.
    shards : parts of a batch that are computed at the same time, each normalised by its own
        statistics: on a processor, one per core with one thread each is fastest.
    warmup : steps in which the learning rate rises.
    decay : share of the steps, the last ones, in which it falls to zero.
    ema : decay of the running average of the weights, which is what is kept.
    checkpoint_every : steps between checkpoints and log lines.
    validate_every : steps between validations, a multiple of `checkpoint_every`.
    size_balance : how far nuclei count alike whatever their size, 0…1
        (:func:`~pathosam_qupath.corrections.losses.size_weights`).
    final_augmentation : of the steps in which the learning rate falls; None: the same as before.
    bfloat16 : train in mixed precision (about 1.7 times as fast where the processor has it).
    """

    name: str = "compact"
    seed: int = 0
    train: tuple[str, ...] = ("train",)
    validation: tuple[str, ...] = ("val",)
    hold_out: Mapping[str, int] = field(default_factory=dict)
    mpp: float = 0.4
    tile: int = 512
    halo: int = 64
    classes: tuple[NucleusClass, ...] = ()
    source_weights: Mapping[str, float] = field(default_factory=dict)
    assumed_diameter_um: float = 8.0
    steps: int = 4000
    batch: int = 8
    side: int = 256
    shards: int = 1
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup: int = 200
    decay: float = 0.3
    ema: float = 0.998
    class_weight: float = 0.5
    size_balance: float = 0.0
    checkpoint_every: int = 50
    validate_every: int = 500
    bfloat16: bool = True
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prompts: PromptTraining = field(default_factory=PromptTraining)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    final_augmentation: AugmentationConfig | None = None
    postprocessing: Postprocessing = field(default_factory=Postprocessing)


def read_training_config(path: Path) -> TrainingConfig:
    """Read a configuration; a key that is left out takes its default.

    Raises
    ------
    UsageError : when the file is missing, is no JSON, has an unknown key or a bad value.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(path, f"it cannot be read ({error})", "Give a JSON file.") from error
    except ValueError as error:
        raise UsageError(path, f"it is no JSON ({error})", "Correct the file.") from error
    try:
        config = _config(values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(
            path,
            f"it is no training configuration ({error})",
            "Compare it with the configuration of the bundled model, `training.json`.",
        ) from error
    if config.side % STRIDE or config.tile % STRIDE:
        raise UsageError(
            path, "`side` and `tile` do not fit the network", f"Take multiples of {STRIDE}."
        )
    unknown = {t for c in config.classes for t in c.types} - TYPES.keys()
    if unknown:
        raise UsageError(path, f"unknown type ids {sorted(unknown)}", f"Known are {TYPES}.")
    return config


def _config(values: dict[str, Any]) -> TrainingConfig:
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    parts = {
        "network": NetworkConfig,
        "prompts": PromptTraining,
        "augmentation": AugmentationConfig,
        "final_augmentation": AugmentationConfig,
        "postprocessing": Postprocessing,
    }
    for key, part in parts.items():
        if key in values:
            tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values[key].items()}
            values[key] = part(**tuples)
    values["classes"] = tuple(
        NucleusClass(c["name"], tuple(c["color"]), tuple(c["types"]))
        for c in values.get("classes", ())
    )
    config = TrainingConfig(**values)
    # The prompt decoder comes in when the network is finished.
    network = dataclasses.replace(config.network, classes=len(config.classes), prompts=False)
    return dataclasses.replace(config, network=network)
