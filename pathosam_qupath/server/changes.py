"""Waiting for something to change without a thread per waiting request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


class Changes:
    """Wakes requests when a job or the model changes.

    Changes are announced in any thread; requests wait in the event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Event | None = None
        self._stopped = False

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake requests of this event loop; called in it."""
        with self._lock:
            self._loop, self._next = loop, asyncio.Event()

    def announce(self) -> None:
        """Something changed."""
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._wake)

    def stop(self) -> None:
        """Let every request go on that waits now or would wait later."""
        self._stopped = True
        self.announce()

    async def wait(self, until: Callable[[], bool], seconds: float) -> None:
        """Return when ``until()`` holds, or ``seconds`` have passed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not self._stopped and self._next is not None:
            change = self._next
            left = end - loop.time()
            if until() or left <= 0:
                return
            try:
                await asyncio.wait_for(change.wait(), left)
            except asyncio.TimeoutError:
                return

    def _wake(self) -> None:
        change, self._next = self._next, asyncio.Event()
        if change is not None:
            change.set()
