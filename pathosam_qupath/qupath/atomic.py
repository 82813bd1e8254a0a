"""Replace a file so that a crash at any instruction leaves the old one or the new one.

A ``data.qpdata`` holds hours of a pathologist's work and QuPath takes no lock on it, so
there are two dangers: to die halfway through a write, and to overwrite what QuPath saved
in the meantime. Against the first, the new bytes go to a temporary file of the same
folder, reach the disk, and take the old name by one rename. Against the second, a
:class:`Fingerprint` is taken when a file is read and compared just before the rename.

The file that was replaced stays as a backup (``data.qpdata.bkp``, the name from which
QuPath restores). It is made by a hard link that gets its name only after the rename:
the backup and the file never share their bytes under names that QuPath knows, since
QuPath truncates files in place when it saves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pathosam_qupath.errors import ChangedSinceReadError, ProjectError

_TEMPORARY = ".pathosam-tmp"
_PIECE = 1 << 22


@dataclass(frozen=True)
class Fingerprint:
    """What a file was when it was read: size in bytes, modification time, content."""

    size: int
    mtime_ns: int
    sha256: str

    @property
    def exists(self) -> bool:
        """False for the fingerprint of a file that is not there."""
        return self.size >= 0


MISSING = Fingerprint(-1, -1, "")
"""The fingerprint of a file that does not exist."""


def replace_file(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    expected: Fingerprint | None = None,
    backup: Path | None = None,
) -> Fingerprint:
    """Write a file anew, atomically and durably.

    Parameters
    ----------
    path : the file; a symbolic link is followed. Its folder must exist.
    write : writes the new content to the open temporary file it gets (whose ``name`` is
        the path, for writers that want one). An exception leaves everything as it was.
    expected : what the file must still be, as :func:`fingerprint` or :func:`read_file`
        gave it (:data:`MISSING`: it must not exist). None: whatever it is.
    backup : name that the replaced file keeps, in the same folder; None drops it.

    Returns
    -------
    fingerprint : of the file just written.

    Raises
    ------
    ChangedSinceReadError : the file is not the expected one; nothing was written.
    ProjectError : the folder cannot be written.
    """
    path = path.resolve()
    if expected is not None:
        check_unchanged(path, expected)
    _sweep(path)
    try:
        temporary, file = _create(path)
    except OSError as error:
        raise ProjectError(
            path, f"cannot be written ({error.strerror})", "Check the folder's permissions."
        ) from error
    spare = temporary.with_name(temporary.name + ".old")
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(path, temporary)
            if sys.platform == "win32":
                file.close()
            new = fingerprint(temporary)
            if expected is not None:
                check_unchanged(path, expected)
            if backup is not None:
                _keep(path, spare)
            temporary.replace(path)
            if backup is not None and spare.exists():
                spare.replace(backup)
        _sync_folder(path.parent)
    except OSError as error:
        raise ProjectError(
            path, f"cannot be written ({error.strerror})", "Check free space and permissions."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        spare.unlink(missing_ok=True)
    return new


def read_file(path: Path) -> tuple[bytes, Fingerprint]:
    """Return a file's bytes with their fingerprint, from one consistent state.

    Raises
    ------
    FileNotFoundError : there is no such file.
    ChangedSinceReadError : the file keeps changing while it is read.
    """
    for _ in range(3):
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            content = file.read()
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            digest = hashlib.sha256(content).hexdigest()
            return content, Fingerprint(len(content), after.st_mtime_ns, digest)
    raise ChangedSinceReadError(
        path, "is being written by another program", "Try again when that has finished."
    )


def fingerprint(path: Path) -> Fingerprint:
    """Return a file's fingerprint, :data:`MISSING` where there is none (reads it all)."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = 0
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return MISSING
    return Fingerprint(size, status.st_mtime_ns, digest.hexdigest())


def check_unchanged(path: Path, expected: Fingerprint) -> None:
    """Raise unless a file still has the content that a fingerprint was taken of.

    A new modification time alone (a copy, a ``touch``) is no change; the same time and
    size with other bytes is one.

    Raises
    ------
    ChangedSinceReadError : the file changed, appeared or vanished.
    """
    now = fingerprint(path)
    if (now.size, now.sha256) == (expected.size, expected.sha256):
        return
    if not now.exists:
        cause = "was removed after it was read"
    elif not expected.exists:
        cause = "was created by another program in the meantime"
    else:
        cause = f"changed after it was read ({expected.size:,} bytes then, {now.size:,} now)"
    raise ChangedSinceReadError(
        path,
        cause,
        "Nothing was written. Save and close the image in QuPath, then run this again.",
    )


def is_unchanged(path: Path, expected: Fingerprint) -> bool:
    """Tell by size and modification time alone whether a file looks as it was read."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return not expected.exists
    return (status.st_size, status.st_mtime_ns) == (expected.size, expected.mtime_ns)


def _create(path: Path) -> tuple[Path, BinaryIO]:
    """Open a new temporary file beside ``path``, locked as long as it is open."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    file = temporary.open("x+b")
    _lock(file)
    return temporary, file


def _keep(path: Path, spare: Path) -> None:
    """Give the present file a second name (a copy where links are not possible)."""
    try:
        os.link(path, spare)
    except FileNotFoundError:
        return
    except OSError:
        with path.open("rb") as source, spare.open("xb") as target:
            shutil.copyfileobj(source, target, _PIECE)
            target.flush()
            os.fsync(target.fileno())


def _sweep(path: Path) -> None:
    """Remove temporary files that a killed process left; those in use are locked."""
    for left in path.parent.glob(f"{_escaped(path.name)}.*{_TEMPORARY}*"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            if _lock(file):
                left.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(file: BinaryIO) -> bool:
    """Lock an open file without waiting; False where another process holds it."""
    if sys.platform == "win32":
        return True  # an open file cannot be unlinked there
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return False  # a file system without locks: leave the file alone
    return True


def _sync_folder(folder: Path) -> None:
    """Make renames durable (a folder cannot be opened on Windows)."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
