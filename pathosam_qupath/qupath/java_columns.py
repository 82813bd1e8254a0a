"""Whole columns between numpy and lists of Java objects, without a call per object.

A call from Python into Java costs microseconds, and a million objects need dozens of
calls each. Java's method handles can be put together from Python and then run over a
list inside Java: one call per column. The Java machine must be running before this
module's functions are used (:mod:`pathosam_qupath.qupath.jvm`).

Rows are given to a method by :class:`Rows`: row ``i`` of a Java array or list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from jpype import JArray, JClass, JDouble, JInt, JLong
from numpy.typing import NDArray

Java: TypeAlias = Any
"""A Java object or class as JPype shows it."""


@dataclass(frozen=True)
class Rows:
    """Values of a call's argument, one per row: a Java array, or a ``java.util.List``."""

    values: Java


@cache
def _java(name: str) -> Java:
    return JClass(name)


def _lang(name: str) -> Java:
    return _java(f"java.lang.invoke.{name}")


def _lookup() -> Java:
    # The public lookup: that of the caller would need a Java class of our own.
    return _lang("MethodHandles").publicLookup()


_PRIMITIVES = {
    "boolean": "java.lang.Boolean",
    "int": "java.lang.Integer",
    "long": "java.lang.Long",
    "double": "java.lang.Double",
    "void": "java.lang.Void",
}


@cache
def java_class(name: str) -> Java:
    """Return the ``java.lang.Class`` of a type: ``"int"``, ``"double[]"``, ``"java.util.List"``."""
    if name.endswith("[]"):
        return _java("java.lang.reflect.Array").newInstance(java_class(name[:-2]), 0).getClass()
    if name in _PRIMITIVES:
        return _java(_PRIMITIVES[name]).TYPE
    return _java(name).class_


def _type(returns: str, *parameters: str) -> Java:
    return _type_of(java_class(returns), *parameters)


def _type_of(returns: Java, *parameters: str) -> Java:
    classes = JArray(_java("java.lang.Class"))([java_class(name) for name in parameters])
    return _lang("MethodType").methodType(returns, classes)


def method(owner: str, name: str, returns: str, *parameters: str) -> Java:
    """Return a handle of a public method; its first argument is the object."""
    return _lookup().findVirtual(java_class(owner), name, _type(returns, *parameters))


def static_method(owner: str, name: str, returns: str, *parameters: str) -> Java:
    """Return a handle of a public static method."""
    return _lookup().findStatic(java_class(owner), name, _type(returns, *parameters))


def constructor(owner: str, *parameters: str) -> Java:
    """Return a handle of a public constructor."""
    return _lookup().findConstructor(java_class(owner), _type("void", *parameters))


def field_setter(owner: str, name: str) -> Java:
    """Return a handle that sets a field, a private one too: (object, value)."""
    field = _java(owner).class_.getDeclaredField(name)
    field.setAccessible(True)
    return _lookup().unreflectSetter(field)


def hidden_method(owner: str, name: str, *parameters: str) -> Java:
    """Return a handle of a method that is not public; its first argument is the object."""
    classes = JArray(_java("java.lang.Class"))([java_class(parameter) for parameter in parameters])
    found = _java(owner).class_.getDeclaredMethod(name, classes)
    found.setAccessible(True)
    return _lookup().unreflect(found)


def chain(first: Java, *then: Java) -> Java:
    """Return one handle that calls handles of one argument one after the other."""
    for handle in then:
        argument = handle.type().parameterType(0)
        first = first.asType(first.type().changeReturnType(argument))
        first = _lang("MethodHandles").filterReturnValue(first, handle)
    return first


def with_arguments(handle: Java, *arguments: object) -> Java:
    """Return the handle with its arguments after the first one fixed."""
    return _lang("MethodHandles").insertArguments(handle, 1, list(arguments))


def proxy(interface: str, handle: Java) -> Java:
    """Return an object of an interface with one method, which calls the handle."""
    return _lang("MethodHandleProxies").asInterfaceInstance(java_class(interface), handle)


def not_null() -> Java:
    """Return a handle that tells whether its argument is an object."""
    return static_method("java.util.Objects", "nonNull", "boolean", "java.lang.Object")


# ---- from Java: a column of a list's objects ----------------------------------------


def longs(objects: Java, handle: Java) -> NDArray[np.int64]:
    """Return what the handle gives for each object; ``boolean`` as 0 and 1."""
    handle = _lang("MethodHandles").explicitCastArguments(
        handle, handle.type().changeReturnType(java_class("long"))
    )
    stream = objects.stream().mapToLong(proxy("java.util.function.ToLongFunction", handle))
    return np.array(stream.toArray(), dtype=np.int64)


def flags(objects: Java, handle: Java) -> NDArray[np.bool_]:
    """Return a column of booleans."""
    return longs(objects, handle).astype(np.bool_)


def doubles(objects: Java, handle: Java) -> NDArray[np.float64]:
    """Return a column of floating-point numbers."""
    return doubles_of(objects.stream(), handle)


def doubles_of(stream: Java, handle: Java) -> NDArray[np.float64]:
    """Return what the handle gives for each element of a Java stream."""
    function = proxy("java.util.function.ToDoubleFunction", handle)
    return np.array(stream.mapToDouble(function).toArray(), dtype=np.float64)


