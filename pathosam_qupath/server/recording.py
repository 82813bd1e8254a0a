"""Segment jobs of a project's image leave the same record as ``segment`` does.

The nuclei of a job go into the hierarchy of a running QuPath, which saves them when its
user does. The record therefore ends at "predicted": what the nuclei are is known, the hash
of the file that will hold them is not. Undoing such a run takes out its untouched nuclei.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathosam_qupath.errors import PathosamError
from pathosam_qupath.qupath.project import open_project
from pathosam_qupath.run_record import (
    EntryRecord,
    RunManifest,
    RunRecord,
    create_run,
    new_run_id,
    utc_now,
)
from pathosam_qupath.server.problems import ProblemError, is_disk_full

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.qupath.project import Color, Entry


@dataclass(eq=False)
class JobRecord:
    """The record of one job's run, begun."""

    record: RunRecord
    entry: EntryRecord
    data_path: Path

    @property
    def run(self) -> str:
        """The run's id."""
        return self.record.manifest.run

    def finish(self, nuclei: gpd.GeoDataFrame, colors: dict[str, Color], seconds: float) -> None:
        """Put the nuclei into the record.

        Raises
        ------
        PathosamError, OSError : they cannot be written.
        """
        self.record.save_predictions(self.entry.id, nuclei)
        before = self.record.save_before(self.entry.id, self.data_path)
        used = set(nuclei["classification"].dropna())
        self.record.add_class_colors({name: c for name, c in colors.items() if name in used})
        self.record.update(
            replace(
                self.entry,
                state="predicted",
                nuclei=len(nuclei),
                hash_before=before,
                seconds=round(seconds, 3),
                message="sent to a running QuPath, which saves it",
            )
        )
        self.record.finish()

    def fail(self, reason: str) -> None:
        """Note that nothing came of it, where that can be noted."""
        try:
            self.record.update(replace(self.entry, state="failed", message=reason, exit_code=1))
        except (PathosamError, OSError) as error:
            # A full disk is what failed the job, and the record says "planned" then.
            if not is_disk_full(error):
                raise


def begin_record(
    project_path: Path,
    entry_id: str,
    model: NucleusModel,
    options: dict[str, Any],
    area: float,
) -> JobRecord:
    """Begin the record of a job in a project's folder.

    Parameters
    ----------
    options : of the job, as the manifest keeps them.
    area : treated area in µm².

    Raises
    ------
    PathosamError : the project cannot be read, or its folder not be written.
    ProblemError : it has no such image.
    """
    from pathosam_qupath.batch import versions

    with open_project(project_path, "embedded") as project:
        entry = _entry(project.entries, entry_id, project_path)
        folder = project.path.parent
        planned = EntryRecord(entry.id, entry.name, area=area)
        record = create_run(
            folder,
            RunManifest(
                run=new_run_id(folder),
                created=utc_now(),
                project=str(project.path),
                backend="live",
                model={**asdict(model.info), "device": model.device},
                options=options,
                versions=versions(project),
                entries=(planned,),
            ),
        )
        return JobRecord(record, planned, entry.data_path)


def _entry(entries: Any, entry_id: str, project: Path) -> Entry:  # noqa: ANN401 (a Sequence)
    for entry in entries:
        if entry.id == entry_id:
            found: Entry = entry
            return found
    raise ProblemError(
        422, "project", str(project), f"it has no image with id {entry_id!r}", "Save the project."
    )
