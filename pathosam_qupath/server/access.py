"""Which files of this machine the server may open for a client."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pathosam_qupath.server.problems import ProblemError


class Roots:
    """Folders below which slides and projects may lie; symbolic links are followed first."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(dict.fromkeys(folder.resolve() for folder in folders))

    def check(self, text: str) -> Path:
        """The resolved path of a file or folder that may be opened.

        Raises
        ------
        ProblemError : it is not absolute, or lies outside the roots (whether it exists or not).
        """
        if "\0" in text or not Path(text).is_absolute():
            raise ProblemError(
                422, "invalid_request", f"path {text!r}", "it is not absolute", "Give a full path."
            )
        try:
            path = Path(text).resolve()
        except (OSError, RuntimeError) as error:
            raise self._outside(text) from error
        if not any(path.is_relative_to(folder) for folder in self.folders):
            raise self._outside(text)
        return path

    def check_project(self, text: str) -> Path:
        """The file of a project that may be opened, named by itself or by its folder.

        Raises
        ------
        ProblemError : it lies outside the roots, or is a link out of them.
        ProjectError : there is no project.
        """
        from pathosam_qupath.qupath.project_file import find_project_file

        return self.check(str(find_project_file(self.check(text))))

    def _outside(self, text: str) -> ProblemError:
        listed = ", ".join(map(str, self.folders)) or "none"
        return ProblemError(
            403,
            "outside_roots",
            text,
            f"it lies outside the folders that the server may read ({listed})",
            "Start the server with --root and the folder of the images, or send pixels.",
        )


def path_of_uri(uri: str) -> str:
    """The path that a ``file:`` URI names.

    Raises
    ------
    ProblemError : it is another kind of URI; nothing is ever fetched.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        raise ProblemError(
            422,
            "invalid_request",
            f"uri {uri!r}",
            "only file: URIs of this machine can be opened",
            "Send the pixels instead.",
        )
    return url2pathname(parts.path)
