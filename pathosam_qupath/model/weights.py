"""The project's own weight files: safetensors with a JSON description in their header.

The description (resolution, tiling, classes, thresholds, the network's shape) travels with
the weights. Its metadata key marks the file as ours; tensors are stored as float16, which
halves the file and changes maps by less than a grey level, and are used as float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.model.network import STRIDE, CompactNetwork, NetworkConfig

#: Key of the description in the header; the number is the version of its form.
_METADATA_KEY = "pathosam-qupath.compact"
_FORM = 2


@dataclass(frozen=True)
class CompactDescription:
    """What a weight file says about itself.

    Attributes
    ----------
    mpp : micrometres per pixel of tiles and maps.
    tile, halo : see :class:`~pathosam_qupath.model.interface.ModelInfo`.
    classes, colors : names and (red, green, blue) of the class channels.
    """

    name: str
    mpp: float
    tile: int = 512
    halo: int = 64
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    network: NetworkConfig = field(default_factory=NetworkConfig)
    postprocessing: Postprocessing = field(default_factory=Postprocessing)


def save_weights(path: Path, network: CompactNetwork, description: CompactDescription) -> None:
    """Write the network's weights and description to ``path`` (replaced atomically)."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    header = json.dumps({"form": _FORM, **asdict(description)}, sort_keys=True)
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, temporary, metadata={_METADATA_KEY: header})
    temporary.replace(path)


def load_weights(path: Path) -> tuple[CompactNetwork, CompactDescription]:
    """Read a weight file back into a network (float32, evaluation mode).

    Raises
    ------
    ModelError : when the file is missing, truncated, not ours, newer than this version, or
        its tensors do not fit its description.
    """
    if not path.is_file():
        raise ModelError(path, "the file does not exist", "Give the path of a weight file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            path,
            f"it is not a complete safetensors file ({error})",
            "Copy or download the file again.",
        ) from error
    description = _description(path, metadata)
    network = CompactNetwork(description.network)
    _load_tensors(path, network, tensors)
    return network.eval(), description


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    import pooch

    return str(pooch.file_hash(str(path), alg="sha256"))


def _description(path: Path, metadata: Mapping[str, str]) -> CompactDescription:
    if _METADATA_KEY not in metadata:
        raise ModelError(
            path,
            "it holds weights of another program: the description of a compact model is missing",
            "Give a file that `pathosam-qupath train` wrote, or `bundled`.",
        )
    try:
        values: dict[str, Any] = json.loads(metadata[_METADATA_KEY])
        if values.pop("form") != _FORM:
            raise ModelError(
                path,
                "it was written by another version of this package",
                "Update the package, or train the model again.",
            )
        shape: dict[str, Any] = values["network"]
        values["network"] = NetworkConfig(
            tuple(shape["widths"]),
            tuple(shape["depths"]),
            int(shape["classes"]),
            bool(shape.get("prompts", False)),
        )
        values["postprocessing"] = Postprocessing(**values["postprocessing"])
        values["classes"] = tuple(values["classes"])
        values["colors"] = tuple(tuple(color) for color in values["colors"])
        description = CompactDescription(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            path,
            f"its description cannot be read ({error!r})",
            "Train the model again, or take the file from its source again.",
        ) from error
    if description.tile % STRIDE or not 0 < 2 * description.halo < description.tile:
        raise ModelError(
            path,
            f"tile {description.tile} and halo {description.halo} do not fit the network",
            f"A tile is a multiple of {STRIDE} and larger than two halos.",
        )
    return description


def _load_tensors(path: Path, network: CompactNetwork, tensors: Mapping[str, Tensor]) -> None:
    expected = network.state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys()) or [
        name for name, tensor in tensors.items() if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise ModelError(
            path,
            f"{len(wrong)} tensors do not fit the network it describes, {wrong[0]} among them",
            "Train the model again, or take the file from its source again.",
        )
    state = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise ModelError(path, "some weights are not numbers", "Train the model again.")
    network.load_state_dict(state)
