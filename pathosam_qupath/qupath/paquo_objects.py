"""QuPath's Java objects, many at once, as plain values and as frames."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from jpype import JClass
from numpy.typing import NDArray

from pathosam_qupath.qupath import java_columns as columns
from pathosam_qupath.qupath.classes import unpack_rgb
from pathosam_qupath.qupath.java_columns import Java
from pathosam_qupath.qupath.objects import RUN_KEY, PathObject, Plane
from pathosam_qupath.qupath.paquo_rois import ROI, geometries
from pathosam_qupath.qupath.qpdata_rois import NO_GEOMETRY

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

OBJECT = "qupath.lib.objects.PathObject"
CLASS = "qupath.lib.objects.classes.PathClass"
MEASUREMENTS = "qupath.lib.measurements.MeasurementList"
_STRING = "java.lang.String"
_ANY = "java.lang.Object"
_MAP = "java.util.Map"
_UUID = "java.util.UUID"
_PROBABILITY = "getClassProbability"
_PLANE = ("getC", "getZ", "getT")


def path_objects(objects: Java) -> list[PathObject]:
    """Return a Java list's objects as plain values, in its order."""
    kinds, shapes, rois = _regions(objects, "getROI")
    planes = iter(
        zip(
            *(columns.longs(rois, columns.method(ROI, n, "int")).tolist() for n in _PLANE),
            strict=True,
        )
    )
    names_of, names, values = _measurements(objects)
    copy = columns.chain(
        path_object_method("getMetadata", _MAP),
        columns.constructor("java.util.LinkedHashMap", _MAP),
    )
    metadata = _lookup(*_metadata(objects, copy))
    types = _object_types(objects)
    nuclei = _nuclei(objects, types)
    probabilities = columns.doubles(objects, path_object_method(_PROBABILITY, "double")).tolist()
    rows = zip(
        _id_texts(objects),
        types,
        shapes,
        kinds,
        _classes(objects),
        probabilities,
        _texts(objects, path_object_method("getName", _STRING)),
        _colors(objects),
        columns.flags(objects, path_object_method("isLocked", "boolean")).tolist(),
        (names[code] for code in names_of),
        metadata,
        _parents(objects),
        nuclei,
        strict=True,
    )
    found = []
    at = 0
    for (
        id_,
        type_,
        shape,
        kind,
        class_,
        probability,
        name,
        color,
        lock,
        own,
        meta,
        up,
        core,
    ) in rows:
        found.append(
            PathObject(
                id=UUID(id_),
                object_type=type_,
                geometry=shape,
                roi=kind,
                classification=class_,
                probability=None if probability != probability else probability,
                name=name,
                color=color,
                locked=lock,
                measurements=dict(zip(own, values[at : at + len(own)].tolist(), strict=True)),
                metadata=dict(meta),
                parent=None if up is None else UUID(up),
                plane=Plane() if kind == "none" else Plane(*next(planes)),
                nucleus=core,
            )
        )
        at += len(own)
    return found


_PLANE = ("getC", "getZ", "getT")


def detections_frame(objects: Java) -> gpd.GeoDataFrame:
    """Return a frame of Java detections: ``FRAME_COLUMNS``, then their measurements."""
    import geopandas as gpd
    import pandas as pd

    def column(values: list[str] | NDArray[Any]) -> pd.Series:
        return pd.Series(values, dtype=object)  # None stays None

    table: dict[str, Any] = {
        "id": column(_id_texts(objects)),
        "object_type": column(_object_types(objects)),
        "classification": column(_classes(objects)),
        "probability": columns.doubles(objects, path_object_method(_PROBABILITY, "double")),
        "name": column(_texts(objects, path_object_method("getName", _STRING))),
        "color": column(_colors(objects)),
        "locked": columns.flags(objects, path_object_method("isLocked", "boolean")),
        "parent": column(_parents(objects)),
        "run": column(_texts(objects, _run())),
    }
    table.update(_measurement_columns(*_measurements(objects)))
    _, shapes, _ = _regions(objects, "getROI")
    return gpd.GeoDataFrame(table, geometry=shapes)


def path_object_method(name: str, returns: str, *parameters: str) -> Java:
    """Return a handle of a method of QuPath's ``PathObject``."""
    return columns.method(OBJECT, name, returns, *parameters)


def id_keys(objects: Java) -> NDArray[np.void]:
    """Return the ids of Java objects as 16 bytes each, to be compared in bulk."""
    return np.ascontiguousarray(_id_parts(objects)).view("V16").ravel()


def uuid_keys(ids: Collection[UUID]) -> NDArray[np.void]:
    """Return ids in the form of :func:`id_keys`."""
    return np.frombuffer(b"".join(one.bytes for one in ids), dtype="V16")


def _id_texts(objects: Java) -> list[str]:
    digits = _id_parts(objects).tobytes().hex()
    return [
        f"{digits[i : i + 8]}-{digits[i + 8 : i + 12]}-{digits[i + 12 : i + 16]}-"
        f"{digits[i + 16 : i + 20]}-{digits[i + 20 : i + 32]}"
        for i in range(0, len(digits), 32)
    ]


