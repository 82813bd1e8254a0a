"""Whether a fine-tuned model may take a name: no worse than its base, or forced.

Regions that neither taught nor told when to stop judge
(:mod:`~pathosam_qupath.corrections.splitting`). On a regression set no figure may lose more than
a point, and answers to clicks and boxes no more than a point of their IoU.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pathosam_qupath import __version__
from pathosam_qupath.corrections.bases import Base, find_base
from pathosam_qupath.corrections.comparison import (
    MARGIN,
    Comparison,
    compare_on_samples,
    held_out_folder,
    lost_figures,
    own_types,
)
from pathosam_qupath.corrections.evaluation import ImageResult
from pathosam_qupath.corrections.finetuning import (
    Finetuned,
    FinetuneData,
    FinetuneOptions,
    finetune,
)
from pathosam_qupath.corrections.holding import RegressionSet
from pathosam_qupath.corrections.learning_run import FinetuneProgress
from pathosam_qupath.corrections.prompt_evaluation import evaluate_prompts
from pathosam_qupath.corrections.samples import Sample, read_samples
from pathosam_qupath.corrections.splitting import folder_hash, sample_folders, split_data
from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.adopted import adopt, check_name, user_folder
from pathosam_qupath.model.interface import NucleusModel
from pathosam_qupath.model.prompts import promptable
from pathosam_qupath.model.weights import file_sha256
from pathosam_qupath.run_record import utc_now


@dataclass(frozen=True)
class FinetuneReport:
    """What came of a fine-tuning.

    Attributes
    ----------
    weights : the file of the new model, adopted or not.
    regions : how many crops taught, told when to stop, judged, and were replayed.
    held_out, regression : the new model (B) against its base (A); None where not compared.
    prompts : mean IoU of base and new model with one click and one box, on what judged; None
        where the model answers none, or nothing that they read has changed.
    way : how far from its base the new model lies, 1: where learning went, 0: it is the base.
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
    prompts: dict[str, tuple[float, float]] | None
    way: float
    adopted: bool
    forced: bool
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
    base : name or weight file of a compact model, or of a SAM with a decoder of nuclei.
    data : an export of corrections, or a folder of samples.
    name : what the new model is called.
    replay : samples of the base model's training, against forgetting.
    regression : samples on which no figure may lose more than a point: the model goes back
        towards its base until that is so.
    force : adopt it however it compares; its card says so.

    Raises
    ------
    UsageError : the name cannot be used, or the data cannot be learnt from.
    ImageError : the export is damaged.
    ModelError : the base cannot be fine-tuned.
    """
    check_name(name)
    start = find_base(base)
    split = split_data(data)
    replayed = [] if replay is None else list(read_samples(replay))
    folders = [*sample_folders(data), *([] if replay is None else [replay])]
    data_hash, parent_hash = folder_hash(folders), file_sha256(start.weights)
    identity = f"{data_hash} {parent_hash}"
    elsewhere = None if regression is None else _regression_set(regression)
    learning = FinetuneData(
        split.train, split.stopping, replayed, own_types(data), identity, elsewhere
    )
    out = _run_folder(name, options, identity)
    if start.compact:
        done = finetune(
            start.weights, learning, out, options, name=name, device=device, progress=progress
        )
    else:
        done = _finetune_sam(start, learning, out, options, device, progress)
    old = load_model(start.weights, device, decoder=start.decoder)
    new = load_model(done.weights, device)
    names = (str(base), name)
    held_out = kept = None
    if done.regression is not None:
        kept = replace(done.regression, a=names[0], b=names[1])
    if split.judging:
        held_out = compare_on_samples(
            old, new, split.judging, own_types=learning.own_types, names=names, progress=judged
        )
    prompts = None
    if start.compact and options.what != "class-head":
        prompts = _prompted(old, new, split.judging)
    against = against_adoption(held_out, kept, prompts)
    adopted = force or not against
    report = FinetuneReport(
        name,
        str(base),
        options.what,
        str(done.weights),
        {
            "train": len(split.train),
            "stopping": len(split.stopping),
            "judging": len(split.judging),
            "replay": len(replayed),
        },
        held_out,
        kept,
        prompts,
        round(done.way, 3),
        adopted,
        bool(force and against),
        (*split.notes, *_about_way(done), *against),
    )
    if adopted:
        card = _card(report, options, file_sha256(done.weights), parent_hash, data_hash)
        model = adopt(
            name, done.weights, {**card, "classes": new.info.classes, "mpp": new.info.mpp}
        )
        report = replace(report, weights=str(model.path))
    return report


def fixed_set(name: str) -> Path | None:
    """The user's own samples for every fine-tuning, "replay" or "regression"; None: there are none.

    They lie beside the models that were adopted, so that fine-tunings from QuPath's menu find
    them too.
    """
    folder = user_folder() / name
    return folder if folder.is_dir() else None


def _regression_set(folder: Path) -> RegressionSet:
    held = held_out_folder(folder)
    return RegressionSet(list(read_samples(held)), own_types(folder), folder_hash([held]))


def _about_way(done: Finetuned) -> list[str]:
    """What a reader should know of where the model lies."""
    lost = "lost more than a point on the regression set"
    if done.share == 0.0:
        return [f"It is its base again: whatever was learnt {lost}."]
    if done.way == 0.0:
        return ["It is its base: nothing that was learnt was better on held-out regions."]
    return [] if done.share == 1.0 else [f"{done.share:.0%} of the way are kept: more {lost}."]


def _run_folder(name: str, options: FinetuneOptions, identity: str) -> Path:
    """Where a fine-tuning is kept until it is judged; what a former one of the name left goes.

    The loop goes round under one name: with other data or other options it is another run, and
    the same command given again goes on with its own.
    """
    folder = user_folder() / "finetuning" / name
    what = json.dumps([asdict(options), identity])
    own = folder / hashlib.sha256(what.encode()).hexdigest()[:16]
    if folder.is_dir():
        for former in folder.iterdir():
            if former == own:
                continue
            if former.is_dir():
                shutil.rmtree(former)
            else:
                former.unlink()
    return own


def _finetune_sam(
    start: Base,
    data: FinetuneData,
    out: Path,
    options: FinetuneOptions,
    device: str,
    progress: Callable[[FinetuneProgress], None] | None,
) -> Finetuned:
    from pathosam_qupath.corrections.pathosam_finetuning import (
        PathosamFinetuneOptions,
        finetune_pathosam,
    )

    if options.what == "class-head":
        raise UsageError(
            "--what class-head",
            "PathoSAM's classes come from a decoder of their own, which is not fine-tuned here",
            "Take --what decoder, lora or all.",
        )
    steps = options.steps or PathosamFinetuneOptions.steps
    chosen = PathosamFinetuneOptions(options.what, options.seed, steps)
    return finetune_pathosam(
        start.weights, data, out, chosen, decoder=start.decoder, device=device, progress=progress
    )


def against_adoption(
    held_out: Comparison | None,
    regression: Comparison | None,
    prompts: Mapping[str, tuple[float, float]] | None = None,
) -> list[str]:
    """Why a model may not be adopted; empty where it may."""
    reasons = []
    if held_out is None:
        reasons.append("Nothing is held out, so it cannot be compared with its base.")
    elif held_out.verdict == "worse":
        worse = [f.figure for f in held_out.figures if f.verdict == "worse"]
        reasons.append(f"It is worse than its base on held-out regions: {', '.join(worse)}.")
    if regression is not None:
        lost = lost_figures(regression)
        if lost:
            reasons.append(f"It loses more than a point on the regression set: {', '.join(lost)}.")
    lost = [kind for kind, (a, b) in (prompts or {}).items() if b < a - MARGIN]
    if lost:
        reasons.append(f"Its answers lose more than a point of IoU: {', '.join(lost)}.")
    return reasons


def _prompted(
    old: NucleusModel, new: NucleusModel, samples: Sequence[Sample]
) -> dict[str, tuple[float, float]] | None:
    """Mean IoU of both models' answers to one click and to one box."""
    if not any(sample.labels.any() for sample in samples):
        return None
    try:
        before, after = (evaluate_prompts(promptable(m), samples)["mean"] for m in (old, new))
    except ModelError:
        # A network that was trained without prompts has none to lose.
        return None
    return {kind: (before[kind], after[kind]) for kind in ("point", "box")}


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
        "prompts": report.prompts,
        "way": report.way,
        "forced": report.forced,
        "notes": report.notes,
        "version": __version__,
    }
