"""The record that a run leaves in the project's folder, so that it can be compared and undone.

::

    <project>/pathosam/runs/<run id>/manifest.json
                                     lock
                                     <entry id>/tissue.jpg           (what counted as tissue)
                                     <entry id>/blocks               (while it is treated)
                                     <entry id>/predictions.parquet
                                     <entry id>/before.qpdata        (the file as it was)
                                     <entry id>/before.qpdata.bkp    (QuPath's backup as it was)

An entry's state goes ``planned`` → ``predicted`` → ``written``; the predictions, the copy
of the old file and the hash of it are on disk *before* the project's file is touched, and
every file here is replaced atomically. A crash at any moment therefore leaves either an
entry that was not touched, or one whose nuclei the record knows.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np

from pathosam_qupath.errors import ProjectError, RunError
from pathosam_qupath.qupath.atomic import MISSING, Fingerprint, fingerprint, replace_file
from pathosam_qupath.run_predictions import StoredNuclei, store_nuclei

if TYPE_CHECKING:
    import geopandas as gpd
    from PIL.Image import Image

State = Literal["planned", "predicted", "written", "failed", "skipped", "rolled back"]

_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
_MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class EntryRecord:
    """What a run did to one image.

    Attributes
    ----------
    nuclei : detections written.
    removed : detections of earlier runs that were taken out.
    kept : earlier detections of this tool in the treated region that stayed.
    overlapping : new nuclei dropped because they lie on one that stayed.
    area : treated area in µm², None where nothing was treated.
    regions : digest of the treated regions, None where nothing was to be treated.
    tiles, blank, blurred : tiles of the network, and how many of them were empty or out of
        focus.
    hash_before, hash_after : SHA-256 of ``data.qpdata``; None where there was no file, or
        where the run did not get so far.
    tissue : share of the image that counted as tissue, None where nobody asked.
    stain : how far the stain is from the training images'; above 1 it is unlike them. None
        where there is too little tissue to tell.
    warnings : what speaks against the numbers, each with its remedy.
    message : why the image failed or was skipped, or what the reader should know.
    exit_code : the error's exit code where the image failed.
    """

    id: str
    name: str
    state: State = "planned"
    nuclei: int = 0
    removed: int = 0
    kept: int = 0
    overlapping: int = 0
    area: float | None = None
    regions: str | None = None
    tiles: int = 0
    blank: int = 0
    blurred: int = 0
    tissue: float | None = None
    stain: float | None = None
    warnings: tuple[str, ...] = ()
    hash_before: str | None = None
    hash_after: str | None = None
    seconds: float = 0.0
    message: str | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class RunManifest:
    """Everything needed to say how a run's detections came about.

    Attributes
    ----------
    created, finished : UTC, ISO 8601; ``finished`` is None while the run goes on and
        stays None when it was cut off.
    model : name, weights hash, µm/px, tile, halo, classes, thresholds, device, precision.
    options : the run's options as given.
    versions : of this package, Python, the libraries, QuPath.
    class_colors : (red, green, blue) by the project's class names.
    """

    run: str
    created: str
    project: str
    backend: str
    model: Mapping[str, Any]
    options: Mapping[str, Any]
    versions: Mapping[str, str | None]
    class_colors: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    entries: tuple[EntryRecord, ...] = ()
    finished: str | None = None

    def entry(self, entry_id: str) -> EntryRecord:
        """The record of one image.

        Raises
        ------
        RunError : the run did not treat that image.
        """
        for entry in self.entries:
            if entry.id == entry_id:
                return entry
        raise RunError(
            f"run {self.run}",
            f"it did not treat an image with id {entry_id!r}",
            "List the runs and their images with `pathosam-qupath runs PROJECT`.",
        )


@dataclass
class RunRecord:
    """A run's folder and its manifest, kept in step."""

    folder: Path
    manifest: RunManifest

    def update(self, entry: EntryRecord) -> None:
        """Put an image's record into the manifest, on disk too."""
        entries = tuple(entry if e.id == entry.id else e for e in self.manifest.entries)
        self._save(replace(self.manifest, entries=entries))

    def begin_again(self) -> None:
        """Note that a run that had ended, or was cut off, goes on."""
        self._save(replace(self.manifest, finished=None))

    def finish(self) -> None:
        """Note that the run came to its end."""
        self._save(replace(self.manifest, finished=utc_now()))

    def add_class_colors(self, colors: Mapping[str, tuple[int, int, int]]) -> None:
        """Note colours of classes that the run gives to its nuclei."""
        self._save(
            replace(self.manifest, class_colors={**self.manifest.class_colors, **dict(colors)})
        )

    def _save(self, manifest: RunManifest) -> None:
        text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=2, ensure_ascii=False)
        replace_file(self.folder / _MANIFEST, lambda file: file.write(text.encode()))
        self.manifest = manifest

    def entry_folder(self, entry_id: str) -> Path:
        """The folder of one image's files; entry ids come from a file, so they are quoted."""
        return self.folder / quote(entry_id, safe="").replace(".", "%2E")

    def blocks_path(self, entry_id: str) -> Path:
        """Where an image's finished blocks lie until it is written (``block_ledger``)."""
        return self.entry_folder(entry_id) / "blocks"

    def save_picture(self, entry_id: str, name: str, picture: Image) -> Path:
        """Write a picture of an image as JPEG."""
        path = self.entry_folder(entry_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: picture.save(file, "JPEG", quality=88))
        return path

    def load_picture(self, entry_id: str, name: str) -> Image | None:
        """A picture that :meth:`save_picture` wrote; None where there is none."""
        from PIL import Image

        path = self.entry_folder(entry_id) / name
        if not path.is_file():
            return None
        with Image.open(path) as picture:
            return picture.convert("RGB")

    def save_predictions(self, entry_id: str, frame: gpd.GeoDataFrame) -> Path:
        """Write an image's nuclei, as they are about to be written, as GeoParquet."""
        path = self.entry_folder(entry_id) / "predictions.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_parquet(path, frame)
        return path

    def store_nuclei(self, entry_id: str, frames: Iterable[gpd.GeoDataFrame]) -> StoredNuclei:
        """Write an image's nuclei, frame by frame, where :meth:`load_predictions` finds them."""
        path = self.entry_folder(entry_id) / "predictions.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return store_nuclei(path, frames)

    def load_predictions(
        self, entry_id: str, columns: Sequence[str] | None = None
    ) -> gpd.GeoDataFrame | None:
        """An image's nuclei as the run wrote them; None where the record has none.

        Parameters
        ----------
        columns : those that are wanted, "geometry" among them; None: all.

        Raises
        ------
        RunError : the file is there but cannot be read.
        """
        import geopandas as gpd

        path = self.entry_folder(entry_id) / "predictions.parquet"
        if not path.exists():
            return None
        try:
            return gpd.read_parquet(path, columns=None if columns is None else list(columns))
        except (ValueError, OSError) as error:
            raise RunError(
                path,
                f"the predictions of run {self.manifest.run} cannot be read ({error})",
                "Bring the file back from a backup of the project.",
            ) from error

    def save_before(self, entry_id: str, data_path: Path) -> str | None:
        """Copy ``data.qpdata`` and its backup as they are; the hash of the former.

        Returns None, and leaves no copy, where the image has no data yet.
        """
        folder = self.entry_folder(entry_id)
        folder.mkdir(parents=True, exist_ok=True)
        copy_file(backup_of(data_path), folder / "before.qpdata.bkp")
        if not copy_file(data_path, self.before_path(entry_id)):
            return None
        return file_hash(self.before_path(entry_id))

    def before_path(self, entry_id: str) -> Path:
        """Where the copy of ``data.qpdata`` from before the run lies."""
        return self.entry_folder(entry_id) / "before.qpdata"


