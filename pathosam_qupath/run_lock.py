"""One process at a time works on a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pathosam_qupath.errors import RunError

_LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the system lets go when the process ends, however it ends.

    On file systems without locks (some network shares) nothing is held.

    Raises
    ------
    RunError : another process holds it, or the folder cannot be written.
    """
    path = folder / _LOCK
    try:
        file = path.open("a+b")
    except OSError as error:
        raise RunError(
            folder, f"cannot be written ({error.strerror})", "Check the folder's permissions."
        ) from error
    with file:
        if not _hold(file):
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            raise RunError(
                f"run {folder.name}",
                f"{holder} is working on it",
                "Wait until that has ended, or stop it; then run the same command again.",
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} of {_host()}\n".encode())
        file.flush()
        yield


def _host() -> str:
    import platform

    return platform.node() or "this machine"


def _hold(file: BinaryIO) -> bool:
    """Lock an open file without waiting; False where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            # A byte far beyond the text: a locked byte cannot be read by others there.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            file.seek(0)
        return True
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
