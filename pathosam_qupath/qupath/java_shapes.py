"""How regular objects of a Java stream look as bytes.

Objects of one class mostly differ in a few places only: numbers, the letters of a
string, the lengths of arrays, which class or list is referred to. A *shape* is learned
from one example: bytes that are always the same, and between them places that vary. A
*layout* is a shape with the lengths filled in, so that every place has an offset, and a
thousand objects of one layout are a table of bytes that numpy reads by columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.java_objects import (
    PRIMITIVE_SIZES,
    TC_REFERENCE,
    BlockData,
    JavaArray,
    JavaClass,
    JavaObject,
    JavaString,
    Node,
    Reference,
)
from pathosam_qupath.qupath.java_serialization import StreamReader

Place = tuple[int, int]
"""Where something is: the number of a segment, and the offset from the segment's start."""


class PlacedBytes(bytes):
    """A primitive field of an example, with its place."""

    place: Place


@dataclass(frozen=True, eq=False)
class Segment:
    """Bytes of constant number, closed by the length of what follows.

    ``length_size`` is the number of bytes of that length (0 for the last segment), and
    ``item_size`` that of each thing counted.
    """

    size: int
    pattern: re.Pattern[bytes]
    length_size: int
    item_size: int


@dataclass(frozen=True, eq=False)
class Shape:
    """What the objects of one kind have in common.

    Attributes
    ----------
    example : the object that the shape was learned from; where it refers to an object
        outside itself there is a ``Reference``.
    places : where strings, arrays and blocks of the example have their content, and
        references their number.
    references : places of references that vary.
    class_references : places of references to class descriptors, with their number.
    handles : how many numbers an object takes.
    """

    example: JavaObject
    segments: tuple[Segment, ...]
    places: Mapping[Node, Place]
    references: tuple[Place, ...]
    class_references: tuple[tuple[Place, int], ...]
    handles: int

    def match(self, data: bytes, at: int) -> tuple[int, tuple[int, ...]] | None:
        """The end of an object of this shape that begins at ``at``, and its lengths."""
        lengths = []
        for segment in self.segments:
            hit = segment.pattern.match(data, at)
            if hit is None:
                return None
            at = hit.end()
            if segment.length_size:
                count = int.from_bytes(data[at - segment.length_size : at], "big")
                lengths.append(count)
                at += count * segment.item_size
        return at, tuple(lengths)


@dataclass(frozen=True, eq=False)
class Layout:
    """A shape with its lengths: ``size`` bytes, every place at a fixed offset."""

    shape: Shape
    lengths: tuple[int, ...]
    starts: tuple[int, ...] = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        at, starts = 0, []
        for i, segment in enumerate(self.shape.segments):
            starts.append(at)
            at += segment.size
            if segment.length_size:
                at += self.lengths[i] * segment.item_size
        object.__setattr__(self, "starts", tuple(starts))
        object.__setattr__(self, "size", at)

    def offset(self, of: Node | PlacedBytes) -> int:
        """The offset of a value in an object's bytes."""
        place = of.place if isinstance(of, PlacedBytes) else self.shape.places[of]
        return self.offset_of(place)

    def offset_of(self, place: Place) -> int:
        """The offset of a place in an object's bytes."""
        return self.starts[place[0]] + place[1]

    def length(self, of: JavaString | JavaArray) -> int:
        """The length of a string (bytes) or an array (items)."""
        return self.lengths[self.shape.places[of][0]]


def learn_shape(raw: bytes, nodes: Mapping[int, Node], own: int, leaf: set[str]) -> Shape | None:
    """The shape of an object, or None where it is not regular.

    Parameters
    ----------
    raw : the object's bytes.
    nodes : what its references refer to.
    own : the object's own number; references from there on are to its own parts.
    leaf : names of classes of which the object holds no further one.
    """
    try:
        return _ShapeReader(raw, nodes, own, leaf).shape()
    except _IrregularError:
        return None


class _IrregularError(Exception):
    """An object that is better kept as nodes."""


