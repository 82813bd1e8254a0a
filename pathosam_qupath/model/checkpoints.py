"""Checkpoint files in the layouts that SAM, micro-sam and PathoSAM publish.

========== =======================================================================
layout     content
========== =======================================================================
sam        a SAM's weights as such; its decoder is a file of its own
decoder    a UNETR decoder's weights as such
trainer    micro-sam's trainer: ``model_state`` with the prefix ``sam.``,
           ``decoder_state``, and the trainer's own objects
exported   ``model_state`` and ``decoder_state``
========== =======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.tensor_pickle import load_tensors

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["sam", "decoder", "trainer", "exported"]

SAM_PREFIX = "sam."


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights in a file.

    Attributes
    ----------
    path : the file.
    layout : how it is arranged.
    sam : SAM's weights by their published keys; None where the file has none.
    decoder : the UNETR decoder's; None where the file has none.
    """

    path: Path
    layout: Layout
    sam: dict[str, Tensor] | None
    decoder: dict[str, Tensor] | None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any layout; only its tensors are loaded.

    Raises
    ------
    ModelError
        If the file is missing, damaged, would run code, or holds something else.

    Examples
    --------
    >>> read_checkpoint("vit_b_histopathology").layout  # doctest: +SKIP
    'sam'
    """
    path = Path(path)
    content = load_tensors(path)
    if not isinstance(content, Mapping):
        raise _foreign(path, f"an object of type {type(content).__name__}")
    if "model_state" in content:
        return _from_states(path, content)
    if "decoder_state" in content:
        return Checkpoint(path, "decoder", None, _tensors(path, content["decoder_state"]))
    state = _tensors(path, content)
    if any(key.startswith("image_encoder.") for key in state):
        return Checkpoint(path, "sam", state, None)
    if any(key.startswith(SAM_PREFIX + "image_encoder.") for key in state):
        return Checkpoint(path, "sam", _without_prefix(state), None)
    if "out_conv.weight" in state:
        _refuse_unetr(path, state)
        return Checkpoint(path, "decoder", None, state)
    names = ", ".join(sorted(state)[:3])
    raise _foreign(path, f"{len(state)} tensors of another network ({names}, …)")


def _from_states(path: Path, content: Mapping[Any, Any]) -> Checkpoint:
    state = _tensors(path, content["model_state"])
    _refuse_unetr(path, state)
    prefixed = any(key.startswith(SAM_PREFIX) for key in state)
    decoder = content.get("decoder_state")
    if not any("image_encoder." in key for key in state):
        names = ", ".join(sorted(state)[:3])
        raise _foreign(path, f"a model_state of another network ({names}, …)")
    return Checkpoint(
        path,
        "trainer" if prefixed or set(content) - {"model_state", "decoder_state"} else "exported",
        _without_prefix(state),
        None if decoder is None else _tensors(path, decoder),
    )


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(SAM_PREFIX): value for key, value in state.items()}


def _tensors(path: Path, state: object) -> dict[str, Tensor]:
    """The tensors of a state dictionary, by name."""
    import torch

    if not isinstance(state, Mapping):
        raise _foreign(path, f"a state of type {type(state).__name__}")
    tensors = {
        key: value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        found = ", ".join(str(key) for key in list(state)[:4]) or "nothing"
        raise _foreign(path, f"no tensors ({found})")
    return tensors


def _refuse_unetr(path: Path, state: Mapping[str, Tensor]) -> None:
    if any(key.startswith("encoder.") for key in state) and "out_conv.weight" in state:
        raise ModelError(
            path,
            "expected a SAM or a decoder, found a UNETR of training: its encoder is inside, "
            "SAM's prompt encoder and mask decoder are not",
            "Export it with micro-sam (export_instance_segmentation_model) first.",
        )


def _foreign(path: Path, found: str) -> ModelError:
    return ModelError(
        path,
        "expected SAM's weights (image_encoder.…), a UNETR decoder's (out_conv.…), or a "
        f"checkpoint with model_state; found {found}",
        "Give a checkpoint of SAM, micro-sam or PathoSAM.",
    )
