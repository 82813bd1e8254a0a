"""Networks that turn tiles into maps, and where their weights come from.

`load_model` is the one way to a model; torch is imported only when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathosam_qupath.errors import ModelError, UsageError

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.model.registry import Progress

#: Name of the model that comes with the package.
BUNDLED = "bundled"


def load_model(
    name_or_path: str | Path = BUNDLED,
    device: str = "auto",
    *,
    decoder: str | Path | None = None,
    semantic: str | Path | None = None,
    exact: bool = False,
    progress: Progress | None = None,
) -> NucleusModel:
    """Load a model by name or from a weight file.

    Parameters
    ----------
    name_or_path : "bundled"; a published model (see ``registry.MODELS``), downloaded if it is
        not there; one that was fine-tuned on this machine; a ``.safetensors`` file that `train`
        wrote; or any other file, a checkpoint of PathoSAM with its decoder. A name goes before
        a file that is called the same.
    device : "auto" (CUDA, else Apple's GPU, else CPU), "cpu", "cuda", "cuda:1", "mps".
    decoder, semantic : files of PathoSAM's instance decoder and of its decoder of classes,
        instead of published ones or of what the checkpoint holds.
    exact : PathoSAM in float32 throughout, whatever the device would be faster in.
    progress : called while files arrive.

    Raises
    ------
    UsageError : decoders or exactness are asked of a model that is not PathoSAM.
    ModelError : when the weights are missing, damaged or foreign, or the device is absent.

    Examples
    --------
    >>> model = load_model(device="cpu")
    >>> model.info.classes
    ('Epithelial', 'Inflammatory', 'Connective')
    """
    from pathosam_qupath.model.adopted import adopted_models
    from pathosam_qupath.model.registry import MODELS

    name, path = str(name_or_path), Path(name_or_path)
    adopted = None if name in MODELS else adopted_models().get(name)
    weights = name not in MODELS and path.is_file() and path.suffix == ".safetensors"
    tuned = adopted is not None and adopted.path.suffix != ".safetensors"
    compact = name == BUNDLED or (adopted is not None and not tuned) or weights
    if compact and (decoder is not None or semantic is not None or exact):
        raise UsageError(
            name,
            "decoders of their own and --exact are PathoSAM's, and this is another network",
            "Leave them out, or give a model or a checkpoint of PathoSAM.",
        )
    if name == BUNDLED:
        return _load_compact(*bundled_weights(), device)
    if adopted is not None and not tuned:
        return _load_compact(adopted.path, adopted.sha256, device)
    if weights:
        return _load_compact(path, None, device)
    if name in MODELS and MODELS[name].decoder is None and decoder is None:
        raise ModelError(
            name,
            "it was published without a decoder of nuclei and only answers prompts",
            f"Give {', '.join(segmenting_models())}.",
        )
    if adopted is not None:
        path = adopted.path
        _check_file(path, adopted.sha256)
    if name not in MODELS and not path.is_file():
        raise ModelError(
            name_or_path,
            "it is neither a model's name nor a file",
            f"Give {', '.join(segmenting_models())}, or the path of a weight file.",
        )
    from pathosam_qupath.model.pathosam import load_pathosam

    return load_pathosam(
        name if name in MODELS else "checkpoint",
        checkpoint=None if name in MODELS else path,
        device=device,
        exact=exact,
        decoder=decoder,
        semantic=True if semantic is None else semantic,
        progress=progress,
    )


def segmenting_models() -> tuple[str, ...]:
    """Names of the models that find nuclei by themselves."""
    from pathosam_qupath.model.adopted import adopted_models
    from pathosam_qupath.model.registry import MODELS

    published = (model.name for model in MODELS.values() if model.decoder is not None)
    return (BUNDLED, *published, *adopted_models())


def choose_device(device: str = "auto") -> str:
    """The device to use for what was asked; a :class:`ModelError` when it is absent."""
    import torch

    found = [
        name
        for name, available in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if available
    ]
    if device == "auto":
        return found[0]
    kind, _, number = device.partition(":")
    absent = kind not in found
    if kind == "cuda" and not absent and number:
        absent = not number.isdigit() or int(number) >= torch.cuda.device_count()
    if absent:
        raise ModelError(
            f"device {device}",
            f"this machine's PyTorch has {', '.join(found)}",
            "Give one of these, or `auto`.",
        )
    return device


def bundled_file(name: str) -> Path:
    """A file that comes with the bundled model: `training.json`, `MODEL_CARD.md`."""
    path = Path(__file__).parent / "bundled" / name
    if not path.is_file():
        raise ModelError(path, "the file is missing from this installation", "Install it again.")
    return path


def bundled_weights() -> tuple[Path, str]:
    """The bundled weight file and the SHA-256 that it must have."""
    listing = bundled_file("SHA256SUMS").read_text(encoding="utf-8")
    sha256, name = listing.split()
    return bundled_file(name), sha256


def _load_compact(path: Path, expected: str | None, device: str) -> NucleusModel:
    """A compact model; its SHA-256 is checked where one is expected."""
    from pathosam_qupath.model.compact import CompactModel
    from pathosam_qupath.model.weights import load_weights

    sha256 = _check_file(path, expected)
    network, description = load_weights(path)
    return CompactModel(network, description, weights_hash=sha256, device=choose_device(device))


def _check_file(path: Path, expected: str | None) -> str:
    """The SHA-256 of a weight file; a :class:`ModelError` where another is expected."""
    from pathosam_qupath.model.weights import file_sha256

    sha256 = file_sha256(path)
    if expected is not None and sha256 != expected:
        raise ModelError(
            path,
            f"its SHA-256 is {sha256[:12]}…, expected {expected[:12]}…: the file is damaged",
            "Install the package again, or fine-tune the model again.",
        )
    return sha256
