"""Descriptors of the Java classes that this package writes into ``.qpdata`` streams.

They are the ones that QuPath 0.5 to 0.7 write, the same in the three. A descriptor that a
stream brings along is used instead of these, so a field that a newer version has added
is there, with its default value.
"""

from __future__ import annotations

from pathosam_qupath.qupath.java_objects import (
    SC_BLOCK_DATA,
    SC_ENUM,
    SC_EXTERNALIZABLE,
    SC_SERIALIZABLE,
    SC_WRITE_METHOD,
)
from pathosam_qupath.qupath.qpdata_objects import (
    DETECTION,
    METADATA,
    PACKAGE,
    PATH_OBJECT,
    ROOT,
)

PATH_CLASS = PACKAGE + "classes.PathClass"
EXTERNAL = SC_EXTERNALIZABLE | SC_BLOCK_DATA
CUSTOM = SC_SERIALIZABLE | SC_WRITE_METHOD
LISTS = "qupath.lib.measurements.NumericMeasurementList$"
ROI = "qupath.lib.roi."
_STRING = "Ljava/lang/String;"
_CORNERS = ("I c", "I t", "D x", "D x2", "D y", "D y2", "I z", f"L name {_STRING}")

# name: (serialVersionUID, flags, fields as "code name [type]", superclass)
CLASSES: dict[str, tuple[int, int, tuple[str, ...], str | None]] = {
    PATH_OBJECT: (1, EXTERNAL, (), None),
    PACKAGE + "PathROIObject": (1, EXTERNAL, (), PATH_OBJECT),
    ROOT: (1, EXTERNAL, (), PATH_OBJECT),
    DETECTION: (1, EXTERNAL, (), PACKAGE + "PathROIObject"),
    PACKAGE + "PathAnnotationObject": (1, EXTERNAL, (), PACKAGE + "PathROIObject"),
    METADATA: (1, EXTERNAL, (), None),
    PATH_CLASS: (
        1,
        SC_SERIALIZABLE,
        (
            "L colorRGB Ljava/lang/Integer;",
            f"L name {_STRING}",
            "L parentClass Lqupath/lib/objects/classes/PathClass;",
        ),
        None,
    ),
    LISTS + "AbstractNumericMeasurementList": (
        1,
        SC_SERIALIZABLE,
        ("Z isClosed", "L map Ljava/util/Map;", "L names Ljava/util/List;"),
        None,
    ),
    LISTS + "DoubleList": (
        1,
        SC_SERIALIZABLE,
        ("[ values [D",),
        LISTS + "AbstractNumericMeasurementList",
    ),
    ROI + "PolygonROI$SerializationProxy": (
        1,
        SC_SERIALIZABLE,
        (
            "I c",
            "I t",
            "I z",
            f"L name {_STRING}",
            "L stats Lqupath/lib/roi/ClosedShapeStatistics;",
            "[ x [F",
            "[ y [F",
        ),
        None,
    ),
    ROI + "GeometryROI$WKBSerializationProxy": (
        1,
        SC_SERIALIZABLE,
        ("I c", "I t", "I z", "L stats Lqupath/lib/roi/GeometryROI$GeometryStats;", "[ wkb [B"),
        None,
    ),
    ROI + "RectangleROI$SerializationProxy": (1, SC_SERIALIZABLE, _CORNERS, None),
    ROI + "EllipseROI$SerializationProxy": (1, SC_SERIALIZABLE, _CORNERS, None),
    PACKAGE + "hierarchy.PathObjectHierarchy": (
        1,
        SC_SERIALIZABLE,
        (
            "L rootObject Lqupath/lib/objects/PathObject;",
            "L tmaGrid Lqupath/lib/objects/hierarchy/TMAGrid;",
        ),
        None,
    ),
    "qupath.lib.plugins.workflow.Workflow": (1, EXTERNAL, (), None),
    "qupath.lib.images.ImageData$ImageType": (0, SC_SERIALIZABLE | SC_ENUM, (), "java.lang.Enum"),
    "java.lang.Enum": (0, SC_SERIALIZABLE | SC_ENUM, (), None),
    "java.lang.Boolean": (-3665804199014368530, SC_SERIALIZABLE, ("Z value",), None),
    "java.lang.Number": (-8742448824652078965, SC_SERIALIZABLE, (), None),
    "java.lang.Integer": (1360826667806852920, SC_SERIALIZABLE, ("I value",), "java.lang.Number"),
    "java.util.ArrayList": (8683452581122892189, CUSTOM, ("I size",), None),
    "java.util.HashMap": (362498820763181265, CUSTOM, ("F loadFactor", "I threshold"), None),
    "java.util.Locale": (
        9149081749638150636,
        CUSTOM,
        (
            "I hashcode",
            f"L country {_STRING}",
            f"L extensions {_STRING}",
            f"L language {_STRING}",
            f"L script {_STRING}",
            f"L variant {_STRING}",
        ),
        None,
    ),
    "[Ljava.lang.Object;": (-8012369246846506644, SC_SERIALIZABLE, (), None),
    "[B": (-5984413125824719648, SC_SERIALIZABLE, (), None),
    "[D": (4514449696888150558, SC_SERIALIZABLE, (), None),
    "[F": (836686056779680834, SC_SERIALIZABLE, (), None),
}
