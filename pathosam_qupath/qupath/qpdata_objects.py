"""QuPath's objects as they lie in a ``.qpdata`` stream.

An object is written by hand, in this order: name, colour, metadata (with the object's
id), measurements, the number of children, the children, whether it is locked, its class,
its ROI, the probability of the class. A cell adds its nucleus, a TMA core whether it is
missing; the root stops after its children. A layout with the id as an object of its own
("version 4") exists in QuPath's code, and is read here too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.java_objects import (
    BlockData,
    JavaArray,
    JavaClass,
    JavaObject,
    JavaString,
    Node,
    Reference,
    Value,
)
from pathosam_qupath.qupath.java_runs import ObjectRun
from pathosam_qupath.qupath.objects import ObjectType, PathObject
from pathosam_qupath.qupath.qpdata_rois import read_roi

PACKAGE = "qupath.lib.objects."
PATH_OBJECT = PACKAGE + "PathObject"
ROOT = PACKAGE + "PathRootObject"
DETECTION = PACKAGE + "PathDetectionObject"
METADATA = PACKAGE + "MetadataMap"
ID_KEY = "Object ID"
NO_ID = UUID("7f1c4c5e-51a5-4ae0-9c5a-6a60e9d9e3c1")
"""Namespace of the ids that objects without one get here (files before QuPath 0.4)."""
OBJECT_TYPES: dict[str, ObjectType] = {
    PACKAGE + "PathCellObject": "cell",
    PACKAGE + "PathTileObject": "tile",
    DETECTION: "detection",
    PACKAGE + "PathAnnotationObject": "annotation",
    PACKAGE + "TMACoreObject": "tma_core",
}


@dataclass(frozen=True, eq=False)
class ObjectParts:
    """Where the parts of an object are in its contents.

    ``count_at`` is the index of the block with the number of children, ``tail_at`` of
    what follows the last child.
    """

    name: Node
    color: Node
    id: Node
    metadata: Node
    measurements: Node
    count_at: int
    tail_at: int
    count: int
    locked: Node = None
    path_class: Node = None
    roi: Node = None
    last: BlockData | None = None
    nucleus: Node = None

    @property
    def probability(self) -> float | None:
        """Of the class; None where there is none (NaN in the file)."""
        if self.last is None:
            return None
        value: float = struct.unpack(">d", self.last.raw[:8])[0]
        return None if value != value else value

    @property
    def missing(self) -> bool:
        """Whether a TMA core is marked as missing."""
        return self.last is not None and len(self.last.raw) > 8 and self.last.raw[8] != 0


def damaged(subject: object, cause: str) -> FormatError:
    """The error of a stream that is well formed but not what QuPath writes."""
    return FormatError(subject, cause, "Restore data.qpdata.bkp, or save the image in QuPath.")


def object_type(of: JavaClass) -> ObjectType | None:
    """What kind of object a class, or one derived from it, stands for; None if unknown."""
    for ancestor in of.chain():
        if ancestor.name in OBJECT_TYPES:
            return OBJECT_TYPES[ancestor.name]
    return None


def read_parts(node: JavaObject, subject: object) -> ObjectParts:
    """Take an object's contents apart; what comes after the known parts is left alone."""
    contents = node.contents
    kind = node.of.name.removeprefix(PACKAGE)
    if not node.of.is_a(PATH_OBJECT):
        raise damaged(subject, f"an object of QuPath's is expected, found {node.of.name}")
    try:
        name, color, first = contents[0], contents[1], contents[2]
        identifier = metadata = measurements = None
        at = 3
        if is_instance(first, "java.util.UUID"):
            identifier = first
            at += 1
            while not isinstance(contents[at], BlockData):
                if is_instance(contents[at], METADATA):
                    metadata = contents[at]
                elif contents[at] is not None:
                    measurements = contents[at]
                at += 1
        elif is_instance(first, METADATA):
            metadata, measurements = first, contents[3]
            at = 4
        else:
            measurements = first
        count_at = at
        block = contents[at]
        if not isinstance(block, BlockData) or len(block.raw) < 4:
            raise damaged(subject, f"a {kind} lacks its number of children")
        count = struct.unpack(">i", block.raw[-4:])[0]
        at += 1
        left = count
        while left > 0:
            child = contents[at]
            left -= len(child) if isinstance(child, ObjectRun) else 1
            at += 1
        if left < 0 and count > 0:
            raise damaged(subject, f"a {kind} has more children than it says ({count})")
        parts = (name, color, identifier, metadata, measurements, count_at, at, count)
        if node.of.is_a(ROOT):
            return ObjectParts(*parts)
        locked = None
        if is_instance(contents[at], "java.lang.Boolean"):
            locked = contents[at]
            at += 1
        path_class, roi, last = contents[at], contents[at + 1], contents[at + 2]
        if not isinstance(last, BlockData) or len(last.raw) < 8:
            raise damaged(subject, f"a {kind} lacks its class probability")
        nucleus = None
        if object_type(node.of) == "cell" and len(contents) > at + 3:
            nucleus = contents[at + 3]
        return ObjectParts(*parts, locked, path_class, roi, last, nucleus)
    except IndexError:
        raise damaged(subject, f"a {kind} ends before its last part") from None


