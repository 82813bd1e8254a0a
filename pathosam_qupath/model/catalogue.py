"""What there is to know about the models without loading one: for lists and for checks.

Nothing here imports torch or reaches for the network. Whether a file *is there* is told by
its presence alone, since hashing gigabytes takes seconds; :func:`verify_models` hashes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model import BUNDLED, bundled_file, bundled_weights
from pathosam_qupath.model.adopted import CARD, AdoptedModel, adopted_models
from pathosam_qupath.model.registry import (
    CLASSES,
    MODELS,
    MPP,
    PublishedModel,
    cache_directory,
    file_hash,
    find_model,
)

Presence = Literal["yes", "in part", "no"]
FileState = Literal["intact", "damaged", "not there"]


@dataclass(frozen=True)
class ModelFile:
    """A model's file on this machine.

    Attributes
    ----------
    url : where it is published; None for a file that comes with the package.
    hash : what it must have, as ``xxh128:…`` or ``sha256:…``.
    size : bytes; None where it is not there.
    """

    name: str
    url: str | None
    hash: str
    path: Path
    size: int | None


@dataclass(frozen=True)
class ModelSummary:
    """A model that can be named.

    Attributes
    ----------
    parameters : in millions, decoders included.
    mpp : µm/px at which it sees tissue.
    classes : of nuclei; empty for a model without.
    segments : whether it finds nuclei by itself; else it only answers prompts.
    cached : whether its files are there (not whether they are intact).
    """

    name: str
    description: str
    parameters: float
    mpp: float
    classes: tuple[str, ...]
    segments: bool
    cached: Presence
    licence: str
    source: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        """Bytes of its files that are there."""
        return sum(file.size or 0 for file in self.files)


@dataclass(frozen=True)
class FileCheck:
    """Whether a model's file is what its publisher gave away.

    Attributes
    ----------
    expected, found : hashes; ``found`` is None where the file is not there.
    remedy : what to do about it; None where it is intact.
    """

    model: str
    file: str
    path: Path
    state: FileState
    expected: str
    found: str | None
    remedy: str | None

    @property
    def exit_code(self) -> int:
        """The exit code that this stands for."""
        return 0 if self.state == "intact" else ModelError.exit_code


def list_models() -> tuple[ModelSummary, ...]:
    """Every model that has a name."""
    published = (_published(model) for model in MODELS.values())
    return (_bundled(), *published, *(_adopted(model) for model in adopted_models().values()))


def describe_model(name: str) -> ModelSummary:
    """What is known of one model.

    Raises
    ------
    UsageError : no model has this name.
    """
    summaries = {summary.name: summary for summary in list_models()}
    if name not in summaries:
        raise UsageError(
            f"model {name}", f"expected one of {', '.join(summaries)}", "Give one of these."
        )
    return summaries[name]


def verify_models(name: str | None = None) -> tuple[FileCheck, ...]:
    """Hash files and compare: all files of one model, or whatever is there of all models.

    Raises
    ------
    UsageError : no model has this name.
    """
    summaries = list_models() if name is None else (describe_model(name),)
    return tuple(
        _check(summary, file)
        for summary in summaries
        for file in summary.files
        if name is not None or file.size is not None
    )


def is_missing(name: str) -> bool:
    """Whether it is a published model of which a file is not there."""
    return name in MODELS and _published(find_model(name)).cached != "yes"


def _bundled() -> ModelSummary:
    path, sha256 = bundled_weights()
    settings = json.loads(bundled_file("training.json").read_text(encoding="utf-8"))
    return ModelSummary(
        name=BUNDLED,
        description=f"{settings['name']}: small, no download",
        parameters=_parameters(path),
        mpp=float(settings["mpp"]),
        classes=tuple(c["name"] for c in settings["classes"]),
        segments=True,
        cached="yes",
        licence="GPL-3.0-or-later (this package; its data are in the model card)",
        source=str(bundled_file("MODEL_CARD.md")),
        files=(ModelFile(path.name, None, f"sha256:{sha256}", path, path.stat().st_size),),
    )


def _adopted(model: AdoptedModel) -> ModelSummary:
    """A model that was fine-tuned on this machine, by its card."""
    card = model.card
    forced = ", adopted though it is worse or was not compared" if card.get("forced") else ""
    size = _size(model.path)
    return ModelSummary(
        name=model.name,
        description=f"fine-tuned from {card.get('parent')}{forced}",
        parameters=0.0 if size is None else _parameters(model.path),
        mpp=float(card["mpp"]),
        classes=tuple(card["classes"]),
        segments=True,
        cached="no" if size is None else "yes",
        licence="as its parent and the corrections",
        source=str(model.path.with_name(CARD)),
        files=(ModelFile(model.path.name, None, f"sha256:{model.sha256}", model.path, size),),
    )


def _parameters(path: Path) -> float:
    """Millions of numbers in a weight file."""
    if path.suffix != ".safetensors":
        # A checkpoint that `finetune` wrote: float32, and little else. Reading it takes torch.
        return round(path.stat().st_size / 4e6, 1)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return round(float(sum(math.prod(shape) for shape in shapes)) / 1e6, 1)


def _published(model: PublishedModel) -> ModelSummary:
    folder = cache_directory()
    files = tuple(
        ModelFile(file.name, file.url, file.hash, folder / file.name, _size(folder / file.name))
        for file in model.files
    )
    there = [file.size is not None for file in files]
    return ModelSummary(
        name=model.name,
        description=model.description,
        parameters=model.parameters,
        mpp=MPP,
        classes=CLASSES if model.semantic is not None else (),
        segments=model.decoder is not None,
        cached="yes" if all(there) else "in part" if any(there) else "no",
        licence=model.licence,
        source=model.source,
        files=files,
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _check(summary: ModelSummary, file: ModelFile) -> FileCheck:
    found = None if file.size is None else file_hash(file.path, file.hash.partition(":")[0])
    state: FileState = (
        "not there" if found is None else "intact" if found == file.hash else "damaged"
    )
    remedy = None
    if state != "intact":
        remedy = f"Run `pathosam-qupath models download {summary.name}`."
        if file.url is None:
            remedy = "Install the package again."
    return FileCheck(summary.name, file.name, file.path, state, file.hash, found, remedy)
