"""A QuPath project without Java: the files of a project read and written directly.

The project file says which images there are; each entry's objects are in its
``data.qpdata``. A project holds the data of one entry at a time in memory, but remembers
of every entry that was read what the file was, so that a write can be refused when
QuPath saved it in between.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol
from uuid import UUID

from pathosam_qupath.errors import FormatError, ProjectError
from pathosam_qupath.qupath.atomic import (
    MISSING,
    Fingerprint,
    check_unchanged,
    is_unchanged,
    read_file,
    replace_file,
)
from pathosam_qupath.qupath.classes import (
    Color,
    default_color,
    extend_classes,
    normal_name,
    read_classes,
)
from pathosam_qupath.qupath.image_locations import ImageFinder
from pathosam_qupath.qupath.image_sources import image_source
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.project import (
    DetectionBatches,
    HierarchyChange,
    ImageSource,
    PathMap,
)
from pathosam_qupath.qupath.project_file import ImageRecord, read_project_file
from pathosam_qupath.qupath.qpdata import QpData

if TYPE_CHECKING:
    import geopandas as gpd

DATA = "data.qpdata"
BACKUP = "data.qpdata.bkp"
DAMAGED = "data.qpdata.damaged"


class EntryData(Protocol):
    """The contents of a ``data.qpdata``, whoever reads them; see :class:`QpData`."""

    @property
    def image_type(self) -> str | None:
        """QuPath's constant ("BRIGHTFIELD_H_E"), or None."""

    def objects(self) -> list[PathObject]:
        """Every object but the root."""

    def annotations(self) -> list[PathObject]:
        """The annotations alone."""

    def detections(self) -> gpd.GeoDataFrame:
        """Detections, cells and tiles."""

    def remove(self, ids: Collection[UUID]) -> int:
        """Take objects out by id."""

    def add_detections(
        self, frame: gpd.GeoDataFrame, class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append detections to their parents' children."""

    def add_batches(
        self, batches: DetectionBatches, class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append detections that come some at a time."""

    def add_annotations(
        self, annotations: Sequence[PathObject], class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append annotations to their parents' children."""

    def write(self, file: BinaryIO) -> None:
        """Write to an open file on disk."""


class RecoveredDataWarning(UserWarning):
    """An entry's ``data.qpdata`` is damaged or gone and its backup was read instead."""


@dataclass(frozen=True)
class _Snapshot:
    """What an entry's files were when they were read.

    ``from_backup`` says that the data came from the backup; ``main`` is the fingerprint
    of ``data.qpdata`` all the same.
    """

    main: Fingerprint
    from_backup: bool


class EmbeddedProject:
    """A project whose files this package reads and writes itself.

    Parameters
    ----------
    path : the ``.qpproj`` file.
    path_map : where image files are now, for those that moved.

    Raises
    ------
    ProjectError : the project file cannot be read.
    """

    backend: Literal["paquo", "embedded"] = "embedded"

    def __init__(self, path: Path, *, path_map: PathMap | None = None) -> None:
        file = read_project_file(path)
        self.path = file.path
        self.qupath_version = file.version
        self._classes = read_classes(file.folder)
        finder = ImageFinder(file, path_map or PathMap())
        self.entries: Sequence[EmbeddedEntry] = tuple(
            EmbeddedEntry(self, record, image_source(record, finder)) for record in file.images
        )
        self._loaded: tuple[str, EntryData] | None = None

    @property
    def classes(self) -> Mapping[str, Color]:
        """The project's class list with colours, in order."""
        return dict(self._classes)

    def add_classes(self, classes: Mapping[str, Color]) -> None:
        """Append the classes that the project's list lacks; others keep their colour."""
        if classes:
            self._classes = extend_classes(self.path.parent, classes)

    def close(self) -> None:
        """Let go of what was read."""
        self._loaded = None

    def __enter__(self) -> EmbeddedProject:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class EmbeddedEntry:
    """One image of an :class:`EmbeddedProject`.

    All reads of one entry are of one state of its file: a file that changes in between
    raises :class:`~pathosam_qupath.errors.ChangedSinceReadError`; open the project again.
    """

    def __init__(self, project: EmbeddedProject, record: ImageRecord, image: ImageSource) -> None:
        self.id = record.id
        self.name = record.name
        self.metadata = record.metadata
        self.description = record.description
        self.tags: Sequence[str] = record.tags
        self.image = image
        self.data_path = project.path.parent / "data" / record.id / DATA
        self._project = project
        self._record = record
        self._snapshot: _Snapshot | None = None

    @property
    def image_type(self) -> str | None:
        """QuPath's constant ("BRIGHTFIELD_H_E"); "UNSET" while the entry has no data."""
        return self._data().image_type

    def objects(self) -> list[PathObject]:
        """Every object but the root, parents before children, in QuPath's order."""
        return self._data().objects()

    def annotations(self) -> list[PathObject]:
        """The annotations alone."""
        return self._data().annotations()

    def detections(self) -> gpd.GeoDataFrame:
        """Detections, cells and tiles in bulk (``FRAME_COLUMNS`` and measurements)."""
        return self._data().detections()

    def write(self, change: HierarchyChange) -> None:
        """Apply a change to ``data.qpdata`` in one atomic replacement.

        The file that was there stays as ``data.qpdata.bkp``. Where that backup is what
        was read, it is left alone and the damaged file stays as ``data.qpdata.damaged``.

        Raises
        ------
        ChangedSinceReadError : the file is not the one that was read.
        ProjectError : an added detection's parent is not in the file.
        """
        data = self._data()
        snapshot = self._snapshot
        assert snapshot is not None
        check_unchanged(self.data_path, snapshot.main)
        self._project._loaded = None  # until written, memory and file differ
        data.remove(change.remove)
        if change.add is not None and len(change.add):
            data.add_detections(change.add, self._colors(change.add.get("classification", ())))
        if change.batches is not None:
            data.add_batches(change.batches, self._colors(change.batches.classes))
        if change.annotations:
            classes = [annotation.classification for annotation in change.annotations]
            data.add_annotations(change.annotations, self._colors(classes))
        self.data_path.parent.mkdir(parents=True, exist_ok=True)
        backup = self._damaged_path() if snapshot.from_backup else self._sibling(BACKUP)
        new = replace_file(self.data_path, data.write, expected=snapshot.main, backup=backup)
        self._snapshot = _Snapshot(new, from_backup=False)
        if change.batches is None:  # else memory lacks what went straight to the file
            self._project._loaded = (self.id, data)

    def _data(self) -> EntryData:
        """Return the entry's data, read now or still in memory."""
        loaded = self._project._loaded
        known = self._snapshot
        if loaded is not None and loaded[0] == self.id and known is not None:
            if not is_unchanged(self.data_path, known.main):
                check_unchanged(self.data_path, known.main)
            return loaded[1]
        data, snapshot = self._read()
        if known is not None and snapshot != known:
            check_unchanged(self.data_path, known.main)
        self._snapshot = snapshot
        self._project._loaded = (self.id, data)
        return data

    def _read(self) -> tuple[EntryData, _Snapshot]:
        """Read the data, else its backup (as QuPath does), else make empty data."""
        error: FormatError | None = None
        try:
            content, main = read_file(self.data_path)
        except FileNotFoundError:
            main = MISSING
        except OSError as problem:
            raise ProjectError(
                self.data_path, f"cannot be read ({problem.strerror})", "Check its permissions."
            ) from problem
        else:
            try:
                return self._parsed(content, self.data_path), _Snapshot(main, from_backup=False)
            except FormatError as damage:
                error = damage
        backup = self._sibling(BACKUP)
        try:
            content, _ = read_file(backup)
            data = self._parsed(content, backup)
        except (OSError, FormatError):
            if error is not None:
                raise error from None
            return self._new(), _Snapshot(main, from_backup=False)
        reason = f"is damaged ({error.cause})" if error is not None else "is missing"
        warnings.warn(
            f"{self.data_path} {reason}; its backup {BACKUP} was read instead, as QuPath does. "
            "What was saved after the backup may be lacking.",
            RecoveredDataWarning,
            stacklevel=5,
        )
        return data, _Snapshot(main, from_backup=True)

    def _parsed(self, content: bytes, path: Path) -> EntryData:
        try:
            return QpData.read(content)
        except FormatError as error:
            raise FormatError(path, error.cause, error.remedy) from error

    def _new(self) -> EntryData:
        """Return data for an image that QuPath has not opened yet."""
        return self._empty()

    def _empty(self) -> QpData:
        return QpData.new(
            self._record.server or {},
            identifier=str(self.data_path),
            properties={"PROJECT_ENTRY_ID": f"{self._project.path}::{self.id}"},
        )

    def _colors(self, names: Iterable[object]) -> dict[str, Color]:
        """Return a colour for every class that is named: the project's, else QuPath's."""
        listed = self._project.classes
        known = {name for name in names if isinstance(name, str)}
        return {name: listed.get(normal_name(name), default_color(name)) for name in known}

    def _sibling(self, name: str) -> Path:
        return self.data_path.with_name(name)

    def _damaged_path(self) -> Path:
        """Return a free name for the damaged file, so that no earlier one is lost."""
        path, number = self._sibling(DAMAGED), 1
        while path.exists():
            number += 1
            path = self._sibling(f"{DAMAGED}-{number}")
        return path