def _id_parts(objects: Java) -> NDArray[Any]:
    """Return (n, 2) big-endian integers: the two halves of each object's id."""
    ids = columns.values(objects, path_object_method("getID", _UUID))
    names = ("getMostSignificantBits", "getLeastSignificantBits")
    halves = [columns.longs(ids, columns.method(_UUID, name, "long")) for name in names]
    return np.stack(halves, axis=1).astype(">i8")


def _object_types(objects: Java) -> NDArray[Any]:
    kinds = np.full(objects.size(), "detection", dtype=object)
    for method, kind in (
        ("isAnnotation", "annotation"),
        ("isTMACore", "tma_core"),
        ("isTile", "tile"),
        ("isCell", "cell"),
    ):
        kinds[columns.flags(objects, path_object_method(method, "boolean"))] = kind
    return kinds


def _classes(objects: Java) -> NDArray[Any]:
    places, classes = columns.codes(objects, path_object_method("getPathClass", CLASS))
    null_class = JClass(CLASS).NULL_CLASS
    names = [None if c is None or c.equals(null_class) else str(c.toString()) for c in classes]
    return _lookup(places, names)


def _colors(objects: Java) -> NDArray[Any]:
    places, packed = columns.codes(objects, path_object_method("getColor", "java.lang.Integer"))
    return _lookup(places, [None if c is None else unpack_rgb(int(c)) for c in packed])


def _parents(objects: Java) -> NDArray[Any]:
    """Return the parents' ids as text, None where that is the root."""
    places, parents = columns.codes(objects, path_object_method("getParent", OBJECT))
    ids = [
        None if parent is None or parent.isRootObject() else str(parent.getID())
        for parent in parents
    ]
    return _lookup(places, ids)


def _run() -> Java:
    get = columns.method(_MAP, "get", _ANY, _ANY)
    return columns.chain(
        path_object_method("getMetadata", _MAP), columns.with_arguments(get, RUN_KEY)
    )


def _metadata(objects: Java, copy: Java) -> tuple[NDArray[np.int64], list[dict[str, str]]]:
    places, maps = columns.codes(objects, copy)
    return places, [{str(e.getKey()): str(e.getValue()) for e in m.entrySet()} for m in maps]


def _regions(objects: Java, getter: str) -> tuple[NDArray[Any], NDArray[Any], Java]:
    """Return ROI kinds and geometries ("none" and empty where there is no ROI), and ROIs."""
    owner = "qupath.lib.objects.PathCellObject" if getter == "getNucleusROI" else OBJECT
    rois = columns.values(objects, columns.method(owner, getter, ROI))
    there = columns.flags(rois, columns.not_null())
    kinds = np.full(len(there), "none", dtype=object)
    shapes = np.full(len(there), NO_GEOMETRY, dtype=object)
    some = rois if there.all() else columns.take(rois, np.flatnonzero(there))
    kinds[there], shapes[there] = geometries(some)
    return kinds, shapes, some


def _nuclei(objects: Java, types: NDArray[Any]) -> NDArray[Any]:
    found = np.full(len(types), None, dtype=object)
    cells = np.flatnonzero(types == "cell")
    if len(cells):
        kinds, shapes, _ = _regions(columns.take(objects, cells), "getNucleusROI")
        shapes[kinds == "none"] = None
        found[cells] = shapes
    return found


def _measurements(objects: Java) -> tuple[NDArray[np.int64], list[list[str]], NDArray[np.float64]]:
    """Return for each object which list of names it has, those lists, all values in a row."""
    lists = columns.values(objects, path_object_method("getMeasurementList", MEASUREMENTS))
    names_of, names = columns.codes(
        lists, columns.method(MEASUREMENTS, "getMeasurementNames", "java.util.List")
    )
    values = columns.concatenated_doubles(lists, columns.method(MEASUREMENTS, "values", "double[]"))
    return names_of, [[str(name) for name in one] for one in names], values


def _measurement_columns(
    names_of: NDArray[np.int64], names: list[list[str]], values: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return a column for each measurement name, in the order in which names appear."""
    lengths = np.array([len(one) for one in names], dtype=np.int64)[names_of]
    starts = np.cumsum(lengths) - lengths
    table: dict[str, NDArray[np.float64]] = {}
    for code, one in enumerate(names):
        rows = np.flatnonzero(names_of == code)
        for at, name in enumerate(one):
            column = table.setdefault(name, np.full(len(names_of), np.nan))
            column[rows] = values[starts[rows] + at]
    return table


def _texts(objects: Java, handle: Java) -> NDArray[Any]:
    return _lookup(*columns.texts(objects, handle))


def _lookup(places: NDArray[np.int64], distinct: list[Any]) -> NDArray[Any]:
    table = np.empty(len(distinct), dtype=object)
    table[:] = distinct
    found: NDArray[Any] = table[places] if len(distinct) else np.empty(0, dtype=object)
    return found
