"""New nodes for a ``.qpdata`` stream: classes, detections, and a whole empty file.

Class descriptors are the ones that QuPath 0.5 to 0.7 write (they are the same in the
three). A descriptor, a class, a string that the stream has already is used again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.qupath.java_objects import (
    PRIMITIVE_SIZES,
    SC_EXTERNALIZABLE,
    SC_SERIALIZABLE,
    SC_WRITE_METHOD,
    BlockData,
    ClassData,
    JavaArray,
    JavaClass,
    JavaEnum,
    JavaField,
    JavaObject,
    JavaString,
    Node,
    encode_utf,
)
from pathosam_qupath.qupath.java_runs import ObjectRun
from pathosam_qupath.qupath.qpdata_classes import CLASSES, LISTS, PATH_CLASS, ROI
from pathosam_qupath.qupath.qpdata_objects import (
    DETECTION,
    ID_KEY,
    METADATA,
    PACKAGE,
    ROOT,
    classification,
)

Color = tuple[int, int, int]
QUPATH_VERSION = "0.6.0"
"""The writer that a new file names."""
ALL_CHANNELS = struct.pack(">i", -1)


class Nodes:
    """Makes nodes that share what can be shared with a stream and with each other.

    Parameters
    ----------
    known : the nodes of the stream that may be used again, in any order.
    """

    def __init__(self, known: Iterable[Node] = ()) -> None:
        self.classes: dict[str, JavaClass] = {}
        self.path_classes: dict[str, JavaObject] = {}
        self.strings: dict[bytes, JavaString] = {}
        self.booleans: dict[bool, JavaObject] = {}
        self.one: JavaObject | None = None
        for node in known:
            self._know(node)

    def _know(self, node: Node) -> None:
        if isinstance(node, JavaClass):
            self.classes.setdefault(node.name, node)
        elif isinstance(node, JavaString):
            if node.raw == ID_KEY.encode():
                self.strings.setdefault(node.raw, node)
        elif isinstance(node, JavaObject):
            if node.of.name == PATH_CLASS:
                name = classification(node, "the image data")
                if name is not None:
                    self.path_classes.setdefault(name, node)
            elif node.of.name == "java.lang.Boolean":
                self.booleans.setdefault(bool(node.get("value")), node)
            elif node.of.name == METADATA and self.one is None and node.contents:
                version = node.contents[0]
                if isinstance(version, JavaObject) and version.get("value") == 1:
                    self.one = version

    def class_of(self, name: str) -> JavaClass:
        """A class's descriptor."""
        found = self.classes.get(name)
        if found is None:
            uid, flags, fields, parent = CLASSES[name]
            found = JavaClass(name, uid, flags)
            self.classes[name] = found
            for described in fields:
                code, field_name, *type_name = described.split()
                kind = self.string(type_name[0]) if type_name else None
                found.fields.append(JavaField(code, field_name.encode(), kind))
            found.parent = self.class_of(parent) if parent else None
        return found

    def string(self, text: str) -> JavaString:
        """A string that is written once, however often it is asked for."""
        raw = encode_utf(text)
        return self.strings.setdefault(raw, JavaString(raw))

    def object(
        self,
        name: str,
        fields: Mapping[str, Any] | None = None,
        annotation: list[Node] | None = None,
    ) -> JavaObject:
        """An object by the names of its fields; primitives as bytes, zero where not given."""
        of = self.class_of(name)
        node = JavaObject(of)
        if of.flags & SC_EXTERNALIZABLE:
            node.data.append(ClassData(of, [], annotation or []))
            return node
        fields = fields or {}
        for part in reversed([c for c in of.chain() if c.flags & SC_SERIALIZABLE]):
            custom = part.flags & SC_WRITE_METHOD
            if part.fields or custom:
                values = [fields.get(f.name.decode(), _zero(f.code)) for f in part.fields]
                written = (annotation if part is of else None) or []
                node.data.append(ClassData(part, values, written if custom else None))
        return node

    def integer(self, value: int) -> JavaObject:
        """A ``java.lang.Integer``."""
        return self.object("java.lang.Integer", {"value": struct.pack(">i", value)})

    def boolean(self, value: bool) -> JavaObject:
        """A ``java.lang.Boolean``, the same for all."""
        if value not in self.booleans:
            self.booleans[value] = self.object(
                "java.lang.Boolean", {"value": struct.pack(">?", value)}
            )
        return self.booleans[value]

    def array(self, kind: str, values: NDArray[Any] | bytes | list[Node]) -> JavaArray:
        """An array: "[F" and "[D" of numbers, "[B" of bytes, else of nodes."""
        if isinstance(values, list):
            return JavaArray(self.class_of(kind), None, values)
        if isinstance(values, bytes):
            return JavaArray(self.class_of(kind), values)
        dtype = {"[F": ">f4", "[D": ">f8"}[kind]
        return JavaArray(self.class_of(kind), np.ascontiguousarray(values, dtype).tobytes())

    def metadata(self, pairs: Mapping[JavaString, JavaString]) -> JavaObject:
        """A metadata map."""
        self.one = self.one or self.integer(1)
        kind = "[Ljava.lang.Object;"
        keys, values = list[Node](pairs), list[Node](pairs.values())
        contents: list[Node] = [self.one, self.array(kind, keys), self.array(kind, values)]
        return self.object(METADATA, annotation=contents)

    def names(self, names: Iterable[str]) -> JavaObject:
        """An ``ArrayList`` of measurement names, to be shared by many lists."""
        items = [self.string(n) for n in names]
        size = struct.pack(">i", len(items))
        return self.object("java.util.ArrayList", {"size": size}, [BlockData(size), *items])

    def measurements(self, names: JavaObject, values: NDArray[np.float64]) -> JavaObject:
        """An open list of doubles with shared names."""
        return self.object(
            LISTS + "DoubleList", {"names": names, "values": self.array("[D", values)}
        )

    def path_class(self, name: str, colors: Mapping[str, Color]) -> JavaObject:
        """The class of this name: the stream's own, or a new one with the colour given.

        A derived class ("Tumor: Positive") is made on its parent. A colour that is not
        given is grey.
        """
        name = ": ".join(part.strip() for part in name.split(":") if part.strip())
        found = self.path_classes.get(name)
        if found is None:
            parent_name, _, own_name = name.rpartition(": ")
            parent = self.path_class(parent_name, colors) if parent_name else None
            color = self.integer(packed_color(colors.get(name, (128, 128, 128))))
            fields = {"colorRGB": color, "name": self.string(own_name), "parentClass": parent}
            found = self.object(PATH_CLASS, fields)
            self.path_classes[name] = found
        return found

    def polygon(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> JavaObject:
        """A PolygonROI on QuPath's default plane."""
        fields = {"c": ALL_CHANNELS, "x": self.array("[F", x), "y": self.array("[F", y)}
        return self.object(ROI + "PolygonROI$SerializationProxy", fields)

    def geometry(self, wkb: bytes) -> JavaObject:
        """A GeometryROI on QuPath's default plane."""
        fields = {"c": ALL_CHANNELS, "wkb": self.array("[B", wkb)}
        return self.object(ROI + "GeometryROI$WKBSerializationProxy", fields)

    def detection(
        self,
        identifier: UUID,
        roi: JavaObject,
        *,
        run: JavaString | None,
        run_key: JavaString,
        measurements: JavaObject | None,
        path_class: JavaObject | None,
        probability: float,
        locked: bool = False,
        name: str | None = None,
        color: Color | None = None,
    ) -> JavaObject:
        """A ``PathDetectionObject`` without children."""
        id_value = JavaString(str(identifier).encode())
        pairs = {self.string(ID_KEY): id_value}
        if run is not None:
            pairs[run_key] = run
        contents: list[Node] = [
            JavaString(encode_utf(name)) if name is not None else None,
            self.integer(packed_color(color)) if color is not None else None,
            self.metadata(pairs),
            measurements,
            BlockData(struct.pack(">i", 0)),
            self.boolean(locked),
            path_class,
            roi,
            BlockData(struct.pack(">d", probability)),
        ]
        return self.object(DETECTION, annotation=contents)


def _zero(code: str) -> bytes | None:
    size = PRIMITIVE_SIZES.get(code)
    return bytes(size) if size else None


def packed_color(color: Color) -> int:
    """A colour as Java's signed, opaque ARGB integer."""
    red, green, blue = color
    return ((red << 16) | (green << 8) | blue) - (1 << 24)


def new_stream(
    server: Mapping[str, Any],
    image_type: str,
    identifier: str | None,
    root_id: UUID,
    properties: Mapping[str, str],
) -> list[Node]:
    """The nodes of a file for an image without objects.

    Parameters
    ----------
    server : the project entry's server builder (JSON).
    image_type : QuPath's constant, for instance "BRIGHTFIELD_H_E", or "UNSET".
    identifier : what QuPath notes as the image's id, if anything.
    root_id : the id of the hierarchy's root.
    properties : of the image data.
    """
    nodes = Nodes()
    header = {"dataVersion": 3, "qupathVersion": QUPATH_VERSION, "server": server}
    if identifier is not None:
        header["id"] = identifier
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    version = encode_utf("Data file version 3")
    empty = JavaString(b"")
    locale = dict.fromkeys(("country", "extensions", "script", "variant"), empty)
    root_metadata = nodes.metadata({nodes.string(ID_KEY): JavaString(str(root_id).encode())})
    root = nodes.object(
        ROOT, annotation=[None, None, root_metadata, None, BlockData(struct.pack(">i", 0))]
    )
    capacity = 16
    while capacity * 0.75 < len(properties):
        capacity *= 2
    pairs = [JavaString(encode_utf(t)) for pair in properties.items() for t in pair]
    return [
        BlockData(struct.pack(">H", len(version)) + version),
        JavaString(encode_utf(text)),
        nodes.object(
            "java.util.Locale",
            {"hashcode": struct.pack(">i", -1), "language": JavaString(b"en"), **locale},
        ),
        JavaEnum(
            nodes.class_of("qupath.lib.images.ImageData$ImageType"),
            JavaString(encode_utf(image_type)),
        ),
        None,
        nodes.object(
            "qupath.lib.plugins.workflow.Workflow",
            annotation=[BlockData(struct.pack(">ii", 1, 0))],
        ),
        nodes.object(PACKAGE + "hierarchy.PathObjectHierarchy", {"rootObject": root}),
        nodes.object(
            "java.util.HashMap",
            {
                "loadFactor": struct.pack(">f", 0.75),
                "threshold": struct.pack(">i", capacity * 3 // 4),
            },
            [BlockData(struct.pack(">ii", capacity, len(properties))), *pairs],
        ),
        JavaString(b"EOF"),
    ]


def walk_nodes(nodes: Sequence[Node]) -> Iterator[Node]:
    """Every node once, in the order of the stream; what a run refers to, not its objects."""
    seen: set[Node] = set()
    stack: list[Node] = list(reversed(nodes))
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        below: list[Any] = []
        if isinstance(node, JavaObject):
            below.append(node.of)
            for part in node.data:
                below += [v for v in part.values if not isinstance(v, bytes)]
                below += part.annotation or []
        elif isinstance(node, JavaArray):
            below = [node.of, *node.items]
        elif isinstance(node, JavaEnum):
            below = [node.of, node.constant]
        elif isinstance(node, JavaClass):
            below = [*(f.type for f in node.fields), *node.annotation, node.parent]
        elif isinstance(node, ObjectRun):
            numbers, _ = node.targets()
            below = [node.nodes[n] for n in numbers.tolist()]
        stack.extend(reversed(below))
