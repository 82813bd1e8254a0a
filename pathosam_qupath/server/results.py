"""Files of results, on disk so that a million nuclei need no memory; the oldest go first."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from pathlib import Path

from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.problems import ProblemError


class Results:
    """Result files by job. Thread-safe.

    Parameters
    ----------
    folder : for the server alone; what an earlier server left there is deleted.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self.clear()

    def path(self, job: str) -> Path:
        """Where a job's nuclei are written, as gzip GeoJSON."""
        return self._folder / f"{job}.geojson.gz"

    def picture_path(self, job: str) -> Path:
        """Where its picture is written."""
        return self._folder / f"{job}.png"

    def keep(self, job: str) -> int:
        """Take a written result in and delete those that are too old; its size in bytes."""
        size = self.path(job).stat().st_size
        with self._lock:
            self._sizes[job] = size
            while len(self._sizes) > 1 and (
                len(self._sizes) > self._limits.results
                or sum(self._sizes.values()) > self._limits.result_bytes
            ):
                self._delete(next(iter(self._sizes)))
        return size

    def find(self, job: str) -> Path:
        """The file of a job's nuclei.

        Raises
        ------
        ProblemError : it has been deleted.
        """
        if job not in self._sizes:
            raise ProblemError(
                410,
                "evicted",
                job,
                f"its result is gone; the last {self._limits.results} are kept",
                "Run it again.",
            )
        return self.path(job)

    def find_picture(self, job: str) -> Path | None:
        """The picture of a job's nuclei, where there is one."""
        path = self.picture_path(job)
        return path if job in self._sizes and path.exists() else None

    def forget(self, job: str) -> None:
        """Delete what there is of a job."""
        with self._lock:
            self._delete(job)

    def clear(self) -> None:
        """Delete everything."""
        with self._lock:
            self._sizes.clear()
            for path in self._folder.iterdir():
                path.unlink()

    def _delete(self, job: str) -> None:
        self._sizes.pop(job, None)
        # On Windows a file that is being downloaded cannot be deleted; the next start does it.
        with contextlib.suppress(PermissionError):
            self.path(job).unlink(missing_ok=True)
            self.picture_path(job).unlink(missing_ok=True)
