"""How much freed memory the C library keeps: glibc can be told, others are left alone."""

from __future__ import annotations

import ctypes
import sys
import time
from contextlib import suppress

# Numbers of these parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Keep what is freed, up to some megabytes, as glibc does by itself.

    Dask's workers tell it to give everything back at once. Each layer of a network takes and
    frees megabytes, and on a processor a third of its time would go into getting them again.
    """
    # It sets them to these sizes by itself once a program has freed as much.
    _mallopt(_MMAP_THRESHOLD, 1 << 25)
    _mallopt(_TRIM_THRESHOLD, 1 << 26)


def share_freed_memory() -> None:
    """Let threads use what others freed: two heaps, in place of eight per core.

    For programs that live long and start many threads, before the first of them: each heap
    grows to the most that was ever in use in it.
    """
    _mallopt(_ARENA_MAX, 2)


def give_back_freed_memory() -> None:
    """Give the system back all that is free; the next large allocations take longer.

    Worth it between two phases of different needs, so that their peaks do not add up.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


class FreedMemory:
    """Gives freed memory back now and then, for what goes on for long.

    Parameters
    ----------
    every : seconds between two times; what it costs must not be noticed.
    """

    def __init__(self, every: float) -> None:
        self._every, self._last = every, time.monotonic()

    def give_back(self) -> None:
        """Give it back, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._last > self._every:
            self._last = now
            give_back_freed_memory()


def _mallopt(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        with suppress(AttributeError):  # only glibc has it
            ctypes.CDLL(None).mallopt(parameter, value)
