"""Find an image file from the URI that a project stores, also after a move.

QuPath stores absolute URIs. When a project was moved together with its images, the
place of the image relative to the place where the project was saved (``uri`` in the
project file) still holds; then QuPath looks for the file's name inside the project's
folder, four levels deep. Both are done here, on the URI's path alone: so a project
saved on Windows is found again on Linux and the other way round.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pathosam_qupath.qupath.project import PathMap
from pathosam_qupath.qupath.project_file import ProjectFile

_SEARCH_DEPTH = 4


class ImageFinder:
    """Finds the image files of one project; looks through its folder at most once."""

    def __init__(self, project: ProjectFile, path_map: PathMap) -> None:
        self._project = project
        self._path_map = path_map

    def find(self, uri: str) -> tuple[Path | None, str | None]:
        """Return the file of an image URI, or the reason why there is none.

        Tried in order: the path map (what the user says goes first), the stored place,
        the place relative to the moved project, the name inside the project's folder.
        """
        stored = stored_path(uri)
        if stored is None:
            kind = uri.partition(":")[0]
            return None, f"not a file on disk ({kind}: …); download it and add the copy in QuPath"
        for candidate in self._candidates(stored):
            if os.path.exists(candidate):  # noqa: PTH110 (Path.exists raises where it may not look)
                return candidate, None
        return None, (
            f"file not found: {stored}; if it was moved, say where to with "
            f"--path-map '{posixpath.dirname(stored) or '/'}=/new/folder'"
        )

    def _candidates(self, stored: str) -> Iterator[Path]:
        yield from map_path(stored, self._path_map)
        if Path(stored).is_absolute():
            yield Path(stored)
        if (moved := _relative(stored, self._project)) is not None:
            yield moved
        if (inside := self._names.get(posixpath.basename(stored))) is not None:
            yield inside

    @cached_property
    def _names(self) -> dict[str, Path]:
        """Files in the project's folder and its visible subfolders, shallow ones first."""
        names: dict[str, Path] = {}
        level = [self._project.folder]
        for _ in range(_SEARCH_DEPTH):
            deeper: list[Path] = []
            for folder in level:
                try:
                    with os.scandir(folder) as found:
                        items = sorted(found, key=lambda item: item.name)
                except OSError:
                    continue  # a folder that may not be listed holds nothing for us
                for item in items:
                    if item.is_file():
                        names.setdefault(item.name, Path(item.path))
                    elif item.is_dir() and not item.name.startswith("."):
                        deeper.append(Path(item.path))
            level = deeper
        return names


def stored_path(uri: str) -> str | None:
    """Return the path in a ``file:`` URI or a plain path, with forward slashes.

    ``/slides/a.svs``, ``C:/slides/a.svs`` or ``//server/share/a.svs``; None for other
    URIs (``http:``, ``omero:``).
    """
    if re.match(r"[A-Za-z]:([\\/]|$)", uri) or uri.startswith(("\\\\", "/")):
        plain = uri.replace("\\", "/")
        return plain[0].upper() + plain[1:]  # a drive's letter has no case
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme.lower() != "file":
        return None if parts.scheme else uri.replace("\\", "/")
    path = unquote(parts.path)
    if parts.netloc and parts.netloc != "localhost":
        return f"//{unquote(parts.netloc)}{path}"  # file://server/share/…
    if path.startswith("//"):
        return "//" + path.lstrip("/")  # file:////server/share/…, as Java writes it
    if re.match(r"/[A-Za-z]:(/|$)", path):
        return path[1].upper() + path[2:]  # file:/C:/…
    return path


def map_path(stored: str, path_map: PathMap) -> Iterator[Path]:
    """Yield the places that a path map gives for a stored path.

    A pair applies where FROM is the path or one of its parent folders. FROM may be
    written with either slash or as a URI; Windows paths match in any case of letters.
    """
    for start, target in path_map.pairs:
        prefix = (stored_path(start) or start).rstrip("/")
        windows = re.match(r"[A-Za-z]:|//", stored) is not None
        head, rest = stored[: len(prefix)], stored[len(prefix) :]
        same = head.lower() == prefix.lower() if windows else head == prefix
        if same and (not rest or rest.startswith("/")):
            yield Path(target).expanduser() / rest.lstrip("/")


def _relative(stored: str, project: ProjectFile) -> Path | None:
    """Return the image's place relative to the project, in the project's new place."""
    previous = stored_path(project.uri) if project.uri else None
    if previous is None or _root(previous) != _root(stored):
        return None
    relation = posixpath.relpath(stored, posixpath.dirname(previous))
    return Path(os.path.normpath(project.folder / relation))


def _root(path: str) -> str:
    match = re.match(r"[A-Za-z]:/|//[^/]+/[^/]+/?|/", path)
    return match.group().lower() if match else ""
