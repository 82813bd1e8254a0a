"""Write the nodes of a Java object stream as Java would: each object once, then its number.

Numbers are given anew in the order of first use. So where the first carrier of a class
descriptor or a shared string has been taken out, the next one that uses it carries it.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.java_objects import (
    FIRST_HANDLE,
    HEADER,
    PRIMITIVE_SIZES,
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
    JavaArray,
    JavaClass,
    JavaClassObject,
    JavaEnum,
    JavaException,
    JavaObject,
    JavaString,
    Node,
    Reset,
    Run,
)

MAX_DEPTH = 400
"""Twice what the reader takes: a definition may move to a deeper place."""


def write_stream(nodes: list[Node], file: BinaryIO) -> None:
    """Write a stream's top-level nodes; numbers are given in the order of first use."""
    writer = StreamWriter(file)
    writer.write_all(nodes)
    writer.flush()


def _too_deep() -> FormatError:
    return FormatError(
        "objects to write",
        f"they are nested more than {MAX_DEPTH} deep",
        "Let QuPath open and save the image.",
    )


class StreamWriter:
    """The state of writing one stream: the numbers given, and bytes not yet written."""

    def __init__(self, file: BinaryIO, buffer_size: int = 1 << 20) -> None:
        self.file = file
        self.out = bytearray()
        self.buffer_size = buffer_size
        self.handles: dict[Node, int] = {}
        self.next_handle = FIRST_HANDLE
        self.depth = 0

    def write_bytes(self, raw: memoryview) -> None:
        """Write bytes that are a part of the stream."""
        self.flush()
        self.file.write(raw)

    def write_all(self, nodes: list[Node]) -> None:
        """The header, then every top-level node."""
        self.out += HEADER
        try:
            for node in nodes:
                self.node(node)
        except RecursionError:
            raise _too_deep() from None

    def flush(self) -> None:
        """Hand the bytes made so far to the file."""
        if self.out:
            self.file.write(self.out)
            self.out = bytearray()

    def register(self, node: Node) -> None:
        """Give a node the next number."""
        self.handles[node] = self.next_handle
        self.next_handle += 1

    def forget(self) -> None:
        """Start the numbers anew."""
        self.handles = {}
        self.next_handle = FIRST_HANDLE

    def node(self, node: Node) -> None:
        """Write a node: its definition the first time, a reference ever after."""
        out = self.out
        if node is None:
            out.append(TC_NULL)
            return
        handle = self.handles.get(node)
        if handle is not None:
            out += struct.pack(">BI", TC_REFERENCE, handle)
            return
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(node, JavaObject):
            self._object(node)
        elif isinstance(node, JavaString):
            self._string(node)
        elif isinstance(node, JavaArray):
            self._array(node)
        elif isinstance(node, BlockData):
            self._block(node)
        elif isinstance(node, JavaClass):
            self._class(node)
        elif isinstance(node, Run):
            node.write(self)
        elif isinstance(node, JavaEnum):
            out.append(TC_ENUM)
            self.node(node.of)
            self.register(node)
            self.node(node.constant)
        elif isinstance(node, JavaClassObject):
            out.append(TC_CLASS)
            self.node(node.of)
            self.register(node)
        elif isinstance(node, Reset):
            out.append(TC_RESET)
            self.forget()
        elif isinstance(node, JavaException):
            out.append(TC_EXCEPTION)
            self.forget()
            self.node(node.thrown)
            self.forget()
        else:
            raise TypeError(f"not a part of a Java object stream: {node!r}")
        self.depth -= 1
        if len(self.out) > self.buffer_size:
            self.flush()

    def contents(self, nodes: list[Node]) -> None:
        """What a class wrote by hand, and the closing tag."""
        for node in nodes:
            self.node(node)
        self.out.append(TC_ENDBLOCKDATA)

    def _utf(self, raw: bytes) -> None:
        self.out += struct.pack(">H", len(raw))
        self.out += raw

    def _string(self, node: JavaString) -> None:
        self.register(node)
        if node.long or len(node.raw) > 0xFFFF:
            self.out += struct.pack(">BQ", TC_LONGSTRING, len(node.raw))
            self.out += node.raw
        else:
            self.out.append(TC_STRING)
            self._utf(node.raw)

    def _class(self, node: JavaClass) -> None:
        if node.interfaces is not None:
            self.out.append(TC_PROXYCLASSDESC)
            self.register(node)
            self.out += struct.pack(">I", len(node.interfaces))
            for interface in node.interfaces:
                self._utf(interface)
        else:
            self.out.append(TC_CLASSDESC)
            self._utf(node.name.encode("utf-8", "surrogateescape"))
            self.out += struct.pack(">q", node.uid)
            self.register(node)
            self.out += struct.pack(">BH", node.flags, len(node.fields))
            for described in node.fields:
                self.out += described.code.encode()
                self._utf(described.name)
                if described.code in "[L":
                    self.node(described.type)
        self.contents(node.annotation)
        self.node(node.parent)

    def _object(self, node: JavaObject) -> None:
        self.out.append(TC_OBJECT)
        self.node(node.of)
        self.register(node)
        for part in node.data:
            for described, value in zip(part.of.fields, part.values, strict=True):
                if described.code in PRIMITIVE_SIZES:
                    self.out += value
                else:
                    self.node(value)
            if part.annotation is not None:
                self.contents(part.annotation)

    def _array(self, node: JavaArray) -> None:
        self.out.append(TC_ARRAY)
        self.node(node.of)
        self.register(node)
        if node.raw is not None:
            size = PRIMITIVE_SIZES[node.of.name[1:2]]
            self.out += struct.pack(">I", len(node.raw) // size)
            self.out += node.raw
        else:
            self.out += struct.pack(">I", len(node.items))
            for item in node.items:
                self.node(item)

    def _block(self, node: BlockData) -> None:
        if node.long or len(node.raw) > 0xFF:
            self.out += struct.pack(">BI", TC_BLOCKDATALONG, len(node.raw))
        else:
            self.out += struct.pack(">BB", TC_BLOCKDATA, len(node.raw))
        self.out += node.raw
