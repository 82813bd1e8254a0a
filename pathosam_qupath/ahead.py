"""Threads that work a little ahead of whoever takes the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def computed_ahead(
    function: Callable[[_T], _R], values: Iterable[_T], threads: int
) -> Iterator[_R]:
    """What a function makes of values, in their order; a value more is under way than threads."""
    with ThreadPoolExecutor(threads, "ahead") as pool:
        under_way: deque[Future[_R]] = deque()
        try:
            for value in values:
                under_way.append(pool.submit(function, value))
                if len(under_way) > threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for left in under_way:
                left.cancel()
