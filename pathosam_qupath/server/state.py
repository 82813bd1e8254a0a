"""The folder through which a server and its clients find each other.

``server.json`` holds the server's address and its token. Whoever reads it may use the
server, so nobody but its owner may: the folder has mode 0700, the file 0600, and a folder
that others can look into is refused. Windows has no such modes; there the folder lies in
the user's profile, which other users cannot read by default.

A lock that the system lets go of when its process ends tells a live server from one that
was killed; a process id could have been given to another program since.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pathosam_qupath.errors import UsageError

STATE_FILE = "server.json"
LINK_FILE = "page.html"
"""Opens the server's page in a browser. A command line with the token would be seen by all
users of the machine; this file is read by its owner alone."""

_LOCK_FILE = "server.lock"


@dataclass(frozen=True)
class ServerState:
    """What ``server.json`` says.

    Attributes
    ----------
    url : of the server, without a path.
    token : what every request must bear.
    protocol : the oldest and the newest protocol version that the server speaks.
    started : UTC, ISO 8601.
    """

    url: str
    token: str
    pid: int
    version: str
    protocol: dict[str, int]
    started: str

    def public(self) -> dict[str, object]:
        """Everything but the token."""
        return {name: value for name, value in asdict(self).items() if name != "token"}


def new_token() -> str:
    """A token of 256 random bits, 43 characters that need no quoting in a URL."""
    return secrets.token_urlsafe(32)


class StateFolder:
    """The folder, held by one server at a time; a context manager.

    Parameters
    ----------
    path : made with mode 0700 where it does not exist.

    Raises
    ------
    UsageError : another server holds it, other users can read it, or it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        _make_private(self.path)
        self._lock = _locked(self.path)

    @property
    def state_path(self) -> Path:
        """Where ``server.json`` lies."""
        return self.path / STATE_FILE

    @property
    def link_path(self) -> Path:
        """Where the link to the page lies."""
        return self.path / LINK_FILE

    def folder(self, name: str) -> Path:
        """A folder inside, made where it does not exist."""
        inside = self.path / name
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside

    def publish(self, state: ServerState) -> None:
        """Write ``server.json`` and the link to the page."""
        target = f"{state.url}/?token={state.token}"
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={target}">PathoSAM\n'
        self._write(self.link_path, page)
        self._write(self.state_path, json.dumps(asdict(state), indent=2) + "\n")

    def _write(self, path: Path, text: str) -> None:
        """Write a file, atomically, readable by its owner alone from the first byte."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def __enter__(self) -> StateFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.state_path.unlink(missing_ok=True)
        self.link_path.unlink(missing_ok=True)
        self._lock.close()


def read_state(folder: Path) -> ServerState | None:
    """What ``server.json`` says; None where there is none that can be read."""
    try:
        stored: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return ServerState(**{name: stored[name] for name in ServerState.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise UsageError(
            path, f"the folder cannot be made ({error.strerror})", "Choose another with --state."
        ) from error
    if sys.platform == "win32":
        return
    if found.st_uid != os.getuid():
        raise UsageError(
            path, "the folder belongs to another user", "Choose one of your own with --state."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UsageError(
            path,
            "other users can look into the folder that is to hold the server's token",
            f"Run `chmod 700 {path}`, or choose another folder with --state.",
        )


def _locked(folder: Path) -> BinaryIO:
    """The open, locked lock file; the lock ends with the process, however it ends."""
    file = os.fdopen(os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        other = read_state(folder)
        where = "" if other is None else f" at {other.url} (process {other.pid})"
        raise UsageError(
            folder,
            f"a server is running already{where}",
            "Use that one, end it first, or give this one a folder of its own with --state.",
        ) from error
    return file
