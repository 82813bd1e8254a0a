"""Read Java object streams without Java, losing nothing (written in ``java_writer``).

A ``.qpdata`` file is such a stream. The grammar is that of the Java Object
Serialization Specification, version 5 of the stream protocol (chapter 6). What is read
and not changed is written byte for byte as it was, unknown classes included: classes
carry their own description, so nothing needs to be known about them.

Input is not trusted: lengths are checked against the bytes that are left before
anything is made of them, nesting is limited, and what does not fit the grammar raises
``FormatError`` with the offset and what was expected there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.java_objects import (
    FIRST_HANDLE,
    HEADER,
    PRIMITIVE_SIZES,
    SC_BLOCK_DATA,
    SC_ENUM,
    SC_EXTERNALIZABLE,
    SC_SERIALIZABLE,
    SC_WRITE_METHOD,
    TC_ARRAY,
    TC_BLOCKDATA,
    TC_BLOCKDATALONG,
    TC_CLASS,
    TC_CLASSDESC,
    TC_ENDBLOCKDATA,
    TC_ENUM,
    TC_EXCEPTION,
    TC_LONGSTRING,
    TC_NULL,
    TC_OBJECT,
    TC_PROXYCLASSDESC,
    TC_REFERENCE,
    TC_RESET,
    TC_STRING,
    BlockData,
    ClassData,
    JavaArray,
    JavaClass,
    JavaClassObject,
    JavaEnum,
    JavaException,
    JavaField,
    JavaObject,
    JavaString,
    Node,
    Reset,
    Run,
)
from pathosam_qupath.qupath.java_writer import StreamWriter, write_stream

__all__ = ["StreamReader", "StreamWriter", "read_stream", "write_stream"]

MAX_DEPTH = 200
"""Objects within objects; a level takes three Python frames of the usual 1,000."""
MAX_CLASS_CHAIN = 100


class Finder(Protocol):
    """What may take objects from the reader, many at a time (``java_runs.RunFinder``)."""

    def take_run(self) -> Run | None:
        """Read the regular objects that begin here, or None where there are none."""

    def learn(self, node: Node, start: int, handle: int) -> None:
        """See an object that was read at ``start`` with the number ``handle``."""

    def expand(self, handle: int) -> None:
        """Make nodes of the object in a run that has this number, if there is one."""

    def forget(self) -> None:
        """The numbers start anew."""


def read_stream(
    data: bytes,
    subject: object = "Java object stream",
    find_runs: Callable[[StreamReader], Finder] | None = None,
) -> list[Node]:
    """Parse a whole stream.

    Parameters
    ----------
    data : the stream, header included.
    subject : what an error is about, for instance the file's name.
    find_runs : makes what keeps regular objects as bytes; None makes nodes of all.

    Raises
    ------
    FormatError : not a Java object stream, cut off, damaged, or nested too deeply.
    """
    reader = StreamReader(data, subject)
    if find_runs is not None:
        reader.finder = find_runs(reader)
    return reader.read()


class StreamReader:
    """The state of reading one stream: a position, and the objects by their numbers."""

    def __init__(self, data: bytes, subject: object) -> None:
        self.data = data
        self.at = 0
        self.subject = subject
        self.depth = 0
        self.next_handle = FIRST_HANDLE
        self.nodes: dict[int, Node] = {}
        self.finder: Finder | None = None
        self._parsers = {
            TC_REFERENCE: self._reference,
            TC_CLASSDESC: self._class,
            TC_OBJECT: self._object,
            TC_STRING: self._string,
            TC_ARRAY: self._array,
            TC_CLASS: self._class_object,
            TC_BLOCKDATA: self._block,
            TC_BLOCKDATALONG: self._long_block,
            TC_LONGSTRING: self._long_string,
            TC_PROXYCLASSDESC: self._proxy_class,
            TC_ENUM: self._enum,
            TC_EXCEPTION: self._exception,
        }

    def read(self) -> list[Node]:
        """Everything from the header to the end of the data."""
        try:
            if self.take(4, "the header of a Java object stream") != HEADER:
                raise self.error("the header of a Java object stream (AC ED 00 05)", 0)
            nodes: list[Node] = []
            while self.at < len(self.data):
                if self.data[self.at] == TC_RESET:
                    self.at += 1
                    self.forget()
                    nodes.append(Reset())
                else:
                    nodes.append(self.content())
            return nodes
        except RecursionError:
            raise self.error(f"objects nested less than {MAX_DEPTH} deep") from None

    def error(self, expected: str, at: int | None = None) -> FormatError:
        """The error that says where, what was expected, and what there is."""
        at = self.at if at is None else at
        found = self.data[at : at + 8].hex(" ") or "the end of the data"
        return FormatError(
            self.subject,
            f"damaged at byte {at:,} of {len(self.data):,}: expected {expected}, found {found}",
            "Use a backup (data.qpdata.bkp lies beside QuPath's data.qpdata), or let QuPath "
            "open and save the image again.",
        )

    def take(self, count: int, expected: str) -> bytes:
        """The next bytes, or an error where fewer are left."""
        start = self.at
        if count < 0 or count > len(self.data) - start:
            raise self.error(f"{count:,} bytes of {expected}")
        self.at = start + count
        return self.data[start : self.at]

    def number(self, size: int, expected: str, *, signed: bool = False) -> int:
        """A big-endian integer."""
        return int.from_bytes(self.take(size, expected), "big", signed=signed)

    def primitive(self, size: int) -> bytes:
        """A field's primitive value."""
        return self.take(size, "a field")

    def register(self, node: Node) -> None:
        """Give a node the next number."""
        self.nodes[self.next_handle] = node
        self.next_handle += 1

    def forget(self) -> None:
        """Start the numbers anew."""
        self.nodes = {}
        self.next_handle = FIRST_HANDLE
        if self.finder is not None:
            self.finder.forget()

    def lookup(self, handle: int, at: int) -> Node:
        """The node with this number."""
        if not FIRST_HANDLE <= handle < self.next_handle:
            raise self.error("a reference to one of the objects before", at)
        if handle not in self.nodes and self.finder is not None:
            self.finder.expand(handle)
        node = self.nodes.get(handle)
        if node is None:
            raise self.error("a reference to one of the objects before", at)
        return node

    def content(self) -> Node:
        """Any object, null, or block data."""
        start = self.at
        tag = self.take(1, "an object")[0]
        if tag == TC_NULL:
            return None
        parse = self._parsers.get(tag)
        if parse is None:
            raise self.error("the tag of an object", start)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"objects nested less than {MAX_DEPTH} deep", start)
        node: Node = parse()
        self.depth -= 1
        return node

    def node_at(self, start: int, handle: int) -> Node:
        """Parse the object at ``start``, whose number is ``handle``, then come back here."""
        before = self.at, self.next_handle
        self.at, self.next_handle = start, handle
        try:
            return self.content()
        finally:
            self.at, self.next_handle = before

    def value(self) -> Node:
        """An object or null where block data must not be."""
        start = self.at
        node = self.content()
        if isinstance(node, BlockData):
            raise self.error("an object, not block data,", start)
        return node

    def contents(self) -> list[Node]:
        """What a class wrote by hand, up to the closing tag."""
        nodes: list[Node] = []
        data = self.data
        finder = self.finder
        while True:
            tag = data[self.at] if self.at < len(data) else -1
            if tag == TC_ENDBLOCKDATA:
                self.at += 1
                return nodes
            if tag == TC_OBJECT and finder is not None:
                run = finder.take_run()
                if run is not None:
                    nodes.append(run)
                    continue
                start, handle = self.at, self.next_handle
                node = self.content()
                finder.learn(node, start, handle)
                nodes.append(node)
            else:
                nodes.append(self.content())

    def class_or_none(self) -> JavaClass | None:
        """A class descriptor, new or by reference, or null."""
        start = self.at
        node = self.content()
        if node is None:
            return None
        if not isinstance(node, JavaClass) or not node.complete:
            raise self.error("a class descriptor", start)
        return node

    def described(self) -> JavaClass:
        """A class descriptor that must not be null."""
        start = self.at
        node = self.class_or_none()
        if node is None:
            raise self.error("a class descriptor", start)
        return node

    def _reference(self) -> Node:
        start = self.at
        return self.lookup(self.number(4, "a reference"), start)

    def _utf(self, expected: str) -> bytes:
        return self.take(self.number(2, f"the length of {expected}"), expected)

    def _string(self) -> JavaString:
        node = JavaString(b"")
        self.register(node)
        node.raw = self._utf("a string")
        return node

    def _long_string(self) -> JavaString:
        node = JavaString(b"", long=True)
        self.register(node)
        node.raw = self.take(self.number(8, "the length of a long string"), "a long string")
        return node

    def _class(self) -> JavaClass:
        name = self._utf("a class name").decode("utf-8", "surrogateescape")
        node = JavaClass(name, self.number(8, "a serialVersionUID", signed=True), complete=False)
        self.register(node)
        node.flags = self.number(1, "class flags")
        for _ in range(self.number(2, "a number of fields")):
            start = self.at
            code = chr(self.number(1, "a field's type"))
            described = JavaField(code, self._utf("a field's name"))
            if code in "[L":
                start = self.at
                described.type = self.value()
                if not isinstance(described.type, JavaString):
                    raise self.error("the type of a field", start)
            elif code not in PRIMITIVE_SIZES:
                raise self.error("the type code of a field", start)
            node.fields.append(described)
        self._finish_class(node)
        return node

    def _proxy_class(self) -> JavaClass:
        node = JavaClass("", interfaces=[], complete=False)
        self.register(node)
        count = self.number(4, "a number of interfaces")
        if count > (len(self.data) - self.at) // 2:
            raise self.error(f"{count:,} names of interfaces")
        node.interfaces = [self._utf("an interface's name") for _ in range(count)]
        self._finish_class(node)
        return node

    def _finish_class(self, node: JavaClass) -> None:
        node.annotation = self.contents()
        start = self.at
        node.parent = self.class_or_none()
        if node.parent is not None:
            node.depth = node.parent.depth + 1
        if node.depth > MAX_CLASS_CHAIN:
            raise self.error(f"a class with less than {MAX_CLASS_CHAIN} superclasses", start)
        node.complete = True

    def _object(self) -> JavaObject:
        start = self.at
        node = JavaObject(self.described())
        self.register(node)
        of = node.of
        if of.flags & SC_EXTERNALIZABLE:
            if not of.flags & SC_BLOCK_DATA:
                raise self.error("an object of stream protocol 2", start)
            node.data.append(ClassData(of, [], self.contents()))
            return node
        if of.flags & SC_ENUM or not of.flags & SC_SERIALIZABLE:
            raise self.error("an object of a serializable class", start)
        for part in reversed([c for c in of.chain() if c.flags & SC_SERIALIZABLE]):
            custom = part.flags & SC_WRITE_METHOD
            if not part.fields and not custom:
                continue
            data = ClassData(part, [])
            node.data.append(data)
            for described in part.fields:
                size = PRIMITIVE_SIZES.get(described.code)
                data.values.append(self.primitive(size) if size else self.value())
            if custom:
                data.annotation = self.contents()
        return node

    def _array(self) -> JavaArray:
        start = self.at
        of = self.described()
        code = of.name[1:2]
        if of.name[:1] != "[" or (code not in PRIMITIVE_SIZES and code not in ("L", "[")):
            raise self.error("the class of an array", start)
        node = JavaArray(of)
        self.register(node)
        count = self.number(4, "an array's length")
        size = PRIMITIVE_SIZES.get(code, 1)
        if count > (len(self.data) - self.at) // size:
            raise self.error(f"{count:,} array elements of {size} bytes or more")
        if code in PRIMITIVE_SIZES:
            node.raw = self.take(count * size, "array elements")
        else:
            for _ in range(count):
                node.items.append(self.value())
        return node

    def _enum(self) -> JavaEnum:
        node = JavaEnum(self.described(), None)
        self.register(node)
        start = self.at
        node.constant = self.value()
        if not isinstance(node.constant, JavaString):
            raise self.error("the name of an enum's constant", start)
        return node

    def _class_object(self) -> JavaClassObject:
        node = JavaClassObject(self.described())
        self.register(node)
        return node

    def _block(self) -> BlockData:
        return BlockData(self.take(self.number(1, "a block's length"), "block data"))

    def _long_block(self) -> BlockData:
        return BlockData(self.take(self.number(4, "a block's length"), "block data"), long=True)

    def _exception(self) -> JavaException:
        self.forget()
        thrown = self.value()
        self.forget()
        return JavaException(thrown)
