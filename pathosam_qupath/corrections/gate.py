"""Whether a fine-tuned model may take a name: no worse than its base, or forced.

Held-out regions are split: half of them tell when to stop, the other half judge, so that the
judgement is not of what was chosen for. Of fewer than four both halves are the same, which the
card says. A regression set may lose no more than a point of any figure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pathosam_qupath import __version__
from pathosam_qupath.corrections.comparison import (
    MARGIN,
    Comparison,
    compare_models,
    compare_on_samples,
    own_types,
)
from pathosam_qupath.corrections.evaluation import ImageResult
from pathosam_qupath.corrections.finetuning import (
    FinetuneData,
    FinetuneOptions,
    FinetuneProgress,
    finetune,
)
from pathosam_qupath.corrections.samples import Sample, is_sample_folder, read_samples
from pathosam_qupath.corrections.training_set_files import verify_training_set
from pathosam_qupath.errors import UsageError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.adopted import adopt, check_name, compact_weights, user_folder
from pathosam_qupath.model.weights import file_sha256
from pathosam_qupath.run_record import utc_now

HELD_OUT_EVERY = 5
_FEWEST_TO_SPLIT = 4


@dataclass(frozen=True)
class FinetuneReport:
    """What came of a fine-tuning.

    Attributes
    ----------
    weights : the file of the new model, adopted or not.
    regions : how many crops taught, told when to stop, judged, and were replayed.
    held_out, regression : the new model (B) against its base (A); None where not compared.
    adopted : whether `--model NAME` takes it now.
    notes : why not, and what else the reader should know.
    """

    name: str
    base: str
    what: str
    weights: str
    regions: dict[str, int]
    held_out: Comparison | None
    regression: Comparison | None
    adopted: bool
    forced: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Split:
    train: list[Sample]
    stopping: list[Sample]
    judging: list[Sample]
    notes: tuple[str, ...]


def finetune_and_judge(
    base: str | Path,
    data: Path,
    name: str,
    options: FinetuneOptions,
    *,
    replay: Path | None = None,
    regression: Path | None = None,
    force: bool = False,
    device: str = "cpu",
    progress: Callable[[FinetuneProgress], None] | None = None,
    judged: Callable[[ImageResult], None] | None = None,
) -> FinetuneReport:
    """Fine-tune a compact model, compare it with its base, and adopt it if it is no worse.

    Parameters
    ----------
    base : name or weight file of a compact model.
    data : an export of corrections, or a folder of samples.
    name : what the new model is called.
    replay : samples of the base model's training, against forgetting.
    regression : samples on which nothing may get worse.
    force : adopt it however it compares; its card says so.

    Raises
    ------
    UsageError : the name cannot be used, or the data cannot be learnt from.
    ImageError : the export is damaged.
    ModelError : the base is no compact model.
    """
    check_name(name)
    weights, _ = compact_weights(base)
    split = _split(data)
    replayed = [] if replay is None else list(read_samples(replay))
    folders = [*_folders(data), *([] if replay is None else [replay])]
    identity = f"{folder_hash(folders)} {file_sha256(weights)}"
    learning = FinetuneData(split.train, split.stopping, replayed, own_types(data), identity)
    out = user_folder() / "finetuning" / name
    new_weights = finetune(
        weights, learning, out, options, name=name, device=device, progress=progress
    )
    old, new = load_model(weights, device), load_model(new_weights, device)
    names = (str(base), name)
    held_out = kept = None
    if split.judging:
        held_out = compare_on_samples(
            old, new, split.judging, own_types=learning.own_types, names=names, progress=judged
        )
    if regression is not None:
        kept = compare_models(old, new, regression, names=names, progress=judged)
    against = against_adoption(held_out, kept)
    adopted = force or not against
    report = FinetuneReport(
        name,
        str(base),
        options.what,
        str(new_weights),
        {
            "train": len(split.train),
            "stopping": len(split.stopping),
            "judging": len(split.judging),
            "replay": len(replayed),
        },
        held_out,
        kept,
        adopted,
        bool(force and against),
        (*split.notes, *against),
    )
    if adopted:
        card = _card(report, options, new.info.weights_hash, old.info.weights_hash, identity)
        model = adopt(name, new_weights, {**card, "classes": new.info.classes, "mpp": new.info.mpp})
        report = replace(report, weights=str(model.path))
    return report


def against_adoption(held_out: Comparison | None, regression: Comparison | None) -> list[str]:
    """Why a model may not be adopted; empty where it may."""
    reasons = []
    if held_out is None:
        reasons.append("Nothing is held out, so it cannot be compared with its base.")
    elif held_out.verdict == "worse":
        worse = [f.figure for f in held_out.figures if f.verdict == "worse"]
        reasons.append(f"It is worse than its base on held-out regions: {', '.join(worse)}.")
    if regression is not None:
        lost = [f.figure for f in regression.figures if (f.difference or 0.0) < -MARGIN]
        if lost:
            reasons.append(f"It loses more than a point on the regression set: {', '.join(lost)}.")
    return reasons


def _split(data: Path) -> _Split:
    """The samples of an export or a folder: to learn, to stop, to judge."""
    verify_training_set(data)
    folders = _folders(data)
    train = list(read_samples(folders[0]))
    held = [sample for folder in folders[1:] for sample in read_samples(folder)]
    notes = []
    if not held and len(train) > 1:
        held = train[1::HELD_OUT_EVERY]
        train = [s for i, s in enumerate(train) if i % HELD_OUT_EVERY != 1]
        notes.append("Held-out regions are of the slides that were learnt from.")
    if len(held) < _FEWEST_TO_SPLIT:
        if held:
            notes.append("The same few regions told when to stop and judged.")
        return _Split(train, held, held, tuple(notes))
    return _Split(train, held[::2], held[1::2], tuple(notes))


def _folders(data: Path) -> list[Path]:
    """The folder to learn from, and the held-out one where there is one."""
    if is_sample_folder(data):
        return [data]
    if not is_sample_folder(data / "train"):
        raise UsageError(
            data,
            "it holds neither samples nor a folder `train` with them",
            "Give a folder that `pathosam-qupath corrections export` wrote.",
        )
    return [data / "train", *([data / "val"] if is_sample_folder(data / "val") else [])]


def _card(
    report: FinetuneReport, options: FinetuneOptions, sha256: str, parent: str, data: str
) -> dict[str, Any]:
    """What is to be known of the model."""
    return {
        "name": report.name,
        "created": utc_now(),
        "sha256": sha256,
        "parent": report.base,
        "parent_sha256": parent,
        "data_sha256": data,
        "options": asdict(options),
        "regions": report.regions,
        "held_out": None if report.held_out is None else asdict(report.held_out),
        "regression": None if report.regression is None else asdict(report.regression),
        "forced": report.forced,
        "notes": report.notes,
        "version": __version__,
    }


def folder_hash(folders: Sequence[Path]) -> str:
    """A hash of the images and masks in folders of samples."""
    digest = hashlib.sha256()
    for folder in folders:
        for kind in ("images", "labels", "types", "ignore"):
            for path in sorted((folder / kind).glob("*")):
                digest.update(f"{kind}/{path.name}\n".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
