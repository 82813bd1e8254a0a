"""Which earlier run a command goes on with, and what must be the same for that.

A run that was cut off is taken up by the same command: same model, same options, same
images, same annotations in the images that are done. What an unfinished image's blocks were
computed from is checked once more, image by image, by its ledger (``block_ledger``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathosam_qupath import __version__
from pathosam_qupath.block_ledger import differing
from pathosam_qupath.errors import RunError
from pathosam_qupath.run_record import RunManifest, RunRecord, State, open_run, run_ids

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import ModelDescription
    from pathosam_qupath.segmentation.pipeline import BlockPlan, SegmentOptions

_ONLY_SPEED = {"batch_size", "network_threads", "read_threads", "postprocess_threads"}
_TOLD_ELSEWHERE = {"seed", "class_map"}
_SAMPLES, _SAMPLE = 16, 1 << 16


@dataclass(frozen=True)
class Continuation:
    """Which run to go on with.

    Attributes
    ----------
    record : the earlier run; None: a new one begins.
    note : why the last run, which was cut off, is not taken up; None where there is
        nothing to say.
    """

    record: RunRecord | None = None
    note: str | None = None


def find_run(
    project_folder: Path, now: RunManifest, wanted: str | None, *, retry_failed: bool = False
) -> Continuation:
    """The run to go on with.

    Parameters
    ----------
    now : the manifest that a new run would begin with.
    wanted : a run's id, its beginning or "last"; "auto" takes the last run where it was cut
        off and is the same; None begins a new one.
    retry_failed : the last run may also be one that came to its end.

    Raises
    ------
    RunError : there is no such run, or it was made with something else.
    """
    if wanted is None or (wanted == "auto" and not run_ids(project_folder)):
        return Continuation()
    try:
        record = open_run(project_folder, "last" if wanted == "auto" else wanted)
    except RunError as error:
        if wanted != "auto" or retry_failed:
            raise
        return Continuation(note=f"{error} A new run begins.")
    then = record.manifest
    undone = any(entry.state == "rolled back" for entry in then.entries)
    if wanted == "auto" and (undone or (then.finished is not None and not retry_failed)):
        return Continuation()
    found = differing(_identity(then), _identity(now)) + _changed_regions(then, now)
    if undone:
        found.append("it has been undone")
    if not found:
        return Continuation(record)
    if wanted == "auto" and not retry_failed:
        return Continuation(
            note=f"Run {then.run} was cut off, but cannot be gone on with ({'; '.join(found)}); "
            "a new run begins."
        )
    raise RunError(
        f"run {then.run}",
        "it was made with something else: " + "; ".join(found),
        "Give the options that it was begun with, or begin a new run with --resume no.",
    )


def block_identity(
    model: ModelDescription, options: SegmentOptions, plan: BlockPlan, image: Path | None, seen: str
) -> dict[str, Any]:
    """Everything that an image's blocks depend on.

    Parameters
    ----------
    image : the file of the pixels.
    seen : how QuPath's frame lies on it (series, crop, rotation, µm/px).
    """
    left_out = _ONLY_SPEED | _TOLD_ELSEWHERE
    chosen = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in left_out}
    chosen["postprocessing"] = asdict(options.postprocessing or model.info.postprocessing)
    digest = hashlib.sha256(np.packbits(plan.wanted).tobytes())
    digest.update(repr([block.inner for block in plan.blocks]).encode())
    region = None if plan.region is None else hashlib.sha256(plan.region.wkb).hexdigest()
    return {
        "version": __version__,
        "model": {
            "name": model.info.name,
            "weights_hash": model.info.weights_hash,
            "mpp": model.info.mpp,
            "device": model.device.partition(":")[0],
            "precision": model.info.precision,
        },
        "options": chosen,
        "image": {"content": None if image is None else image_digest(image), "frame": seen},
        "annotations": region,
        "blocks": digest.hexdigest(),
    }


def image_digest(path: Path) -> str:
    """SHA-256 of an image file's size and of samples spread over it: quick for any size."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _identity(manifest: RunManifest) -> dict[str, Any]:
    model: Mapping[str, Any] = manifest.model
    identity = {
        "version": manifest.versions.get("pathosam-qupath"),
        "model": {**model, "device": str(model.get("device")).partition(":")[0]},
        "options": dict(manifest.options),
        "images": [entry.id for entry in manifest.entries],
    }
    # A manifest that was read has lists where a new one has tuples.
    return dict(json.loads(json.dumps(identity)))


def _changed_regions(then: RunManifest, now: RunManifest) -> list[str]:
    """Images that are done and whose annotations were changed since."""
    current = {entry.id: entry for entry in now.entries}
    return [
        f"the annotations of {entry.name} were edited after it was done"
        for entry in then.entries
        if entry.state in ("written", "skipped")
        and entry.id in current
        and current[entry.id].regions != entry.regions
    ]


def reset_failed(record: RunRecord) -> None:
    """Let a run treat its failed images again."""
    for entry in record.manifest.entries:
        if entry.state == "failed":
            state: State = "predicted" if entry.nuclei or entry.removed else "planned"
            record.update(replace(entry, state=state, message=None, exit_code=0))
