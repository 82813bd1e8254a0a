"""Signs that a project is open in QuPath, which takes no lock on its files.

A QuPath of the same user on this machine is found among the processes; one elsewhere (a
shared disk) shows only by files that changed a moment ago. Neither proves that *this*
project is open, so these are hints: what is written stays safe either way, since a file that
changed since it was read is not overwritten. What an open window holds in memory, though,
is saved over everything at its next save.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

RECENT = 120.0
"""Seconds within which a change of the project's files is told."""


def signs_of_qupath(
    project_file: Path, data_paths: Iterable[Path], *, own_writes: float = 0.0
) -> list[str]:
    """What speaks for the project being open in QuPath, in words; empty where nothing does.

    Parameters
    ----------
    data_paths : the ``data.qpdata`` of the images that are about to be written.
    own_writes : when this program last wrote here, in seconds since 1970.
    """
    folder = project_file.parent
    signs = []
    for pid, command in _processes():
        if not _is_qupath(command):
            continue
        if any(str(folder) in word for word in command):
            signs.append(f"QuPath (process {pid}) was started with this project")
        else:
            signs.append(f"QuPath is running (process {pid})")
    now = time.time()
    for path in (project_file, *data_paths):
        try:
            saved = path.stat().st_mtime
        except OSError:
            continue
        if saved > own_writes and 0 <= now - saved < RECENT:
            signs.append(f"{path.relative_to(folder)} was saved {now - saved:.0f} s ago")
            break
    return signs


def _is_qupath(command: list[str]) -> bool:
    """Whether a command line is QuPath's window, not this program with QuPath's code in it."""
    if not command:
        return False
    name = Path(command[0].replace("\\", "/")).name.lower()
    if name.startswith("qupath"):
        return True
    java = name.startswith("java")
    return java and any("qupath.QuPath" in word or "QuPathApp" in word for word in command[1:])


def _processes() -> Iterable[tuple[int, list[str]]]:
    """(id, command line) of this user's other processes, as far as they can be seen."""
    import psutil

    user = psutil.Process().username()
    for process in psutil.process_iter(["username", "cmdline"]):
        if process.info["username"] == user and process.pid != os.getpid():
            yield process.pid, process.info["cmdline"] or []
