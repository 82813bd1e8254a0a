"""The ``.qpproj`` file: which images a project has, and where it was saved.

It is JSON as Gson prints it. What this package does not know of it is kept: a document
that is read and written again has its keys, their order and its numbers' digits, byte
for byte. QuPath loads an image from the entry's ``serverBuilder`` in this file; the
``server.json`` of the entry's folder is only there for recovery.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pathosam_qupath.errors import FormatError, ProjectError
from pathosam_qupath.qupath.atomic import Fingerprint, read_file, replace_file

EXTENSION = ".qpproj"


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image of a project file.

    Attributes
    ----------
    id : the entry's number as text; its folder is ``data/<id>``.
    server : the JSON of QuPath's server builder, None where there is none.
    """

    id: str
    name: str
    description: str | None
    metadata: Mapping[str, str]
    tags: tuple[str, ...]
    server: Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class ProjectFile:
    """A project file as it was read.

    Attributes
    ----------
    version : QuPath's version that saved it, or None.
    uri : where the project was when it was saved, or None.
    last_id : the highest entry number ever given.
    document : the whole JSON, for :func:`write_project_file`.
    """

    path: Path
    version: str | None
    uri: str | None
    last_id: int
    images: tuple[ImageRecord, ...]
    document: dict[str, Any]
    fingerprint: Fingerprint = field(repr=False)

    @property
    def folder(self) -> Path:
        """The project's folder."""
        return self.path.parent


def find_project_file(path: str | Path) -> Path:
    """Return the ``.qpproj`` file that a user means by a file or a folder.

    Raises
    ------
    ProjectError : there is none, or a folder has several.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix == EXTENSION and p.is_file())
        if len(found) == 1:
            return _absolute(found[0])
        if found:
            names = ", ".join(p.name for p in found)
            raise ProjectError(path, f"has several projects ({names})", "Name one of them.")
        if backups := sorted(path.glob(f"*{EXTENSION}.backup")):
            raise ProjectError(
                path,
                f"has no project file, but the backup {backups[0].name}",
                f"Copy it to {backups[0].stem} to restore the project.",
            )
        raise ProjectError(
            path,
            "is not a QuPath project (no .qpproj file in it)",
            "Name the folder that QuPath made for the project, or its .qpproj file.",
        )
    if not path.is_file():
        raise ProjectError(
            path, "does not exist", "Name a QuPath project's folder or .qpproj file."
        )
    if path.suffix != EXTENSION:
        raise ProjectError(
            path, "is not a .qpproj file", "Name a QuPath project's folder or .qpproj file."
        )
    return _absolute(path)


def _absolute(path: Path) -> Path:
    """Return a full path without resolving links: the data lie beside the name given."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path.resolve follows links)


def read_project_file(path: Path) -> ProjectFile:
    """Read a ``.qpproj`` file.

    Raises
    ------
    FormatError : it is not a project file that QuPath 0.2 or later wrote.
    """
    content, mark = read_file(path)
    try:
        document = json.loads(content, parse_float=_Number)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            path, f"is not valid JSON ({error})", f"Restore it from {path.name}.backup."
        ) from error
    if not isinstance(document, dict):
        raise FormatError(path, "is not a JSON object", f"Restore it from {path.name}.backup.")
    version = document.get("version")
    if version is None and "lastID" not in document:
        raise FormatError(
            path,
            "has neither a version nor a last ID",
            "It was made before QuPath 0.2: open it in QuPath once to convert it.",
        )
    images = document.get("images") or []
    if not isinstance(images, list):
        raise FormatError(path, "'images' is not a list", f"Restore it from {path.name}.backup.")
    records = tuple(_record(path, index, item) for index, item in enumerate(images))
    numbers = [int(record.id) for record in records]
    if len(set(numbers)) != len(numbers):
        raise FormatError(
            path, "gives one entry ID to several images", f"Restore it from {path.name}.backup."
        )
    last = document.get("lastID")
    uri = document.get("uri")
    return ProjectFile(
        path=path,
        version=str(version) if version is not None else None,
        uri=uri if isinstance(uri, str) else None,
        last_id=max([last if isinstance(last, int) else 0, *numbers]),
        images=records,
        document=document,
        fingerprint=mark,
    )


def write_project_file(
    path: Path, document: Mapping[str, Any], *, expected: Fingerprint | None = None
) -> None:
    """Write a project file as QuPath prints it; the old one stays as ``….backup``.

    Raises
    ------
    ChangedSinceReadError : the file is no longer the ``expected`` one.
    """
    text = gson_text(document).encode()
    backup = path.with_name(path.name + ".backup")
    replace_file(path, lambda file: file.write(text), expected=expected, backup=backup)


def gson_text(value: object) -> str:
    """Return JSON text with the indentation and the escapes of Gson's pretty printer."""
    return "".join(_pieces(value, "\n"))


class _Number(float):
    """A JSON number that is written with the digits it was read with."""

    text: str

    def __new__(cls, text: str) -> _Number:
        number = super().__new__(cls, text)
        number.text = text
        return number


_ESCAPES = str.maketrans(
    {
        **{chr(code): f"\\u{code:04x}" for code in range(32)},
        **{char: f"\\u{ord(char):04x}" for char in "<>&='\u2028\u2029"},
        **{"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"},
        **{'"': '\\"', "\\": "\\\\"},
    }
)


def _pieces(value: object, indent: str) -> Iterator[str]:
    deeper = indent + "  "
    if isinstance(value, str):
        yield f'"{value.translate(_ESCAPES)}"'
    elif isinstance(value, _Number):
        yield value.text
    elif isinstance(value, Mapping):
        yield "{"
        for index, (key, item) in enumerate(value.items()):
            yield f'{"," if index else ""}{deeper}"{str(key).translate(_ESCAPES)}": '
            yield from _pieces(item, deeper)
        yield f"{indent}}}" if value else "}"
    elif isinstance(value, list | tuple):
        yield "["
        for index, item in enumerate(value):
            yield ("," if index else "") + deeper
            yield from _pieces(item, deeper)
        yield f"{indent}]" if value else "]"
    else:
        yield json.dumps(value)


def _record(path: Path, index: int, item: object) -> ImageRecord:
    number = item.get("entryID") if isinstance(item, dict) else None
    if not isinstance(item, dict) or type(number) is not int:
        raise FormatError(
            path, f"image {index + 1} has no entry ID", f"Restore it from {path.name}.backup."
        )
    server, metadata, tags = (item.get(key) for key in ("serverBuilder", "metadata", "tags"))
    description, name = item.get("description"), item.get("imageName")
    return ImageRecord(
        id=str(number),
        name=name if isinstance(name, str) else f"Image {number}",
        description=description if isinstance(description, str) else None,
        metadata={
            str(key): str(value)
            for key, value in (metadata if isinstance(metadata, dict) else {}).items()
        },
        tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        server=server if isinstance(server, dict) else None,
    )
