"""Many regular objects of a Java stream, kept as the bytes they are.

A slide has a million nuclei, and a node for each of their strings and numbers would take
gigabytes. Consecutive objects of known shapes (``java_shapes``) stay bytes instead: they
are found by matching, read by columns, and written with their references put right.

The rule that makes this safe: nothing refers to the inside of an object that is kept as
bytes. Where a stream does, that object becomes nodes (it is "expanded").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.qupath.java_objects import JavaClass, JavaObject, Node, Run
from pathosam_qupath.qupath.java_serialization import StreamReader
from pathosam_qupath.qupath.java_shapes import Layout, OneObjectReader, Shape, learn_shape
from pathosam_qupath.qupath.java_writer import StreamWriter

CHUNK = 1 << 16
"""Objects of one layout handled at a time, and"""
WRITE_BYTES = 1 << 27
"""bytes written at a time, which bound the memory above the bytes themselves."""
MAX_SHAPES = 64
MAX_LAYOUTS = 1 << 16
MAX_FAILURES = 2000

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]


class ObjectRun(Run):
    """Consecutive objects as bytes.

    Parameters
    ----------
    data : bytes that hold the objects.
    starts : where in ``data`` each object begins.
    kinds : the layout of each object, an index into ``layouts``.
    layouts : the layouts.
    nodes : what the numbers in the objects' references mean.
    """

    def __init__(
        self,
        data: bytes | Bytes,
        starts: Indices,
        kinds: NDArray[np.int32],
        layouts: Sequence[Layout],
        nodes: Mapping[int, Node],
    ) -> None:
        self.data = data
        self.starts = starts
        self.kinds = kinds
        self.layouts = layouts
        self.nodes = nodes
        self.expanded: dict[int, JavaObject] = {}

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, which: Indices | NDArray[np.bool_] | slice) -> ObjectRun:
        """Some of the objects, which must not have been expanded."""
        return ObjectRun(self.data, self.starts[which], self.kinds[which], self.layouts, self.nodes)

    def pieces(self) -> Iterator[ObjectRun | JavaObject]:
        """The objects in order: expanded ones by themselves, the others in runs."""
        if not self.expanded:
            yield self
            return
        at = 0
        for index, node in sorted(self.expanded.items()):
            if index > at:
                yield self.take(slice(at, index))
            yield node
            at = index + 1
        if at < len(self):
            yield self.take(slice(at, None))

    def raw(self, index: int) -> bytes:
        """One object's bytes."""
        start = int(self.starts[index])
        return bytes(self.data[start : start + self.layouts[self.kinds[index]].size])

    def node(self, index: int) -> JavaObject:
        """One object as nodes, made anew each time unless it has been expanded."""
        if index in self.expanded:
            return self.expanded[index]
        node = OneObjectReader(self.raw(index), self.nodes, "an object").content()
        if not isinstance(node, JavaObject):
            raise TypeError(f"a run of objects holds {node!r}")
        return node

    def tables(self) -> Iterator[tuple[Layout, Indices, Bytes]]:
        """Layout, indices, and the bytes (objects, size), of objects of one layout each."""
        if len(self) == 0:
            return
        order = np.argsort(self.kinds, kind="stable")
        cuts = np.flatnonzero(np.diff(self.kinds[order])) + 1
        for group in np.split(order, cuts):
            layout = self.layouts[self.kinds[group[0]]]
            for first in range(0, len(group), CHUNK):
                indices = group[first : first + CHUNK]
                yield layout, indices, self._rows(layout, indices)

    def _rows(self, layout: Layout, indices: Indices) -> Bytes:
        starts = self.starts[indices]
        rows = _windows(self.data, layout.size)[starts]
        return rows.view(np.uint8).reshape(len(indices), layout.size)

    def targets(self) -> tuple[Indices, Indices]:
        """The numbers that the objects refer to, and the first object that does, of each."""
        found: dict[int, int] = {}
        for layout, indices, rows in self.tables():
            for _, handle in layout.shape.class_references:
                found[handle] = min(found.get(handle, len(self)), int(indices[0]))
            for place in layout.shape.references:
                values = column(rows, layout.offset_of(place), ">u4")
                if (values == values[0]).all():
                    values = values[:1]
                numbers, first = np.unique(values, return_index=True)
                for number, index in zip(numbers.tolist(), indices[first].tolist(), strict=True):
                    found[number] = min(found.get(number, len(self)), index)
        numbers = np.fromiter(found, np.int64, len(found))
        return numbers, np.fromiter(found.values(), np.int64, len(found))

    def write(self, writer: StreamWriter) -> None:
        """Write the objects with new numbers.

        An object that is the first to refer to something not yet written is written from
        nodes, and so carries the definition.
        """
        if self.expanded:
            for piece in self.pieces():
                writer.node(piece)
            return
        numbers, first = self.targets()
        new = [n not in writer.handles for n in map(self.nodes.__getitem__, numbers.tolist())]
        at = 0
        for index in np.unique(first[np.array(new, bool)]).tolist():
            self._write_rows(writer, at, index, numbers)
            writer.node(self.node(index))
            at = index + 1
        self._write_rows(writer, at, len(self), numbers)

    def _write_rows(self, writer: StreamWriter, begin: int, end: int, numbers: Indices) -> None:
        if begin == end:
            return
        part = self.take(slice(begin, end))
        sizes = np.array([layout.size for layout in self.layouts], np.int64)[part.kinds]
        handles = np.array([layout.shape.handles for layout in self.layouts])[part.kinds]
        writer.next_handle += int(handles.sum())
        old = [n for n in numbers.tolist() if self.nodes[n] in writer.handles]
        changed = {n: writer.handles[self.nodes[n]] for n in old}
        contiguous = bool((part.starts[1:] == part.starts[:-1] + sizes[:-1]).all())
        if contiguous and all(n == m for n, m in changed.items()):
            start = int(part.starts[0])
            writer.write_bytes(memoryview(part.data)[start : start + int(sizes.sum())])
            return
        keys = np.array(sorted(changed), np.int64)
        values = np.array([changed[k] for k in keys.tolist()], np.int64)
        step = max(1, WRITE_BYTES // int(sizes.mean()))
        for first in range(0, len(part), step):
            chunk = part.take(slice(first, first + step))
            sized = sizes[first : first + step]
            ends = np.cumsum(sized)
            out = np.empty(int(ends[-1]), np.uint8)
            for layout, indices, rows in chunk.tables():
                rows = rows if rows.flags.writeable else rows.copy()
                for place, handle in layout.shape.class_references:
                    set_column(rows, layout.offset_of(place), ">u4", changed[handle])
                for place in layout.shape.references:
                    offset = layout.offset_of(place)
                    found = np.searchsorted(keys, column(rows, offset, ">u4"))
                    set_column(rows, offset, ">u4", values[found])
                put_rows(out, ends[indices] - layout.size, rows)
            writer.write_bytes(memoryview(out))


def _windows(data: bytes | Bytes, size: int) -> NDArray[np.void]:
    count = len(data) - size + 1
    return np.ndarray((max(count, 0),), f"V{size}", data, strides=(1,))


def put_rows(out: Bytes, starts: Indices, rows: Bytes) -> None:
    """Copy rows (objects, size) of bytes to where each begins in ``out``."""
    size = rows.shape[1]
    _windows(out, size)[starts] = np.ascontiguousarray(rows).view(f"V{size}").ravel()


def column(rows: Bytes, offset: int, dtype: str, count: int | None = None) -> NDArray[Any]:
    """A number, or ``count`` numbers, of every row, as an array of its own."""
    size = np.dtype(dtype).itemsize * (1 if count is None else count)
    found = np.ascontiguousarray(rows[:, offset : offset + size])
    if size == 0:
        return np.empty((len(rows), 0), dtype)
    found = found.view(dtype)
    return found[:, 0] if count is None else found


def set_column(rows: Bytes, offset: int, dtype: str, values: NDArray[Any] | float) -> None:
    """Put a number into every row."""
    array = np.broadcast_to(np.asarray(values, dtype), (len(rows),))
    size = array.dtype.itemsize
    rows[:, offset : offset + size] = np.ascontiguousarray(array).view(np.uint8).reshape(-1, size)


class RunFinder:
    """Finds runs of regular objects while a stream is read.

    Parameters
    ----------
    reader : of the stream.
    leaf : names of the classes whose objects (or those of derived classes) may be kept
        as bytes where they hold no further one of them.
    """

    def __init__(self, reader: StreamReader, leaf: set[str]) -> None:
        self._reader = reader
        self._leaf = leaf
        self.forget()

    def forget(self) -> None:
        """The stream's numbers start anew."""
        self._shapes: dict[bytes, list[int]] = {}
        self._known: list[Shape] = []
        self._layouts: list[Layout] = []
        self._by_lengths: dict[tuple[int, tuple[int, ...]], int] = {}
        self._runs: list[tuple[ObjectRun, Indices]] = []
        self._is_leaf: dict[JavaClass, bool] = {}
        self._failures = 0

    def learn(self, node: Node, start: int, handle: int) -> None:
        """Take an object that was just read as an example, if it is of a wanted class."""
        if not isinstance(node, JavaObject):
            return
        wanted = self._is_leaf.get(node.of)
        if wanted is None:
            wanted = any(node.of.is_a(name) for name in self._leaf)
            self._is_leaf[node.of] = wanted
        if not wanted or len(self._known) >= MAX_SHAPES or self._failures >= MAX_FAILURES:
            return
        reader = self._reader
        shape = learn_shape(reader.data[start : reader.at], reader.nodes, handle, self._leaf)
        if shape is None:
            self._failures += 1
            return
        self._shapes.setdefault(reader.data[start : start + 6], []).append(len(self._known))
        self._known.append(shape)

    def take_run(self) -> ObjectRun | None:
        """Read the objects of known shapes that begin here."""
        reader = self._reader
        data, at = reader.data, reader.at
        starts: list[int] = []
        kinds: list[int] = []
        known, by_lengths = self._known, self._by_lengths
        while True:
            candidates = self._shapes.get(data[at : at + 6])
            if candidates is None:
                break
            number = candidates[0]
            found = known[number].match(data, at)
            if found is None:
                for number in candidates[1:]:
                    found = known[number].match(data, at)
                    if found is not None:
                        candidates.remove(number)
                        candidates.insert(0, number)
                        break
                else:
                    break
            end, lengths = found
            kind = by_lengths.get((number, lengths))
            if kind is None:
                if len(self._layouts) >= MAX_LAYOUTS:
                    break
                kind = by_lengths[number, lengths] = len(self._layouts)
                self._layouts.append(Layout(known[number], lengths))
            starts.append(at)
            kinds.append(kind)
            at = end
        if not starts:
            return None
        run = ObjectRun(
            data,
            np.array(starts, np.int64),
            np.array(kinds, np.int32),
            self._layouts,
            reader.nodes,
        )
        taken = np.array([layout.shape.handles for layout in self._layouts], np.int64)[run.kinds]
        ends = reader.next_handle + np.cumsum(taken)
        self._runs.append((run, ends - taken))
        reader.at = at
        reader.next_handle = int(ends[-1])
        self._resolve(run, ends - taken)
        return run

    def expand(self, handle: int) -> None:
        """Make nodes of the object that has this number, if it is in a run."""
        low, high = 0, len(self._runs)
        while low < high:
            middle = (low + high) // 2
            if self._runs[middle][1][0] <= handle:
                low = middle + 1
            else:
                high = middle
        if low:
            run, first = self._runs[low - 1]
            self._expand(run, first, int(np.searchsorted(first, handle, "right")) - 1)

    def _expand(self, run: ObjectRun, first: Indices, index: int) -> None:
        if index not in run.expanded:
            node = self._reader.node_at(int(run.starts[index]), int(first[index]))
            if isinstance(node, JavaObject):
                run.expanded[index] = node

    def _resolve(self, run: ObjectRun, first: Indices) -> None:
        """Expand what the run's objects refer to, and those that refer to themselves."""
        inward: set[int] = set()
        numbers: set[int] = set()
        for layout, indices, rows in run.tables():
            for place in layout.shape.references:
                found = column(rows, layout.offset_of(place), ">u4").astype(np.int64)
                inward.update(indices[found >= first[indices]].tolist())
                numbers.update(
                    np.unique(found[:1] if (found == found[0]).all() else found).tolist()
                )
        reader = self._reader
        begin = int(first[0])
        for number in sorted(n for n in numbers if n not in reader.nodes):
            if number < begin:
                reader.lookup(number, reader.at)
            elif number < reader.next_handle:
                inward.add(int(np.searchsorted(first, number, "right")) - 1)
            else:
                raise reader.error("references to objects before", int(run.starts[0]))
        for index in sorted(inward):
            self._expand(run, first, index)
