"""Undo a run.

Where an image's ``data.qpdata`` is still the file that the run wrote, the file from before
the run comes back byte for byte, and QuPath's backup with it. Where it has changed since
(a person worked on, another run followed), only the run's own nuclei go, and of those only
the ones that nobody has edited. Nuclei of earlier runs that the run had replaced come back
in the first case only. To undo several runs, undo the latest first.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from pathosam_qupath.edits import untouched
from pathosam_qupath.errors import PathosamError, RunError
from pathosam_qupath.qupath.atomic import Fingerprint, check_unchanged, fingerprint
from pathosam_qupath.qupath.project import HierarchyChange
from pathosam_qupath.run_record import (
    EntryRecord,
    RunRecord,
    backup_of,
    copy_file,
    file_hash,
    open_run,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pathosam_qupath.qupath.project import Entry, Project

Action = Literal["restored", "removed", "nothing", "failed"]


@dataclass(frozen=True)
class EntryRollback:
    """What undoing a run did to one image.

    Attributes
    ----------
    action : "restored": the old file is back byte for byte; "removed": the file had
        changed, the run's untouched nuclei were taken out; "nothing": there was nothing to
        undo; "failed": see ``message``.
    removed : nuclei taken out of a changed file.
    kept : the run's nuclei that stay there because they were edited.
    """

    id: str
    name: str
    action: Action
    removed: int = 0
    kept: int = 0
    message: str | None = None
    exit_code: int = 0


def roll_back(project: Project, run: str) -> list[EntryRollback]:
    """Undo a run in every image that it wrote to; an image that fails does not stop the rest.

    Parameters
    ----------
    run : the run's id, an unambiguous beginning of it, or "last".

    Raises
    ------
    RunError : there is no such run, or it has been undone in all of its images already.
    """
    record = open_run(project.path.parent, run)
    entries = {entry.id: entry for entry in project.entries}
    states = {e.state for e in record.manifest.entries}
    if "rolled back" in states and not states & {"written", "predicted", "failed"}:
        raise RunError(
            f"run {record.manifest.run}",
            "it has been undone already",
            "`pathosam-qupath runs PROJECT` lists the runs and their state.",
        )
    results = []
    for entry in record.manifest.entries:
        if entry.state in ("planned", "skipped", "rolled back") or _did_nothing(entry):
            continue
        result = _undo_safely(entries.get(entry.id), entry, record)
        if result.action != "failed":
            record.update(replace(entry, state="rolled back", message=result.message))
        results.append(result)
    return results


def _did_nothing(entry: EntryRecord) -> bool:
    """Whether an image failed before the run came to its file."""
    return entry.state == "failed" and entry.nuclei == 0 and entry.removed == 0


def _undo_safely(entry: Entry | None, done: EntryRecord, record: RunRecord) -> EntryRollback:
    try:
        if entry is None:
            raise RunError(
                f"image {done.name!r}",
                "it is no longer in the project",
                "Nothing of it was changed.",
            )
        return _undo(entry, done, record)
    except (PathosamError, OSError) as error:
        code = error.exit_code if isinstance(error, PathosamError) else RunError.exit_code
        return EntryRollback(done.id, done.name, "failed", message=str(error), exit_code=code)


def _undo(entry: Entry, done: EntryRecord, record: RunRecord) -> EntryRollback:
    now = fingerprint(entry.data_path)
    content = now.sha256 if now.exists else None
    if content == done.hash_before:
        _restore_backup(entry.data_path, done, record)
        return EntryRollback(done.id, done.name, "nothing", message="the file is as before the run")
    if not now.exists:
        return EntryRollback(
            done.id, done.name, "nothing", message="the image has no data any more"
        )
    if content == done.hash_after:
        _restore(entry.data_path, now, done, record)
        _restore_backup(entry.data_path, done, record)
        return EntryRollback(done.id, done.name, "restored")
    return _take_out(entry, done, record)


def _restore(data_path: Path, now: Fingerprint, done: EntryRecord, record: RunRecord) -> None:
    """Bring ``data.qpdata`` back as it was, unless it changes while that is done."""
    if done.hash_before is None:
        check_unchanged(data_path, now)
        data_path.unlink()
        return
    before = record.before_path(done.id)
    if file_hash(before) != done.hash_before:
        raise RunError(
            before,
            "the copy of the file from before the run is missing or damaged",
            "Nothing was changed. Delete the run's detections in QuPath, or bring the project "
            "back from a backup.",
        )
    copy_file(before, data_path, expected=now)


def _restore_backup(data_path: Path, done: EntryRecord, record: RunRecord) -> None:
    """Bring QuPath's backup back, where it is the one that the run's own write left."""
    backup = backup_of(data_path)
    if done.hash_before is not None and file_hash(backup) == done.hash_before:
        copy_file(backup_of(record.before_path(done.id)), backup)


def _take_out(entry: Entry, done: EntryRecord, record: RunRecord) -> EntryRollback:
    """Remove the run's own untouched nuclei from a file that has changed since."""
    run = record.manifest.run
    existing = entry.detections()
    own = existing[(existing["run"] == run).to_numpy()].reset_index(drop=True)
    same = untouched(own, record.load_predictions(done.id), parents_in(entry))
    ids = frozenset(UUID(text) for text in own["id"].to_numpy()[same])
    if ids:
        entry.write(HierarchyChange(remove=ids))
    kept = len(own) - len(ids)
    message = "the file had changed since the run"
    if done.removed:
        message += f"; {done.removed} nuclei of earlier runs that it had replaced stay away"
    return EntryRollback(done.id, done.name, "removed", len(ids), kept, message)


def parents_in(entry: Entry) -> Collection[str]:
    """Ids, as text, of every object of an image that has children."""
    parents = {str(a.parent) for a in entry.annotations() if a.parent is not None}
    parents.update(entry.detections()["parent"].dropna())
    return parents
