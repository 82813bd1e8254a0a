"""The parts of a Java object stream as Python objects that keep their identity.

Java writes an object once and refers to it by a number (its handle) ever after. Here
each object of the stream is one Python object: where the stream has a reference, the
same Python object appears again. Compare with ``is``. Numbers are given anew when a
stream is written.

Primitive values are kept as the bytes they were, so that what is not understood, and
the payload of a NaN, comes back unchanged; ``field_value`` decodes them. Strings are
kept in Java's modified UTF-8.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathosam_qupath.qupath.java_writer import StreamWriter

Value: TypeAlias = Any
"""A node, or a primitive: its bytes as stored, or what they mean."""

HEADER = b"\xac\xed\x00\x05"
FIRST_HANDLE = 0x7E0000
(
    TC_NULL,
    TC_REFERENCE,
    TC_CLASSDESC,
    TC_OBJECT,
    TC_STRING,
    TC_ARRAY,
    TC_CLASS,
    TC_BLOCKDATA,
    TC_ENDBLOCKDATA,
    TC_RESET,
    TC_BLOCKDATALONG,
    TC_EXCEPTION,
    TC_LONGSTRING,
    TC_PROXYCLASSDESC,
    TC_ENUM,
) = range(0x70, 0x7F)

SC_WRITE_METHOD = 0x01
SC_SERIALIZABLE = 0x02
SC_EXTERNALIZABLE = 0x04
SC_BLOCK_DATA = 0x08
SC_ENUM = 0x10

PRIMITIVE_FORMATS = {
    "B": ">b",
    "C": ">H",
    "D": ">d",
    "F": ">f",
    "I": ">i",
    "J": ">q",
    "S": ">h",
    "Z": ">?",
}
PRIMITIVE_SIZES = {"B": 1, "C": 2, "D": 8, "F": 4, "I": 4, "J": 8, "S": 2, "Z": 1}
ARRAY_DTYPES = {
    "B": "i1",
    "C": ">u2",
    "D": ">f8",
    "F": ">f4",
    "I": ">i4",
    "J": ">i8",
    "S": ">i2",
    "Z": "?",
}


@dataclass(eq=False, slots=True)
class JavaString:
    """A string; ``raw`` is modified UTF-8, ``long`` the tag for more than 65,535 bytes."""

    raw: bytes
    long: bool = False

    def __str__(self) -> str:
        return decode_utf(self.raw)


@dataclass(eq=False, slots=True)
class JavaField:
    """A field of a class: its type code, its name, and the type string of a reference."""

    code: str
    name: bytes
    type: Node = None


@dataclass(eq=False, slots=True)
class JavaClass:
    """A class descriptor; of a dynamic proxy when ``interfaces`` is not None."""

    name: str
    uid: int = 0
    flags: int = SC_SERIALIZABLE
    fields: list[JavaField] = field(default_factory=list)
    annotation: list[Node] = field(default_factory=list)
    parent: JavaClass | None = None
    interfaces: list[bytes] | None = None
    complete: bool = True
    depth: int = 1

    def chain(self) -> Iterator[JavaClass]:
        """The class itself, its superclass, and so on."""
        at: JavaClass | None = self
        while at is not None:
            yield at
            at = at.parent

    def is_a(self, name: str) -> bool:
        """Whether this class or one that it derives from has this name."""
        return any(c.name == name for c in self.chain())


@dataclass(eq=False, slots=True)
class ClassData:
    """What one class of an object's chain wrote: field values, then what it added.

    ``values`` has an entry for each field: bytes of a primitive, else a node.
    ``annotation`` is None for a class without ``writeObject``.
    """

    of: JavaClass
    values: list[Any]
    annotation: list[Node] | None = None


@dataclass(eq=False, slots=True)
class JavaObject:
    """An object; ``data`` is in the stream's order, the superclass first."""

    of: JavaClass
    data: list[ClassData] = field(default_factory=list)

    @property
    def contents(self) -> list[Node]:
        """What the most derived class wrote by hand (``writeExternal``, ``writeObject``)."""
        if not self.data or self.data[-1].annotation is None:
            return []
        return self.data[-1].annotation

    def get(self, name: str, default: Value = None) -> Value:
        """A field's value by name, primitives decoded; ``default`` where there is none."""
        found = self._field(name)
        return default if found is None else field_value(*found)

    def raw(self, name: str) -> Value:
        """A field's value as it is in the stream: bytes of a primitive, else a node."""
        found = self._field(name)
        return None if found is None else found[1]

    def _field(self, name: str) -> tuple[JavaField, Value] | None:
        wanted = name.encode()
        for part in reversed(self.data):
            for described, value in zip(part.of.fields, part.values, strict=True):
                if described.name == wanted:
                    return described, value
        return None


@dataclass(eq=False, slots=True)
class JavaArray:
    """An array: ``raw`` bytes of a primitive type, else ``items``."""

    of: JavaClass
    raw: bytes | None = None
    items: list[Node] = field(default_factory=list)

    def numbers(self) -> NDArray[Any]:
        """The primitive values (big-endian dtype, read only)."""
        return np.frombuffer(self.raw or b"", ARRAY_DTYPES[self.of.name[1:2]])


@dataclass(eq=False, slots=True)
class JavaEnum:
    """An enum's constant."""

    of: JavaClass
    constant: Node


@dataclass(eq=False, slots=True)
class JavaClassObject:
    """A ``java.lang.Class`` as a value."""

    of: JavaClass | None


@dataclass(eq=False, slots=True)
class BlockData:
    """Bytes that a class wrote by hand between its objects."""

    raw: bytes
    long: bool = False


@dataclass(eq=False, slots=True)
class Reset:
    """From here on, the stream's numbers start anew."""


@dataclass(eq=False, slots=True)
class JavaException:
    """An exception that ended the writing of an object, written in its place."""

    thrown: Node


@dataclass(eq=False, slots=True)
class Reference:
    """A reference as such, where one example stands for many objects (``java_runs``).

    ``target`` is what it is in the example.
    """

    target: Node


class Run(ABC):
    """Many consecutive objects in one entry of a contents list (``java_runs``)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def write(self, writer: StreamWriter) -> None:
        """Write the objects with a ``StreamWriter``."""


Node: TypeAlias = (
    "JavaString | JavaClass | JavaObject | JavaArray | JavaEnum | JavaClassObject"
    " | BlockData | Reset | JavaException | Reference | Run | None"
)


def field_value(described: JavaField, value: Value) -> Value:
    """A field's value as Python sees it: a primitive decoded, any other node as it is."""
    if described.code in PRIMITIVE_FORMATS:
        return struct.unpack(PRIMITIVE_FORMATS[described.code], value)[0]
    return value


def encode_utf(text: str) -> bytes:
    """Java's modified UTF-8: NUL in two bytes, and surrogates one by one."""
    if text.isascii() and "\0" not in text:
        return text.encode()
    utf16 = text.encode("utf-16-be", "surrogatepass")
    units = struct.unpack(f">{len(utf16) // 2}H", utf16)
    return b"".join(
        b"\xc0\x80" if u == 0 else chr(u).encode("utf-8", "surrogatepass") for u in units
    )


def decode_utf(raw: bytes) -> str:
    """Read Java's modified UTF-8; what is no such thing becomes U+FFFD."""
    if raw.isascii():
        return raw.decode()
    raw = raw.replace(b"\xc0\x80", b"\0")
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")
    return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "replace")