def create_run(project_folder: Path, manifest: RunManifest) -> RunRecord:
    """Make a run's folder and write its manifest.

    Raises
    ------
    RunError : the folder cannot be made (no permission, disk full).
    """
    record = RunRecord(runs_folder(project_folder) / manifest.run, manifest)
    try:
        record.folder.mkdir(parents=True)
        record._save(manifest)
    except (OSError, ProjectError) as error:
        raise RunError(
            record.folder,
            f"the run's record cannot be written ({error})",
            "Make the project's folder writable and check that the disk has room.",
        ) from error
    return record


def open_run(project_folder: Path, run: str) -> RunRecord:
    """The record of a run by its id, by a beginning of it that fits one run only, or "last".

    Raises
    ------
    RunError : there is no such run, several fit, or its manifest cannot be read.
    """
    known = run_ids(project_folder)
    fitting = known[-1:] if run == "last" else [k for k in known if k.startswith(run)]
    if run in known:
        fitting = [run]
    if len(fitting) != 1 or not run:
        listed = ", ".join(known[-5:]) or "none"
        raise RunError(
            f"run {run!r}",
            "no such run is recorded in this project"
            if not fitting
            else "several runs begin so: " + ", ".join(fitting),
            f"Runs of this project: {listed}. `pathosam-qupath runs PROJECT` lists them.",
        )
    folder = runs_folder(project_folder) / fitting[0]
    return RunRecord(folder, _read_manifest(folder / _MANIFEST))


