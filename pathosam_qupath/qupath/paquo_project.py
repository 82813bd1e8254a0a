"""A QuPath project through paquo: QuPath's own code reads and writes the hierarchies.

paquo opens the project (read only: its own way of saving rewrites what nobody changed)
and QuPath's classes read, change and write each image's objects. Where images are, what
a file was when it was read, and the replacement of a file in one step are the same for
both backends and come from :mod:`~pathosam_qupath.qupath.embedded_project`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pathosam_qupath.errors import ProjectError
from pathosam_qupath.qupath.embedded_project import EmbeddedEntry, EmbeddedProject
from pathosam_qupath.qupath.jvm import start_qupath
from pathosam_qupath.qupath.project import PathMap

if TYPE_CHECKING:
    from paquo.projects import QuPathProject

    from pathosam_qupath.qupath.paquo_data import PaquoData


class PaquoProject(EmbeddedProject):
    """A project whose hierarchies QuPath reads and writes.

    Parameters
    ----------
    path : the ``.qpproj`` file.
    path_map : where image files are now, for those that moved.
    memory : limit of Java's heap, see :func:`~pathosam_qupath.qupath.jvm.start_qupath`.

    Attributes
    ----------
    paquo : paquo's project, opened read only.
    running_version : the version of the QuPath that does the work.

    Raises
    ------
    BackendError : QuPath cannot be started.
    ProjectError : the project cannot be read.
    """

    backend: Literal["paquo", "embedded"] = "paquo"

    def __init__(
        self, path: Path, *, path_map: PathMap | None = None, memory: str | None = None
    ) -> None:
        super().__init__(path, path_map=path_map)
        self.running_version = start_qupath(memory)
        self.paquo = _open_with_paquo(self.path)
        self.entries: Sequence[EmbeddedEntry] = tuple(
            PaquoEntry(self, entry._record, entry.image) for entry in self.entries
        )


class PaquoEntry(EmbeddedEntry):
    """One image of a :class:`PaquoProject`."""

    def _parsed(self, content: bytes, path: Path) -> PaquoData:
        from pathosam_qupath.qupath.paquo_data import PaquoData

        # From the file, not from the bytes: a copy inside Java would double the memory.
        # If the file changed since they were read, the next access finds that out.
        return PaquoData.read(path)

    def _new(self) -> PaquoData:
        from pathosam_qupath.qupath.paquo_data import PaquoData

        # QuPath 0.5 cannot make data for an image without opening it; reading it can.
        return PaquoData.read(self._empty().to_bytes())


def _open_with_paquo(path: Path) -> QuPathProject:
    """Open a project with paquo, read only, and leave no trace in its folder."""
    from jpype import JException
    from paquo.projects import QuPathProject

    classifiers = path.parent / "classifiers"
    had_classifiers = classifiers.exists()
    try:
        return QuPathProject(path, mode="r")
    except JException as error:
        raise ProjectError(
            path,
            f"QuPath cannot open the project ({error})",
            "Open it in QuPath to see what is wrong, or use the embedded backend.",
        ) from error
    finally:
        if not had_classifiers:
            with contextlib.suppress(OSError):  # only if QuPath made it, and it is empty
                classifiers.rmdir()
