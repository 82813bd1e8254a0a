"""New QuPath objects: detections from a frame, column by column inside Java; annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jpype import JClass

from pathosam_qupath.qupath import java_columns as columns
from pathosam_qupath.qupath.classes import default_color, normal_name, pack_rgb
from pathosam_qupath.qupath.java_columns import Java, Rows
from pathosam_qupath.qupath.objects import FRAME_COLUMNS, RUN_KEY, PathObject
from pathosam_qupath.qupath.paquo_objects import CLASS, MEASUREMENTS, OBJECT, path_object_method
from pathosam_qupath.qupath.paquo_rois import ROI, make_rois

if TYPE_CHECKING:
    import geopandas as gpd

Color = tuple[int, int, int]
_PACKAGE = "qupath.lib.measurements."
_ANY = "java.lang.Object"
_STRING = "java.lang.String"
_MAP = "java.util.Map"


def make_detections(frame: gpd.GeoDataFrame, colors: Mapping[str, Color]) -> Java:
    """Return a Java list of detections, one for each row, that are in no hierarchy yet.

    Parameters
    ----------
    frame : columns ``FRAME_COLUMNS`` (all but ``geometry`` optional), every further
        column a measurement.
    colors : of the classes by name, for those that QuPath does not know yet.
    """
    count = len(frame)
    create = columns.static_method(
        "qupath.lib.objects.PathObjects", "createDetectionObject", OBJECT, ROI, CLASS, MEASUREMENTS
    )
    rois = Rows(make_rois(np.asarray(frame.geometry.array)))
    lists = Rows(_measurement_lists(frame))
    new = columns.build(count, columns.for_rows(create, rois, None, lists))
    objects = Rows(new)

    def call(name: str, *arguments: tuple[str, object]) -> None:
        types, values = zip(*arguments, strict=True)
        method = path_object_method(name, "void", *types)
        columns.run(count, columns.for_rows(method, objects, *values))

    def given(name: str) -> bool:
        return name in frame and bool(frame[name].notna().any())

    if given("id"):
        call("setID", ("java.util.UUID", _uuids(frame["id"])))
    classes: Rows | None = None
    if given("classification"):
        classes = _distinct_rows(frame["classification"], lambda name: path_class(name, colors))
    if classes is not None or given("probability"):
        probability = frame["probability"] if given("probability") else np.full(count, np.nan)
        numbers = Rows(columns.double_array(np.asarray(probability, dtype=float)))
        call("setPathClass", (CLASS, classes), ("double", numbers))
    if given("run"):
        _put_metadata(count, objects, RUN_KEY, _distinct_rows(frame["run"], str))
    # After the class: giving an object a class takes its own colour away.
    if given("color"):
        packed = JClass("java.lang.Integer")
        colored = _distinct_rows(frame["color"], lambda color: packed(pack_rgb(color)))
        call("setColor", ("java.lang.Integer", colored))
    if given("name"):
        call("setName", (_STRING, _distinct_rows(frame["name"], str)))
    if given("locked"):
        for at in np.flatnonzero(np.asarray(frame["locked"], dtype=bool)):
            new.get(int(at)).setLocked(True)
    return new


def make_annotation(annotation: PathObject, colors: Mapping[str, Color]) -> Java:
    """Return a Java annotation that is in no hierarchy yet.

    Parameters
    ----------
    colors : of its class, where QuPath does not know that yet.
    """
    label = annotation.classification
    new = JClass("qupath.lib.objects.PathObjects").createAnnotationObject(
        _annotation_roi(annotation), None if label is None else path_class(label, colors)
    )
    new.setID(JClass("java.util.UUID").fromString(str(annotation.id)))
    if annotation.color is not None:
        new.setColor(JClass("java.lang.Integer")(pack_rgb(annotation.color)))
    if annotation.name is not None:
        new.setName(annotation.name)
    new.setLocked(annotation.locked)
    for key, value in annotation.metadata.items():
        values = Rows(JClass("java.util.ArrayList")([value]))
        _put_metadata(1, Rows(JClass("java.util.ArrayList")([new])), key, values)
    return new


def _annotation_roi(annotation: PathObject) -> Java:
    if annotation.roi in ("Rectangle", "Ellipse"):
        left, top, right, bottom = annotation.geometry.bounds
        rois = JClass("qupath.lib.roi.ROIs")
        plane = JClass("qupath.lib.regions.ImagePlane").getDefaultPlane()
        create = getattr(rois, f"create{annotation.roi}ROI")
        return create(left, top, right - left, bottom - top, plane)
    return make_rois(np.array([annotation.geometry], dtype=object)).get(0)


def path_class(name: str, colors: Mapping[str, Color]) -> Java:
    """Return QuPath's class of this name; a new one gets the colour given, or QuPath's own."""
    name = normal_name(name)
    kind = JClass(CLASS)
    color = colors.get(name, default_color(name))
    parent, _, own = name.rpartition(": ")
    packed = JClass("java.lang.Integer")(pack_rgb(color))
    if parent:
        return kind.getInstance(path_class(parent, colors), own, packed)
    return kind.fromString(own, packed)


def _uuids(ids: pd.Series) -> Java:
    """Return a row handle that makes the UUID of each text."""
    digits = "".join(map(str, ids)).replace("-", "")
    halves = np.frombuffer(bytes.fromhex(digits), dtype=">i8").reshape(-1, 2)
    make = columns.constructor("java.util.UUID", "long", "long")
    return columns.for_rows(make, *(Rows(columns.long_array(halves[:, i])) for i in (0, 1)))


def _distinct_rows(column: pd.Series, convert: Callable[[Any], Java]) -> Rows:
    """Return rows of Java objects, each distinct value converted once; missing is null."""
    codes, distinct = pd.factorize(np.asarray(column, dtype=object), use_na_sentinel=True)
    table = JClass("java.util.ArrayList")([convert(value) for value in distinct])
    table.add(None)
    return Rows(columns.take(table, np.where(codes < 0, len(distinct), codes)))


def _put_metadata(count: int, objects: Rows, key: str, values: Rows) -> None:
    """Set a metadata value of each object."""
    if hasattr(JClass(OBJECT), "hasMetadata"):
        put = columns.method(_MAP, "put", _ANY, _ANY, _ANY)
        metadata = columns.for_rows(path_object_method("getMetadata", _MAP), objects)
        columns.run(count, columns.for_rows(put, metadata, key, values))
    else:  # QuPath 0.5 shows a detection's metadata read only, but stores it
        store = columns.hidden_method(OBJECT, "storeMetadataValue", _STRING, _STRING)
        columns.run(count, columns.for_rows(store, objects, key, values))


def _measurement_lists(frame: gpd.GeoDataFrame) -> Java:
    """Return a Java list with QuPath's measurement list of each row."""
    count = len(frame)
    names = [name for name in frame.columns if name not in FRAME_COLUMNS]
    create = columns.static_method(
        _PACKAGE + "MeasurementListFactory",
        "createMeasurementList",
        MEASUREMENTS,
        "int",
        _PACKAGE + "MeasurementList$MeasurementListType",
    )
    size = Rows(columns.int_array(np.full(count, len(names))))
    double = JClass(_PACKAGE + "MeasurementList$MeasurementListType").DOUBLE
    lists = columns.build(count, columns.for_rows(create, size, double))
    if not names:
        return lists
    put = columns.method(MEASUREMENTS, "put", "void", _STRING, "double")
    zero = Rows(columns.double_array(np.zeros(count)))
    for name in names:
        columns.run(count, columns.for_rows(put, Rows(lists), str(name), zero))
    # A closed list shares its names with all lists that have the same ones.
    columns.run(count, columns.for_rows(columns.method(MEASUREMENTS, "close", "void"), Rows(lists)))
    # QuPath keeps and stores doubles, but its ``put`` rounds them to float32.
    table = columns.double_array(frame[names].to_numpy(float).ravel())
    values = columns.slices(table, "double", np.arange(count + 1) * len(names))
    setter = columns.field_setter(_PACKAGE + "NumericMeasurementList$DoubleList", "values")
    columns.run(count, columns.for_rows(setter, Rows(lists), values))
    return lists
