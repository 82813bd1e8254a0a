"""Which shapes of leaf detections can be read by columns, and where their parts are."""

from __future__ import annotations

from dataclasses import dataclass

from pathosam_qupath.qupath.java_objects import (
    JavaArray,
    JavaObject,
    JavaString,
    Node,
    Reference,
)
from pathosam_qupath.qupath.java_shapes import PlacedBytes, Shape
from pathosam_qupath.qupath.objects import ObjectType
from pathosam_qupath.qupath.qpdata_objects import (
    ObjectParts,
    boxed,
    list_items,
    map_items,
    object_type,
    read_parts,
)
from pathosam_qupath.qupath.qpdata_rois import roi_kind

ROI_FIELDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "Polygon": (JavaArray, ("x", "y")),
    "Geometry": (JavaArray, ("wkb",)),
    "Rectangle": (PlacedBytes, ("x", "y", "x2", "y2")),
    "Ellipse": (PlacedBytes, ("x", "y", "x2", "y2")),
}


@dataclass(frozen=True, eq=False)
class Form:
    """Where a detection's parts are in a shape, as parts of the shape's example.

    Attributes
    ----------
    keys, values : of the metadata.
    names : of the measurements: a reference to their list, or one to each.
    numbers : of the measurements: an array beside such a list, or a field for each.
    """

    object_type: ObjectType
    parts: ObjectParts
    keys: tuple[Reference, ...]
    values: tuple[JavaString | Reference, ...]
    names: tuple[Reference, ...]
    numbers: JavaArray | tuple[PlacedBytes, ...]
    roi: JavaObject
    roi_kind: str
    nucleus: JavaObject | None


def read_form(shape: Shape) -> Form | None:
    """The form of a shape's objects, or None where they must be read one by one."""
    parts = read_parts(shape.example, "an example")
    kind = object_type(shape.example.of)
    items = map_items(parts.metadata)
    keys = tuple(k for k, _ in items if isinstance(k, Reference))
    values = tuple(v for _, v in items if isinstance(v, JavaString | Reference))
    roi, nucleus = parts.roi, parts.nucleus
    measured = _measurements(parts.measurements)
    if (
        kind is None
        or measured is None
        or parts.id is not None
        or not 0 < len(items) == len(keys) == len(values)
        or not isinstance(parts.name, JavaString | Reference | None)
        or not isinstance(parts.locked, Reference)
        or not isinstance(parts.path_class, Reference | None)
        or not _is_color(parts.color)
        or not isinstance(roi, JavaObject)
        or not _is_roi(roi, tuple(ROI_FIELDS))
        or not (nucleus is None or _is_roi(nucleus, ("Polygon",)))
    ):
        return None
    cell = nucleus if isinstance(nucleus, JavaObject) else None
    return Form(kind, parts, keys, values, *measured, roi, roi_kind(roi.of.name), cell)


def _measurements(
    node: Node,
) -> tuple[tuple[Reference, ...], JavaArray | tuple[PlacedBytes, ...]] | None:
    if node is None:
        return (), ()
    if not isinstance(node, JavaObject):
        return None
    names, array = node.raw("names"), node.raw("values")
    if isinstance(names, Reference) and isinstance(array, JavaArray) and array.raw is not None:
        return (names,), array
    items = [item for item in list_items(node.raw("list")) if isinstance(item, JavaObject)]
    each = tuple(n for item in items if isinstance(n := item.raw("name"), Reference))
    numbers = tuple(v for item in items if isinstance(v := item.raw("value"), PlacedBytes))
    if node.raw("list") is None or not len(items) == len(each) == len(numbers):
        return None
    if len(items) != len(list_items(node.raw("list"))):
        return None
    return each, numbers


def _is_color(node: Node) -> bool:
    if isinstance(node, JavaObject):
        return isinstance(node.raw("value"), PlacedBytes) and isinstance(boxed(node), int)
    return isinstance(node, Reference | None)


def _is_roi(node: Node, kinds: tuple[str, ...]) -> bool:
    if not isinstance(node, JavaObject) or roi_kind(node.of.name) not in kinds:
        return False
    wanted, names = ROI_FIELDS[roi_kind(node.of.name)]
    return all(isinstance(node.raw(name), wanted) for name in names)
