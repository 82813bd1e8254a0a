"""Memory that a process no longer uses, back to the system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def give_back_memory() -> None:
    """Let the system have what was freed: glibc keeps it, in pieces, for what comes next.

    Worth its milliseconds between two phases of different needs, so that their peaks do not
    add up. Other C libraries give back by themselves.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
