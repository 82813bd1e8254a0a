"""Ctrl-C once: finish the block at hand. Twice: now."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_interrupt(tell: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether somebody pressed Ctrl-C.

    The second Ctrl-C raises :class:`KeyboardInterrupt` as the first does elsewhere.

    Parameters
    ----------
    tell : called at the first one; it must not wait for anything.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # signals arrive in the main thread only
        return

    def first(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
