"""Models that were fine-tuned on this machine and may be chosen by name.

Each has a folder of its own, ``models/<name>`` in the user's folder (``$PATHOSAM_HOME``, else
``~/.pathosam-qupath``), with the weights and a card: what it was made from, and how it
compared with that. The folder appears as a whole or not at all. Weights of the compact network
are ``model.safetensors``, a checkpoint of PathoSAM is ``<name>.pt``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathosam_qupath.errors import ModelError, UsageError

WEIGHTS, CARD = "model.safetensors", "card.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class AdoptedModel:
    """A fine-tuned model.

    Attributes
    ----------
    card : name, parent, hashes of weights and data, figures, whether it was forced.
    """

    name: str
    path: Path
    card: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """What its weights must have."""
        return str(self.card["sha256"])


def user_folder() -> Path:
    """``$PATHOSAM_HOME``, or ``~/.pathosam-qupath``."""
    given = os.environ.get("PATHOSAM_HOME")
    return Path(given) if given else Path.home() / ".pathosam-qupath"


def adopted_models() -> dict[str, AdoptedModel]:
    """The fine-tuned models by name; folders that are none are passed over."""
    folder = user_folder() / "models"
    if not folder.is_dir():
        return {}
    found = {}
    for card in sorted(folder.glob(f"*/{CARD}")):
        if _NAME.fullmatch(card.parent.name):
            name = card.parent.name
            checkpoint = card.with_name(f"{name}.pt")
            weights = checkpoint if checkpoint.is_file() else card.with_name(WEIGHTS)
            found[name] = AdoptedModel(name, weights, _read_card(card))
    return found


def adopt(name: str, weights: Path, card: Mapping[str, Any]) -> AdoptedModel:
    """Make a model selectable by name; one that is called so gives way.

    Parameters
    ----------
    weights : safetensors of the compact network, or a checkpoint of PathoSAM.
    card : what is to be known of it; must have its ``sha256``, ``mpp`` and ``classes``.

    Raises
    ------
    UsageError : the name cannot be used, see :func:`check_name`.
    """
    check_name(name)
    folder = user_folder() / "models" / name
    fresh = folder.with_name(f".{name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    file = WEIGHTS if weights.suffix == ".safetensors" else f"{name}.pt"
    shutil.copyfile(weights, fresh / file)
    text = json.dumps(dict(card), indent=2, ensure_ascii=False)
    (fresh / CARD).write_text(text, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
    return AdoptedModel(name, folder / file, dict(card))


def check_name(name: str) -> None:
    """Refuse names that are no file names, or mean another model already.

    Raises
    ------
    UsageError : with the reason.
    """
    from pathosam_qupath.model import BUNDLED
    from pathosam_qupath.model.registry import MODELS

    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name}",
            "it cannot be a model's name",
            "Use letters, digits, dots, dashes and underscores, at most 64, a letter or digit "
            "first.",
        )
    if name == BUNDLED or name in MODELS:
        raise UsageError(f"--name {name}", "another model is called so", "Choose another name.")


def compact_weights(name_or_path: str | Path) -> tuple[Path, str | None]:
    """The weight file that a name or path of a compact model means, and its SHA-256 if known.

    Raises
    ------
    ModelError : it means no compact model.
    """
    from pathosam_qupath.model import BUNDLED, bundled_weights

    if str(name_or_path) == BUNDLED:
        return bundled_weights()
    adopted = adopted_models().get(str(name_or_path))
    if adopted is not None and adopted.path.suffix == ".safetensors":
        return adopted.path, adopted.sha256
    path = Path(name_or_path)
    if path.suffix == ".safetensors" and path.is_file():
        return path, None
    compact = [m.name for m in adopted_models().values() if m.path.suffix == ".safetensors"]
    names = ", ".join([BUNDLED, *compact])
    raise ModelError(
        name_or_path,
        "it is no model that can be fine-tuned here",
        f"Give {names}, or a .safetensors file that `train` or `finetune` wrote.",
    )


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        str(card["sha256"]), float(card["mpp"]), list(card["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            path, f"the model's card cannot be read ({error!r})", f"Delete {path.parent}."
        ) from error
    return dict(card)