def values(objects: Java, handle: Java) -> Java:
    """Return a Java list with what the handle gives for each object."""
    stream = objects.stream().map(proxy("java.util.function.Function", handle))
    return _java("java.util.Arrays").asList(stream.toArray())


def each_of(lists: Java, handle: Java) -> Java:
    """Return a Java stream of what the handle's collections hold, one after the other."""
    stream = method("java.util.Collection", "stream", "java.util.stream.Stream")
    return lists.stream().flatMap(proxy("java.util.function.Function", chain(handle, stream)))


def concatenated_doubles(objects: Java, handle: Java) -> NDArray[np.float64]:
    """Return the elements of the ``double[]`` that the handle gives, end to end."""
    of = static_method(
        "java.util.stream.DoubleStream", "of", "java.util.stream.DoubleStream", "double[]"
    ).asFixedArity()
    function = proxy("java.util.function.Function", chain(handle, of))
    return np.array(objects.stream().flatMapToDouble(function).toArray(), dtype=np.float64)


def codes(objects: Java, handle: Java) -> tuple[NDArray[np.int64], list[Java]]:
    """Return a column as indices into the list of its distinct values.

    Values are distinct by Java's ``equals``; null comes back as None.
    """
    function = proxy("java.util.function.Function", handle)
    distinct = objects.stream().map(function).distinct().toArray()
    places = _java("java.util.HashMap")()
    boxed = _java("java.lang.Long")
    for place, value in enumerate(distinct):
        places.put(value, boxed(place))
    place_of = method("java.util.Map", "get", "java.lang.Object", "java.lang.Object").bindTo(places)
    as_long = place_of.asType(_type("long", "java.lang.Object"))
    return longs(objects, chain(handle, as_long)), list(distinct)


def texts(objects: Java, handle: Java) -> tuple[NDArray[np.int64], list[str | None]]:
    """Return a column of strings as indices into the list of its distinct values."""
    places, distinct = codes(objects, handle)
    return places, [None if value is None else str(value) for value in distinct]


# ---- to Java: a call for each row ---------------------------------------------------


def int_array(numbers: NDArray[Any]) -> Java:
    """Copy numbers to a Java ``int[]``."""
    return JArray(JInt)(np.ascontiguousarray(numbers, dtype=np.int32))


def long_array(numbers: NDArray[Any]) -> Java:
    """Copy numbers to a Java ``long[]``."""
    return JArray(JLong)(np.ascontiguousarray(numbers, dtype=np.int64))


def double_array(numbers: NDArray[Any]) -> Java:
    """Copy numbers to a Java ``double[]``."""
    return JArray(JDouble)(np.ascontiguousarray(numbers, dtype=np.float64))


def for_rows(handle: Java, *arguments: object) -> Java:
    """Return a handle of one argument, the row: :class:`Rows` give theirs, others are fixed.

    An argument may itself be a handle made by this function; it is called with the row.
    """
    handles = _lang("MethodHandles")
    getters: list[Java] = []
    for argument in arguments:
        if isinstance(argument, Rows):
            getter = _row_getter(argument.values)
        elif isinstance(argument, _lang("MethodHandle")):
            getter = argument
        else:
            handle = handles.insertArguments(handle, len(getters), [argument])
            continue
        wanted = handle.type().parameterType(len(getters))
        getters.append(getter.asType(_type_of(wanted, "int")))
    handle = handles.filterArguments(handle, 0, getters)
    row = _lang("MethodType").methodType(handle.type().returnType(), java_class("int"))
    return handles.permuteArguments(handle, row, JArray(JInt)([0] * len(getters)))


def _row_getter(rows: Java) -> Java:
    if isinstance(rows, _java("java.util.List")):
        get = method("java.util.List", "get", "java.lang.Object", "int")
        return get.bindTo(rows)
    return _lang("MethodHandles").arrayElementGetter(rows.getClass()).bindTo(rows)


def slices(array: Java, element: str, offsets: NDArray[Any]) -> Java:
    """Return a row handle giving ``array[offsets[i]:offsets[i + 1]]`` as a new Java array."""
    kind = f"{element}[]"
    copy = static_method("java.util.Arrays", "copyOfRange", kind, kind, "int", "int")
    starts, ends = int_array(offsets[:-1]), int_array(offsets[1:])
    return for_rows(copy.bindTo(array), Rows(starts), Rows(ends))


def build(count: int, handle: Java) -> Java:
    """Return a Java list with what a row handle gives for rows 0 to ``count`` - 1."""
    function = proxy("java.util.function.IntFunction", handle)
    stream = _java("java.util.stream.IntStream").range(0, count).mapToObj(function)
    return _java("java.util.Arrays").asList(stream.toArray())


def run(count: int, handle: Java) -> None:
    """Call a row handle for rows 0 to ``count`` - 1."""
    void = handle.asType(handle.type().changeReturnType(java_class("void")))
    consumer = proxy("java.util.function.IntConsumer", void)
    _java("java.util.stream.IntStream").range(0, count).forEach(consumer)


def take(objects: Java, places: NDArray[Any] | Sequence[int]) -> Java:
    """Return the Java list of the objects at these places."""
    get = method("java.util.List", "get", "java.lang.Object", "int").bindTo(objects)
    return build(len(places), for_rows(get, Rows(int_array(np.asarray(places)))))