def children_of(node: JavaObject, parts: ObjectParts) -> Iterator[Node]:
    """The entries of an object's list of children: objects, or runs of them."""
    for child in node.contents[parts.count_at + 1 : parts.tail_at]:
        if isinstance(child, ObjectRun):
            yield from child.pieces()
        else:
            yield child


def read_object(
    node: JavaObject,
    parts: ObjectParts,
    given: UUID,
    parent: UUID | None,
    subject: object,
) -> PathObject | None:
    """An object as a plain value; None for kinds of object that are not known.

    ``given`` is its id where the file has none.
    """
    kind = object_type(node.of)
    if kind is None:
        return None
    metadata = read_metadata(parts.metadata, subject)
    roi = read_roi(parts.roi, subject)
    nucleus = read_roi(parts.nucleus, subject)
    return PathObject(
        id=read_id(parts) or given,
        object_type=kind,
        geometry=roi.geometry,
        roi=roi.kind,
        classification=classification(parts.path_class, subject),
        probability=parts.probability,
        name=text(parts.name),
        color=color(parts.color),
        locked=bool(boxed(parts.locked)),
        measurements=read_measurements(parts.measurements, subject),
        metadata={k: v for k, v in metadata.items() if k != ID_KEY},
        parent=parent,
        plane=roi.plane,
        nucleus=None if nucleus.kind == "none" else nucleus.geometry,
    )


def is_instance(node: Node, class_name: str) -> bool:
    """Whether a node is an object of this class or one derived from it."""
    if isinstance(node, Reference):
        node = node.target
    return isinstance(node, JavaObject) and node.of.is_a(class_name)


def text(node: Node) -> str | None:
    """A string's text; None for null and for what is no string."""
    return str(node) if isinstance(node, JavaString) else None


def boxed(node: Node) -> Value:
    """The value in a ``java.lang.Integer``, ``Double`` or ``Boolean``, or None."""
    return node.get("value") if isinstance(node, JavaObject) else None


def color(node: Node) -> tuple[int, int, int] | None:
    """Red, green and blue of a packed colour, or None."""
    packed = boxed(node)
    if not isinstance(packed, int):
        return None
    return (packed >> 16) & 255, (packed >> 8) & 255, packed & 255


def list_items(node: Node) -> list[Node]:
    """What is in any of Java's own lists, or in an array."""
    for _ in range(8):
        if isinstance(node, JavaArray):
            return node.items
        if not isinstance(node, JavaObject):
            return []
        for part in reversed(node.data):
            if part.annotation is not None:
                return [n for n in part.annotation if not isinstance(n, BlockData)]
        if node.of.name == "java.util.Collections$SingletonList":
            return [node.get("element")]
        node = node.get("list") or node.get("c") or node.get("a")
    return []


def map_items(node: Node) -> list[tuple[Node, Node]]:
    """Keys and values of any of Java's own maps, or of QuPath's metadata map."""
    if not isinstance(node, JavaObject):
        return []
    if node.of.name == "java.util.Collections$SingletonMap":
        return [(node.get("k"), node.get("v"))]
    if node.of.is_a(METADATA):
        arrays = [n for n in node.contents if isinstance(n, JavaArray)]
        return list(zip(arrays[0].items, arrays[1].items, strict=False)) if arrays[1:] else []
    items = list_items(node)
    if items or node.get("m") is None:
        return list(zip(items[::2], items[1::2], strict=False))
    return map_items(node.get("m"))


def read_metadata(node: Node, subject: object) -> dict[str, str]:
    """The string pairs of an object, its id among them, in the order they have."""
    pairs = {}
    for key, value in map_items(node):
        if not isinstance(key, JavaString):
            raise damaged(subject, "a key of an object's metadata is no string")
        pairs[str(key)] = text(value) or ""
    return pairs


def read_id(parts: ObjectParts) -> UUID | None:
    """An object's id, in either layout; None where there is none that QuPath takes."""
    if isinstance(parts.id, JavaObject):
        mask = (1 << 64) - 1
        high, low = (int(parts.id.get(k, 0)) & mask for k in ("mostSigBits", "leastSigBits"))
        return UUID(int=(high << 64) | low)
    for key, value in map_items(parts.metadata):
        if text(key) == ID_KEY:
            try:
                return UUID(text(value) or "")
            except ValueError:
                return None
    return None


def classification(node: Node, subject: object) -> str | None:
    """A class's name; of a derived class "parent: name"."""
    names: list[str] = []
    at = node
    for _ in range(64):
        if not isinstance(at, JavaObject):
            names.reverse()
            return ": ".join(names) if names else None
        name = text(at.get("name"))
        if name is not None:
            names.append(name)
        at = at.get("parentClass")
    raise damaged(subject, "a class is derived from itself, or from more than 64 others")


def read_measurements(node: Node, subject: object) -> dict[str, float]:
    """Measurements by name, whichever of QuPath's three lists holds them."""
    if not isinstance(node, JavaObject):
        return {}
    values = node.get("values")
    if isinstance(values, JavaArray) and values.raw is not None:
        names: list[str] = [text(n) or "" for n in list_items(node.get("names"))]
        numbers = values.numbers().astype(float).tolist()
        if len(numbers) < len(names):
            raise damaged(subject, f"{len(names)} measurements have {len(numbers)} values")
        return dict(zip(names, numbers, strict=False))
    items = [m for m in list_items(node.get("list")) if isinstance(m, JavaObject)]
    return {text(m.get("name")) or "": float(m.get("value", float("nan"))) for m in items}