class OneObjectReader(StreamReader):
    """Reads one object cut out of a stream, whose references lead out of it."""

    def __init__(self, raw: bytes, nodes: Mapping[int, Node], subject: object) -> None:
        super().__init__(raw, subject)
        self._outside = nodes

    def lookup(self, handle: int, at: int) -> Node:
        """What is outside of the object."""
        try:
            return self._outside[handle]
        except KeyError:
            raise self.error("a reference to one of the objects before", at) from None

    def register(self, node: Node) -> None:
        """Nothing refers to the object's own parts."""


class _ShapeReader(OneObjectReader):
    def __init__(self, raw: bytes, nodes: Mapping[int, Node], own: int, leaf: set[str]) -> None:
        super().__init__(raw, nodes, "an example")
        self._own = own
        self._leaf = leaf
        self._leaves = 0
        self._handles = 0
        self._segments: list[Segment] = []
        self._start = 0
        self._fixed = 0
        self._pattern: list[bytes] = []
        self._places: dict[Node, Place] = {}
        self._references: list[Place] = []
        self._class_references: list[tuple[Place, int]] = []

    def shape(self) -> Shape:
        try:
            example = self.content()
        except (FormatError, KeyError):
            raise _IrregularError from None
        if not isinstance(example, JavaObject) or self.at != len(self.data):
            raise _IrregularError
        self._close(0, 0)
        return Shape(
            example,
            tuple(self._segments),
            self._places,
            tuple(self._references),
            tuple(self._class_references),
            self._handles,
        )

    def register(self, node: Node) -> None:
        self._handles += 1

    def primitive(self, size: int) -> bytes:
        place = self._vary(size)
        value = PlacedBytes(self.take(size, "a field"))
        value.place = place
        return value

    def class_or_none(self) -> JavaClass | None:
        if self.take(1, "a class")[0] != TC_REFERENCE:
            raise _IrregularError
        place = self._place()
        handle = self.number(4, "a reference")
        found = self.lookup(handle, self.at)
        if not isinstance(found, JavaClass):
            raise _IrregularError
        self._class_references.append((place, handle))
        if not self._leaf.isdisjoint(c.name for c in found.chain()):
            self._leaves += 1
            if self._leaves > 1:
                raise _IrregularError
        return found

    def _place(self) -> Place:
        return len(self._segments), self.at - self._start

    def _vary(self, size: int) -> Place:
        self._pattern.append(re.escape(self.data[self._fixed : self.at]))
        self._pattern.append(b".{%d}" % size)
        self._fixed = self.at + size
        return self._place()

    def _close(self, length_size: int, item_size: int) -> None:
        self._pattern.append(re.escape(self.data[self._fixed : self.at]))
        pattern = re.compile(b"".join(self._pattern), re.DOTALL)
        self._segments.append(Segment(self.at - self._start, pattern, length_size, item_size))
        self._pattern = []

    def _counted(self, node: JavaString | JavaArray, length_size: int, item_size: int) -> bytes:
        self._vary(length_size)
        count = self.number(length_size, "a length")
        self._places[node] = self._place()
        self._close(length_size, item_size)
        raw = self.take(count * item_size, "what is counted")
        self._start = self._fixed = self.at
        return raw

    def _reference(self) -> Node:
        place = self._vary(4)
        handle = self.number(4, "a reference")
        if handle >= self._own:
            raise _IrregularError
        node = Reference(self.lookup(handle, self.at))
        self._places[node] = place
        self._references.append(place)
        return node

    def _string(self) -> JavaString:
        node = JavaString(b"")
        self.register(node)
        node.raw = self._counted(node, 2, 1)
        return node

    def _array(self) -> JavaArray:
        node = JavaArray(self.described())
        self.register(node)
        size = PRIMITIVE_SIZES.get(node.of.name[1:2])
        if size:
            node.raw = self._counted(node, 4, size)
        else:
            for _ in range(self.number(4, "an array's length")):
                node.items.append(self.value())
        return node

    def _block(self) -> BlockData:
        size = self.number(1, "a block's length")
        node = BlockData(b"")
        if size >= 8:  # a probability; shorter ones are numbers of children and the like
            self._places[node] = self._vary(size)
        node.raw = self.take(size, "block data")
        return node

    def _irregular(self) -> NoReturn:
        raise _IrregularError

    _class = _proxy_class = _enum = _class_object = _exception = _irregular
    _long_block = _long_string = _irregular
