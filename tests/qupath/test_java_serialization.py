"""Java object streams: every part of the grammar, hostile input, generated streams."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.java_objects import (
    HEADER,
    PRIMITIVE_SIZES,
    SC_BLOCK_DATA,
    SC_EXTERNALIZABLE,
    SC_SERIALIZABLE,
    SC_WRITE_METHOD,
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
    decode_utf,
    encode_utf,
)
from pathosam_qupath.qupath.java_serialization import read_stream, write_stream


def written(*nodes: Node) -> bytes:
    file = io.BytesIO()
    write_stream(list(nodes), file)
    return file.getvalue()


def utf(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode()


def class_bytes(name: str, flags: int, fields: bytes = b"\0\0", parent: bytes = b"p") -> bytes:
    return b"r" + utf(name) + struct.pack(">qB", 1, flags) + fields + b"x" + parent


POINT = class_bytes("Point", 2, b"\0\2" + b"I" + utf("x") + b"D" + utf("y"))

STREAMS = {
    "nothing": b"",
    "null": b"p",
    "block": b"w\x03abc",
    "long block": b"z\0\0\0\x02ab",
    "string": b"t" + utf("EOF"),
    "long string": b"|" + struct.pack(">Q", 3) + b"abc",
    "string twice": b"t" + utf("a") + b"q\0\x7e\0\0",
    "object with primitives": b"s" + POINT + struct.pack(">id", -1, float("nan")),
    "signalling NaN": b"s" + class_bytes("F", 2, b"\0\1F" + utf("f")) + bytes.fromhex("7f800001"),
    "fields in an unusual order": b"s"
    + class_bytes("O", 2, b"\0\2" + b"L" + utf("a") + b"t" + utf("LO;") + b"I" + utf("b"))
    + b"p"
    + struct.pack(">i", 7),
    "object that holds itself": b"s"
    + class_bytes("O", 2, b"\0\1" + b"L" + utf("a") + b"t" + utf("LO;"))
    + b"q\0\x7e\0\2",
    "writeObject": b"s" + class_bytes("W", 3) + b"w\x01a" + b"t" + utf("b") + b"x",
    "externalizable": b"s" + class_bytes("E", 0x0C) + b"w\x04\0\0\0\0p" + b"x",
    "superclass": b"s"
    + class_bytes("B", 3, b"\0\1I" + utf("b"), class_bytes("A", 3, b"\0\1I" + utf("a")))
    + b"\0\0\0\1x"
    + b"\0\0\0\2x",
    "enum": b"~"
    + class_bytes("E", 0x12, parent=class_bytes("java.lang.Enum", 0x12))
    + b"t"
    + utf("A"),
    "class object": b"v" + POINT,
    "dynamic proxy": b"s}" + struct.pack(">I", 2) + utf("A") + utf("B") + b"xp",
    "reset": b"t" + utf("a") + b"y" + b"t" + utf("a") + b"q\0\x7e\0\0",
    "exception": b"t" + utf("a") + b"{s" + class_bytes("IOException", 2) + b"t" + utf("b"),
    "array of objects": b"u"
    + class_bytes("[LO;", 2)
    + b"\0\0\0\3p"
    + b"t"
    + utf("a")
    + b"q\0\x7e\0\2",
    "class annotation": b"s" + b"r" + utf("A") + struct.pack(">qBH", 1, 2, 0) + b"w\1a" + b"xp",
    "unknown characters in a class name": b"v"
    + b"r\0\3a\xc0\x80"
    + struct.pack(">qBH", 1, 2, 0)
    + b"xp",
} | {
    f"array of {code}": b"u" + class_bytes("[" + code, 2) + b"\0\0\0\2" + b"\x81" * (2 * size)
    for code, size in PRIMITIVE_SIZES.items()
}


@pytest.mark.parametrize("name", STREAMS)
def test_every_part_of_the_grammar_comes_back(name: str) -> None:
    raw = HEADER + STREAMS[name]
    assert written(*read_stream(raw)) == raw


def test_references_are_the_same_object() -> None:
    first, second = read_stream(HEADER + STREAMS["string twice"])
    assert first is second


def test_fields_are_decoded_by_name() -> None:
    (point,) = read_stream(HEADER + b"s" + POINT + struct.pack(">id", -1, 2.5))
    assert isinstance(point, JavaObject)
    assert (point.get("x"), point.get("y"), point.get("z", "none")) == (-1, 2.5, "none")


def test_arrays_are_numbers() -> None:
    (array,) = read_stream(HEADER + b"u" + class_bytes("[D", 2) + struct.pack(">Idd", 2, 1, -2))
    assert isinstance(array, JavaArray)
    assert array.numbers().tolist() == [1, -2]


def test_a_definition_moves_to_the_next_use_when_its_first_carrier_goes() -> None:
    first, second = (b"s" + POINT + bytes(12), b"sq\0\x7e\0\0" + bytes(12))
    nodes = read_stream(HEADER + first + second)
    assert written(*nodes[1:]) == HEADER + first


@pytest.mark.parametrize("text", ["", "a", "é", "\0", "µm^2", "日本", "🧬", "a\0🧬é", "\ud800"])
def test_modified_utf8(text: str) -> None:
    raw = encode_utf(text)
    assert b"\0" not in raw
    assert all(byte < 0xF0 for byte in raw)
    assert decode_utf(raw) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_strings_of_more_than_65535_bytes_get_the_tag_for_them() -> None:
    raw = written(JavaString(b"a" * 65_536))
    assert raw[4:5] == b"|"
    assert str(read_stream(raw)[0]) == "a" * 65_536


HOSTILE = {
    "empty": b"",
    "no header": b"PK\x03\x04",
    "unknown tag": HEADER + b"\x6f",
    "end of block without block": HEADER + b"x",
    "reference to nothing": HEADER + b"q\0\x7e\0\0",
    "reference before the first": HEADER + b"q\0\0\0\0",
    "huge string": HEADER + b"t\xff\xff",
    "huge long string": HEADER + b"|" + b"\x7f" + b"\xff" * 7,
    "negative long string": HEADER + b"|" + b"\xff" * 8,
    "huge block": HEADER + b"z\x7f\xff\xff\xff",
    "negative block": HEADER + b"z\xff\xff\xff\xff",
    "huge array": HEADER + b"u" + class_bytes("[D", 2) + b"\x7f\xff\xff\xff",
    "negative array": HEADER + b"u" + class_bytes("[D", 2) + b"\xff\xff\xff\xff",
    "huge array of objects": HEADER + b"u" + class_bytes("[LO;", 2) + b"\x7f\xff\xff\xff",
    "array of nothing": HEADER + b"u" + class_bytes("[", 2) + b"\0\0\0\0",
    "array of no array class": HEADER + b"u" + POINT + b"\0\0\0\0",
    "huge proxy": HEADER + b"s}\x7f\xff\xff\xff",
    "class without end": HEADER + b"sr" + utf("A") + struct.pack(">qBH", 1, 2, 65_535),
    "unknown field type": HEADER + b"s" + class_bytes("A", 2, b"\0\1Q" + utf("a")),
    "field type that is no string": HEADER + b"s" + class_bytes("A", 2, b"\0\1L" + utf("a") + b"p"),
    "its own superclass": HEADER + b"s" + class_bytes("A", 2, parent=b"q\0\x7e\0\0"),
    "object of a string": HEADER + b"t" + utf("a") + b"sq\0\x7e\0\0",
    "object of null": HEADER + b"sp",
    "block as a field": HEADER
    + b"s"
    + class_bytes("O", 2, b"\0\1L" + utf("a") + b"t" + utf("LO;"))
    + b"w\0",
    "not serializable": HEADER + b"s" + class_bytes("A", 0),
    "object of an enum class": HEADER + b"s" + class_bytes("A", 0x12),
    "externalizable of protocol 1": HEADER + b"s" + class_bytes("A", 4) + b"x",
    "enum without name": HEADER + b"~" + class_bytes("A", 0x12) + b"p",
    "nested objects": HEADER
    + b"s"
    + class_bytes("O", 2, b"\0\1L" + utf("a") + b"t" + utf("LO;"))
    + b"sq\0\x7e\0\0" * 100_000,
    "nested arrays": HEADER
    + b"u"
    + class_bytes("[[I", 2)
    + b"\0\0\0\1"
    + b"uq\0\x7e\0\0\0\0\0\1" * 100_000,
    "nested classes": HEADER
    + b"v"
    + b"r"
    + (utf("A") + struct.pack(">qBH", 1, 2, 0) + b"xr") * 100_000,
    "nested exceptions": HEADER + b"{" * 100_000,
    "nested class annotations": HEADER
    + b"v"
    + (b"r" + utf("A") + struct.pack(">qBH", 1, 2, 0) + b"v") * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_refused(name: str) -> None:
    raw = HOSTILE[name]
    begin = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(FormatError, match="expected"):
        read_stream(raw, "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000 + 20 * len(raw)
    assert time.perf_counter() - begin < 2


def test_many_classes_on_each_other_take_no_quadratic_time() -> None:
    links = [
        b"v" + b"r" + utf("A") + struct.pack(">qBH", 1, 2, 0) + b"xq" + struct.pack(">I", handle)
        for handle in range(0x7E0001, 0x7E0001 + 2 * 20_000, 2)
    ]
    with pytest.raises(FormatError, match="superclasses"):
        read_stream(HEADER + b"t\0\0" + POINT.join([b"v", b""]) + b"".join(links))


@pytest.mark.parametrize("name", STREAMS)
def test_every_cut_is_refused_or_a_shorter_stream(name: str) -> None:
    raw = HEADER + STREAMS[name]
    for end in range(len(raw)):
        try:
            nodes = read_stream(raw[:end])
        except FormatError as error:
            assert "byte" in str(error)
        else:
            assert written(*nodes) == raw[:end]


def test_an_error_says_where_and_what() -> None:
    with pytest.raises(
        FormatError, match=r"file: damaged at byte 4 of 5: expected the tag"
    ) as info:
        read_stream(HEADER + b"\x01", "file")
    assert "found 01" in info.value.cause


NAMES = st.sampled_from(["A", "B", "qupath.lib.C"])
STRINGS = st.text(max_size=5).map(lambda text: JavaString(encode_utf(text)))
PRIMITIVES = st.sampled_from(sorted(PRIMITIVE_SIZES))


@st.composite
def classes(draw: st.DrawFn, parent: JavaClass | None = None) -> JavaClass:
    flags = draw(
        st.sampled_from(
            [SC_SERIALIZABLE, SC_SERIALIZABLE | SC_WRITE_METHOD, SC_EXTERNALIZABLE | SC_BLOCK_DATA]
        )
    )
    fields = [
        JavaField(code, b"f", JavaString(b"LA;") if code == "L" else None)
        for code in draw(st.lists(st.one_of(PRIMITIVES, st.just("L")), max_size=3))
        if not flags & SC_EXTERNALIZABLE
    ]
    above = draw(st.none() if parent is not None else st.one_of(st.none(), classes(JavaClass("Z"))))
    return JavaClass(draw(NAMES), 1, flags, fields, parent=above)


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[Node]) -> JavaObject:
    node = JavaObject(draw(classes()))
    contents = st.lists(st.one_of(values, st.binary(max_size=300).map(BlockData)), max_size=3)
    if node.of.flags & SC_EXTERNALIZABLE:
        node.data.append(ClassData(node.of, [], draw(contents)))
        return node
    for part in reversed([c for c in node.of.chain() if c.flags & SC_SERIALIZABLE]):
        custom = part.flags & SC_WRITE_METHOD
        if part.fields or custom:
            filled = [
                draw(st.binary(min_size=n, max_size=n))
                if (n := PRIMITIVE_SIZES.get(f.code, 0))
                else draw(values)
                for f in part.fields
            ]
            node.data.append(ClassData(part, filled, draw(contents) if custom else None))
    return node


def arrays(values: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.lists(values, max_size=3).map(lambda items: JavaArray(JavaClass("[LA;"), None, items))


VALUES = st.recursive(
    st.one_of(
        st.none(),
        STRINGS,
        st.binary(max_size=40).map(lambda raw: JavaArray(JavaClass("[B"), raw)),
        STRINGS.map(lambda name: JavaEnum(JavaClass("E", flags=0x12), name)),
        st.just(JavaClassObject(JavaClass("A"))),
    ),
    lambda values: st.one_of(objects(values), arrays(values)),
    max_leaves=12,
)
TOP = st.lists(st.one_of(VALUES, st.just(Reset()), objects(VALUES).map(JavaException)), max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(nodes=TOP, repeated=st.lists(st.integers(0, 3), max_size=3))
def test_generated_streams_come_back(nodes: list[Node], repeated: list[int]) -> None:
    nodes = nodes + [nodes[i] for i in repeated if i < len(nodes)]
    raw = written(*nodes)
    assert written(*read_stream(raw)) == raw
