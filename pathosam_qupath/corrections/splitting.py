"""Which corrected regions teach, which tell when to stop, and which judge.

Held-out regions are halved, so that the judgement is not of what was chosen for. Of fewer than
four both halves are the same, which the new model's card says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathosam_qupath.corrections.samples import Sample, is_sample_folder, read_samples
from pathosam_qupath.corrections.training_set_files import verify_training_set
from pathosam_qupath.errors import UsageError

HELD_OUT_EVERY = 5
_FEWEST_TO_SPLIT = 4


@dataclass(frozen=True, eq=False)
class Split:
    """What samples are for: to learn, to tell when to stop, to judge.

    Attributes
    ----------
    notes : what the reader of the figures should know.
    """

    train: Sequence[Sample]
    stopping: Sequence[Sample]
    judging: Sequence[Sample]
    notes: tuple[str, ...]


def split_data(data: Path) -> Split:
    """The samples of an export or a folder: to learn, to stop, to judge.

    Raises
    ------
    UsageError : there are none.
    ImageError : the export is damaged.
    """
    verify_training_set(data)
    folders = sample_folders(data)
    held = [sample for folder in folders[1:] for sample in read_samples(folder)]
    return split_samples(list(read_samples(folders[0])), held)


def split_samples(train: Sequence[Sample], held: Sequence[Sample]) -> Split:
    """Samples to learn from and held-out ones, as they are used.

    Parameters
    ----------
    held : of other slides; where there are none, every fifth of ``train``, of those with
        nuclei: one without them tells little of how well they are found.
    """
    notes = []
    if not held and len(train) > 1:
        telling = [i for i, sample in enumerate(train) if sample.labels.any()]
        chosen = (telling if len(telling) > 1 else range(len(train)))[1::HELD_OUT_EVERY]
        held = [train[i] for i in chosen]
        train = [sample for i, sample in enumerate(train) if i not in chosen]
        notes.append("Held-out regions are of the slides that were learnt from.")
    if len(held) < _FEWEST_TO_SPLIT:
        if held:
            notes.append("The same few regions told when to stop and judged.")
        return Split(train, held, held, tuple(notes))
    return Split(train, held[::2], held[1::2], tuple(notes))


def sample_folders(data: Path) -> list[Path]:
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


def folder_hash(folders: Sequence[Path]) -> str:
    """A hash of the images and masks in folders of samples."""
    digest = hashlib.sha256()
    for folder in folders:
        for kind in ("images", "labels", "types", "ignore"):
            for path in sorted((folder / kind).glob("*")):
                digest.update(f"{kind}/{path.name}\n".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
