"""Which worker computes which of an image's blocks next.

Blocks that are next to each other share tiles of the network, which a worker that has just
seen them need not compute again (``segmentation.tile_maps.TileStore``). So each worker has
a lane, a part of the slide that it goes through in the plan's order, and one whose lane is
empty takes half of what is left of the longest other lane. Which worker computes a block
makes no difference to what is found in it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

from pathosam_qupath.segmentation.tiling import Block

MOST = 64
"""Blocks at most that a worker is given at a time."""

_AT_THE_END = 2
"""What is left is handed out in so many portions per worker, so that all end together."""


class Lanes:
    """The blocks of an image that nobody computes yet. Not thread-safe.

    Parameters
    ----------
    blocks : of the plan; a block's number is its place here.
    numbers : those to compute.
    workers : who is there; others may come.
    """

    def __init__(
        self, blocks: Sequence[Block], numbers: Iterable[int], workers: Sequence[Hashable]
    ) -> None:
        self._blocks = blocks
        parts = self._parts(sorted(numbers), max(1, len(workers)))
        names = workers or [None]
        self._lanes: dict[Hashable, list[int]] = dict(zip(names, parts, strict=True))
        self._returned: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        """How many blocks are left."""
        return sum(map(len, self._lanes.values())) + sum(map(len, self._returned))

    def take(self, worker: Hashable, most: int) -> tuple[int, ...]:
        """The blocks that a worker computes next; none where none are left."""
        if self._returned:
            return self._returned.pop(0)
        lane = self._lanes.setdefault(worker, [])
        if not lane:
            longest = max(self._lanes, key=lambda other: len(self._lanes[other]))
            theirs = self._lanes[longest]
            self._lanes[longest], lane = theirs[: len(theirs) // 2], theirs[len(theirs) // 2 :]
            self._lanes[worker] = lane
        share = math.ceil(len(self) / (_AT_THE_END * len(self._lanes)))
        count = max(1, min(most, MOST, share))
        self._lanes[worker] = lane[count:]
        return tuple(lane[:count])

    def put_back(self, numbers: Sequence[int]) -> None:
        """Have blocks that somebody had taken handed out again, before any others."""
        self._returned.append(tuple(numbers))

    def clear(self) -> None:
        """Let nobody have any more."""
        self._lanes.clear()
        self._returned.clear()

    def _parts(self, numbers: list[int], count: int) -> list[list[int]]:
        """So many lanes, each about as long as the others and as compact as can be."""
        if count == 1:
            return [numbers]
        boxes = [self._blocks[number].inner for number in numbers]
        if boxes:
            wide = max(b.x1 for b in boxes) - min(b.x0 for b in boxes)
            high = max(b.y1 for b in boxes) - min(b.y0 for b in boxes)
            numbers = sorted(numbers, key=lambda n: self._place(n, along_x=wide > high))
        first = count // 2
        middle = round(len(numbers) * first / count)
        return [
            *self._parts(sorted(numbers[:middle]), first),
            *self._parts(sorted(numbers[middle:]), count - first),
        ]

    def _place(self, number: int, *, along_x: bool) -> tuple[int, int]:
        box = self._blocks[number].inner
        return (box.x0, box.y0) if along_x else (box.y0, box.x0)
