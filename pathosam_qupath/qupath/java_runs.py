"""Many regular objects of a Java stream kept as bytes (none yet: all are read as nodes)."""

from __future__ import annotations


class ObjectRun:
    def __len__(self):
        return 0

    def write(self, w):
        raise TypeError


class RunFinder:
    def __init__(self, reader, compact):
        pass
