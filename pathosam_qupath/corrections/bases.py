"""What can be fine-tuned: compact models, and SAMs with a decoder of nuclei."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pathosam_qupath.model.adopted import adopted_models, compact_weights
from pathosam_qupath.model.registry import MODELS, fetch_model


@dataclass(frozen=True)
class Base:
    """The files of a model that a fine-tuning starts from.

    Attributes
    ----------
    decoder : of a SAM's instances, where the checkpoint does not hold it.
    compact : whether it is a compact model, else it is a SAM.
    """

    weights: Path
    decoder: Path | None = None
    compact: bool = True


def find_base(name_or_path: str | Path) -> Base:
    """The model that a name or path means; a published one is downloaded if need be.

    Raises
    ------
    ModelError : it means no model that can be fine-tuned, or it cannot be downloaded.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in MODELS and MODELS[name].decoder is not None:
        files = fetch_model(name, semantic=False)
        return Base(files.sam, files.decoder, compact=False)
    adopted = None if name in MODELS else adopted_models().get(name)
    if adopted is not None and adopted.path.suffix != ".safetensors":
        return Base(adopted.path, compact=False)
    if adopted is None and path.is_file() and path.suffix != ".safetensors":
        return Base(path, compact=False)
    return Base(compact_weights(name_or_path)[0])
