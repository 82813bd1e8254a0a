"""A QuPath project behind one interface, with QuPath's own code or without Java."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol
from uuid import UUID

from pathosam_qupath.errors import BackendError, UsageError
from pathosam_qupath.qupath.objects import PathObject

if TYPE_CHECKING:
    import geopandas as gpd

Backend = Literal["auto", "paquo", "embedded"]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class ImageSource:
    """Where an entry's pixels are, and how QuPath's frame lies on the file's pixels.

    The crop is cut out first, then turned.

    Attributes
    ----------
    uri : as the project stores it.
    path : the file found (after relocation and path mapping), or None.
    series : which image of the file.
    rotation : clockwise degrees, 0, 90, 180 or 270, that QuPath applies.
    crop : (x, y, width, height) in file pixels that QuPath shows, or None.
    mpp : (x, y) micrometres per pixel that the project stores for the image as QuPath
        shows it (after rotation and crop), or None where it is not calibrated.
    problem : why the pixels cannot be had ("file not found: …"), or None.
    """

    uri: str | None
    path: Path | None
    series: int = 0
    rotation: int = 0
    crop: tuple[int, int, int, int] | None = None
    mpp: tuple[float, float] | None = None
    problem: str | None = None


class DetectionBatches(Protocol):
    """Detections that are too many to be held at once."""

    @property
    def counts(self) -> Mapping[str | None, int]:
        """How many go under each parent: an annotation's id as text, or None for the root."""

    @property
    def classes(self) -> Collection[str]:
        """The classes that occur."""

    def under(self, parent: str | None, /) -> Iterator[gpd.GeoDataFrame]:
        """The detections of a parent, some at a time, in the same order at each call."""


@dataclass(frozen=True, eq=False)
class HierarchyChange:
    """What to take out of an image's hierarchy and what to put in, in one write.

    Attributes
    ----------
    remove : ids of objects to remove; children of a removed object move to its parent.
    add : detections (columns: ``FRAME_COLUMNS``; ``parent`` an annotation's id as text,
        or None for the root; every further float column is a measurement).
    batches : detections that come while the file is written, after those of ``add``.
    annotations : annotations to add, in their order; measurements are not written.
    """

    remove: frozenset[UUID] = frozenset()
    add: gpd.GeoDataFrame | None = None
    batches: DetectionBatches | None = None
    annotations: tuple[PathObject, ...] = ()


class Entry(Protocol):
    """One image of a project."""

    @property
    def id(self) -> str:
        """The entry's number as text; its folder is ``data/<id>``."""

    @property
    def name(self) -> str:
        """The name shown in QuPath."""

    @property
    def image_type(self) -> str | None:
        """QuPath's constant ("BRIGHTFIELD_H_E"); "UNSET" while the entry has no data."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The entry's key-value pairs."""

    @property
    def description(self) -> str | None:
        """The entry's description, or None."""

    @property
    def tags(self) -> Sequence[str]:
        """The entry's tags (QuPath 0.6 and later)."""

    @property
    def image(self) -> ImageSource:
        """Where the pixels are."""

    @property
    def data_path(self) -> Path:
        """The entry's ``data.qpdata``; it need not exist."""

    def objects(self) -> list[PathObject]:
        """Every object but the root, parents before children, in QuPath's order."""

    def annotations(self) -> list[PathObject]:
        """The annotations alone (cheap where there are many detections)."""

    def detections(self) -> gpd.GeoDataFrame:
        """Detections, cells and tiles in bulk (columns: ``FRAME_COLUMNS`` + measurements)."""

    def write(self, change: HierarchyChange) -> None:
        """Apply a change to ``data.qpdata`` in one atomic replacement.

        Raises
        ------
        ChangedSinceReadError : the file is not the one that was read.
        """


class Project(Protocol):
    """An open project; a context manager."""

    @property
    def path(self) -> Path:
        """The ``.qpproj`` file."""

    @property
    def backend(self) -> Literal["paquo", "embedded"]:
        """Which backend this is."""

    @property
    def qupath_version(self) -> str | None:
        """The version of QuPath that saved the project, or None."""

    @property
    def entries(self) -> Sequence[Entry]:
        """The project's images, in its order."""

    @property
    def classes(self) -> Mapping[str, Color]:
        """The project's class list with colours, in order; empty where it has none."""

    def add_classes(self, classes: Mapping[str, Color]) -> None:
        """Append the classes that the project's list lacks; others keep their colour."""

    def close(self) -> None:
        """Let go of what was read."""

    def __enter__(self) -> Project: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True)
class PathMap:
    r"""Replacement of the beginning of image paths: pairs (from, to), tried in order.

    The first part is a folder (or file) as the project stores it, in its own system's
    spelling (``/slides``, ``C:\slides``, ``\\server\slides``); the second a local one.
    """

    pairs: tuple[tuple[str, str], ...] = field(default_factory=tuple)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> PathMap:
        """Return the map that ``FROM=TO`` texts describe.

        Raises
        ------
        UsageError : a text without "=", or with nothing on one side of it.
        """
        pairs = []
        for text in texts:
            start, equals, target = text.partition("=")
            if not (equals and start.strip() and target.strip()):
                raise UsageError(
                    f"path map {text!r}",
                    "is not FROM=TO",
                    "Write for instance --path-map /old/slides=/new/slides.",
                )
            pairs.append((start.strip(), target.strip()))
        return cls(tuple(pairs))


def open_project(
    path: str | Path, backend: Backend = "auto", *, path_map: PathMap | None = None
) -> Project:
    """Open a QuPath project.

    Parameters
    ----------
    path : the project's folder or its ``.qpproj`` file.
    backend : "paquo" for QuPath's own code on a Java machine; "embedded" for this
        package's reader and writer of the same files; "auto" for paquo where a QuPath
        installation is found (the way paquo finds it), else embedded.
    path_map : where image files are now, for those that moved.

    Raises
    ------
    ProjectError : no such project, or one that cannot be read.
    BackendError : paquo was asked for and cannot run.
    """
    from pathosam_qupath.qupath.jvm import find_installation
    from pathosam_qupath.qupath.project_file import find_project_file

    if backend not in ("auto", "paquo", "embedded"):
        raise UsageError(f"backend {backend!r}", "is not known", "Use auto, paquo or embedded.")
    file = find_project_file(path)
    mapping = path_map or PathMap()
    if backend == "paquo" or (backend == "auto" and find_installation() is not None):
        from pathosam_qupath.qupath.paquo_project import PaquoProject

        try:
            return PaquoProject(file, path_map=mapping)
        except BackendError as error:
            if backend == "paquo":
                raise
            warnings.warn(f"{error} Going on with the embedded backend.", stacklevel=2)
    from pathosam_qupath.qupath.embedded_project import EmbeddedProject

    return EmbeddedProject(file, path_map=mapping)
