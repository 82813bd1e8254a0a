"""Whether the disk has room for what is about to be written."""

from __future__ import annotations

import shutil
from pathlib import Path

from pathosam_qupath.errors import RunError

LEDGER_BYTES, PREDICTION_BYTES, DATA_BYTES = 450, 200, 900
"""Bytes that a nucleus takes in a run's ledger, its predictions and ``data.qpdata``; rounded
up from what the example project and the benchmarks leave."""

_SPARE = 50 * 2**20
"""Bytes that are left to everybody else."""


def bytes_needed(data_path: Path, nuclei: float) -> int:
    """What treating an image takes at most while it goes on.

    ``data.qpdata`` exists up to three times meanwhile: as it is, as the run's copy of it, and
    as its successor, which has the new nuclei too.

    Parameters
    ----------
    data_path : the image's ``data.qpdata``; it need not exist.
    nuclei : how many are expected, or there.
    """
    present = data_path.stat().st_size if data_path.exists() else 0
    per_nucleus = LEDGER_BYTES + PREDICTION_BYTES + DATA_BYTES
    return 2 * present + round(nuclei * per_nucleus)


def check_room(folder: Path, needed: int) -> None:
    """Raise unless the disk of a folder has room.

    Raises
    ------
    RunError : it has not.
    """
    free = free_bytes(folder)
    if free < needed + _SPARE:
        raise RunError(
            folder,
            f"the disk has {size_text(free)} left and {size_text(needed + _SPARE)} are needed",
            "Make room, then run the same command again: it goes on from here.",
        )


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of a folder."""
    return shutil.disk_usage(folder).free


def size_text(size: float) -> str:
    """A number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