def last_write(project_folder: Path) -> float:
    """When a run last wrote to its manifest, in seconds since 1970; 0 where none has."""
    times = [
        (runs_folder(project_folder) / run / _MANIFEST).stat().st_mtime
        for run in run_ids(project_folder)
    ]
    return max(times, default=0.0)


def run_ids(project_folder: Path) -> list[str]:
    """Ids of the runs recorded in a project, oldest first."""
    folder = runs_folder(project_folder)
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if _RUN_ID.fullmatch(path.name) and (path / _MANIFEST).is_file()
    )


def new_run_id(project_folder: Path) -> str:
    """A run id: UTC date and time, and four random digits.

    Ids sort by age: where the project has a run of this very second, the next is awaited.
    """
    while True:
        moment = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        if not runs_folder(project_folder).is_dir() or not any(
            runs_folder(project_folder).glob(f"{moment}-*")
        ):
            return f"{moment}-{secrets.token_hex(2)}"
        time.sleep(0.05)


def save_parquet(path: Path, frame: gpd.GeoDataFrame) -> None:
    """Write a frame as GeoParquet, atomically. Colours become "#rrggbb" texts."""
    colors = [
        None if c is None or c != c else "#{:02x}{:02x}{:02x}".format(*c) for c in frame["color"]
    ]
    frame = frame.assign(color=np.array(colors, dtype=object))
    replace_file(path, lambda file: frame.to_parquet(file, index=False, compression="zstd"))


def utc_now() -> str:
    """The time now, UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def runs_folder(project_folder: Path) -> Path:
    """Where a project keeps the records of its runs."""
    return project_folder / "pathosam" / "runs"


def backup_of(data_path: Path) -> Path:
    """QuPath's backup beside a ``data.qpdata``."""
    return data_path.with_name(data_path.name + ".bkp")


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file, or None where there is none."""
    found = fingerprint(path)
    return None if found == MISSING else found.sha256


def copy_file(source: Path, target: Path, *, expected: Fingerprint | None = None) -> bool:
    """Copy a file, atomically and durably; False, and no target, where there is no source.

    Raises
    ------
    ChangedSinceReadError : the target is not the ``expected`` one.
    """
    try:
        with source.open("rb") as reading:
            replace_file(
                target,
                lambda writing: shutil.copyfileobj(reading, writing, 1 << 20),
                expected=expected,
            )
    except FileNotFoundError:
        target.unlink(missing_ok=True)
        return False
    return True


def _read_manifest(path: Path) -> RunManifest:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("format", None) != _FORMAT:
            raise ValueError("it was written by another version of pathosam-qupath")
        stored["entries"] = tuple(
            EntryRecord(**{**entry, "warnings": tuple(entry.get("warnings", ()))})
            for entry in stored["entries"]
        )
        stored["class_colors"] = {
            name: (int(r), int(g), int(b)) for name, (r, g, b) in stored["class_colors"].items()
        }
        return RunManifest(**stored)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            path,
            f"the run's manifest cannot be read ({error})",
            "Bring the file back from a backup, or delete the run's folder to forget the run.",
        ) from error
