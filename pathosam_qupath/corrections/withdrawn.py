"""What the menu in QuPath took out again of a run's nuclei, so that nobody counts it as deleted.

A run into an open QuPath leaves its record before anything is saved. When its user takes it
back, or a later run replaces it there, only QuPath knows. The menu tells the server, which
notes it beside the run's predictions::

    <project>/pathosam/runs/<run id>/<entry id>/withdrawn.json
        {"ids": ["<uuid>", …], "undone": true}

``undone`` says that the run itself was taken back, so that what it had replaced is there again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pathosam_qupath.errors import RunError
from pathosam_qupath.qupath.atomic import replace_file
from pathosam_qupath.run_record import RunRecord, open_run

FILE = "withdrawn.json"


@dataclass(frozen=True)
class Withdrawn:
    """Nuclei of a run that were taken out again.

    Attributes
    ----------
    ids : of the nuclei.
    undone : whether the run as a whole was taken back.
    """

    ids: frozenset[str] = frozenset()
    undone: bool = False


def note_withdrawn(
    project_folder: Path, run: str, entry_id: str, ids: Iterable[str], *, undone: bool
) -> Withdrawn:
    """Note that nuclei of a run were taken out; what was noted before stays noted.

    Parameters
    ----------
    ids : of the nuclei; those that the run did not write are passed over.
    undone : the run was taken back, not replaced.

    Returns
    -------
    All that is noted now.

    Raises
    ------
    RunError : there is no such run, it did not treat that image, or the note cannot be read.
    ProjectError : it cannot be written.
    """
    record = open_run(project_folder, run)
    record.manifest.entry(entry_id)
    predictions = record.load_predictions(entry_id)
    written = frozenset() if predictions is None else frozenset(predictions["id"])
    before = read_withdrawn(record, entry_id)
    given = frozenset(identity.lower() for identity in ids)
    now = Withdrawn(before.ids | (given & written), before.undone or undone)
    text = json.dumps({"ids": sorted(now.ids), "undone": now.undone})
    path = record.entry_folder(entry_id) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(text.encode()))
    return now


def read_withdrawn(record: RunRecord, entry_id: str) -> Withdrawn:
    """What is noted of a run and an image; nothing where there is no note.

    Raises
    ------
    RunError : the note cannot be read.
    """
    path = record.entry_folder(entry_id) / FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Withdrawn(frozenset(map(str, stored["ids"])), bool(stored["undone"]))
    except FileNotFoundError:
        return Withdrawn()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            path,
            f"it cannot be read ({error!r})",
            "Delete it: nuclei that were taken back then count as deleted.",
        ) from error
