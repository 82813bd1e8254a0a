"""A bounded store of decoded pixels that many reader threads share.

Neighbouring reads need the same tiles of the file. Keeping the last ones makes each
tile cost one decode; a bound in bytes keeps memory the same for any size of slide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class PixelCache:
    """Least recently used arrays, at most ``limit`` bytes of them (but always one).

    Two threads that ask for the same missing key decode it once: the second waits for
    the first. Arrays are handed out read-only and must not be changed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._lock = Lock()
        self._arrays: OrderedDict[Hashable, Pixels] = OrderedDict()
        self._pending: dict[Hashable, Future[Pixels]] = {}

    def get(self, key: Hashable, make: Callable[[], Pixels]) -> Pixels:
        """Return the array of ``key``, made by ``make`` when it is not kept."""
        with self._lock:
            found = self._arrays.get(key)
            if found is not None:
                self._arrays.move_to_end(key)
                return found
            pending = self._pending.get(key)
            if pending is None:
                mine: Future[Pixels] = Future()
                self._pending[key] = mine
        if pending is not None:
            return pending.result()
        try:
            array = make()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            mine.set_exception(error)
            raise
        array.setflags(write=False)
        with self._lock:
            del self._pending[key]
            self._arrays[key] = array
            self.size += array.nbytes
            while self.size > self.limit and len(self._arrays) > 1:
                _, old = self._arrays.popitem(last=False)
                self.size -= old.nbytes
        mine.set_result(array)
        return array

    def clear(self) -> None:
        """Forget every array."""
        with self._lock:
            self._arrays.clear()
            self.size = 0
