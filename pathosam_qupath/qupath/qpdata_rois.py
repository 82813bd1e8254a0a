"""QuPath's regions of interest, as they lie in a ``.qpdata`` stream, to shapely.

A ROI is written through a proxy, ``<kind>ROI$SerializationProxy``: polygons, polylines
and points hold float32 vertices, rectangles, ellipses and lines two corners in double,
and a GeometryROI well-known binary. Vertices come back exactly as they are stored; QuPath
itself rounds a GeometryROI to 0.01 px when it reads one (from 0.6). A polygon that crosses
itself comes as it was drawn; ``shapely.make_valid`` makes an area of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.java_objects import JavaArray, JavaObject, Node, Value
from pathosam_qupath.qupath.objects import Plane

PACKAGE = "qupath.lib.roi."
ELLIPSE_VERTICES = 100
"""As many as QuPath gives an ellipse that it turns into a polygon."""
PLANE = (("c", -1), ("z", 0), ("t", 0))
"""A plane's fields, and what they are where a class lacks them."""
NO_GEOMETRY = shapely.GeometryCollection()


@dataclass(frozen=True, eq=False)
class Roi:
    """A region: QuPath's name of its kind, its geometry in pixels, its plane."""

    kind: str
    geometry: BaseGeometry
    plane: Plane = field(default_factory=Plane)


def roi_kind(class_name: str) -> str:
    """QuPath's name of a kind from the class that stands for it in the stream.

    >>> roi_kind("qupath.lib.roi.GeometryROI$WKBSerializationProxy")
    'Geometry'
    """
    return class_name.removeprefix(PACKAGE).split("$")[0].removesuffix("ROI")


def read_roi(node: Node, subject: object) -> Roi:
    """The region in a stream's node; no region at all has the kind "none".

    A kind that is not known has an empty geometry and its class's name as kind.
    """
    if node is None:
        return Roi("none", NO_GEOMETRY)
    if not isinstance(node, JavaObject):
        raise _damaged(subject, f"a ROI is expected, found {type(node).__name__}")
    kind = roi_kind(node.of.name)
    try:
        plane = Plane(*(int(node.get(name, default)) for name, default in PLANE))
        with np.errstate(invalid="ignore"):  # a vertex that is not a number stays one
            geometry = _geometry(kind, node)
    except (ValueError, TypeError, KeyError, OverflowError, shapely.errors.ShapelyError) as error:
        raise _damaged(subject, f"a {kind} ROI cannot be read ({error})") from error
    return Roi("Geometry" if kind in ("Area", "AWTArea") else kind, geometry, plane)


def _damaged(subject: object, cause: str) -> FormatError:
    return FormatError(subject, cause, "Restore data.qpdata.bkp, or save the image in QuPath.")


def _geometry(kind: str, node: JavaObject) -> BaseGeometry:
    if kind in ("Rectangle", "Ellipse", "Line"):
        corners = np.array([[node.get(name) for name in ("x", "y", "x2", "y2")]], dtype=float)
        if kind == "Line":
            return shapely.LineString(corners.reshape(2, 2))
        shape: BaseGeometry = (rectangles if kind == "Rectangle" else ellipses)(corners)[0]
        return shape
    if kind in ("Polygon", "Polyline", "Points"):
        x, y = _floats(node.get("x")), _floats(node.get("y"))
        if len(x) != len(y):
            raise ValueError(f"{len(x)} x and {len(y)} y")
        vertices = np.stack([x, y], axis=1).astype(float)
        if kind == "Points":
            return shapely.MultiPoint(vertices) if len(x) else shapely.MultiPoint()
        if kind == "Polyline":
            return shapely.LineString(vertices) if len(x) > 1 else shapely.LineString()
        return polygon(vertices)
    if kind == "Geometry" and isinstance(wkb := node.get("wkb"), JavaArray):
        return shapely.from_wkb(wkb.raw or b"")
    if kind == "Area" and isinstance(node.get("x"), JavaArray):
        return _area(node.get("x").items, node.get("y").items)
    return NO_GEOMETRY


def _floats(node: Value) -> NDArray[np.float32]:
    if not isinstance(node, JavaArray) or node.of.name != "[F":
        raise ValueError("float vertices are expected")
    return node.numbers()


def _area(x: list[Node], y: list[Node]) -> BaseGeometry:
    """Rings of which an inner one is a hole (written before QuPath 0.2)."""
    area: BaseGeometry = shapely.Polygon()
    for xs, ys in zip(x, y, strict=True):
        ring = polygon(np.stack([_floats(xs), _floats(ys)], axis=1).astype(float))
        area = shapely.symmetric_difference(area, shapely.make_valid(ring))
    return area


def polygon(vertices: NDArray[np.float64]) -> BaseGeometry:
    """A polygon of (n, 2) vertices, closed if it is not; fewer than 3 are empty."""
    if len(vertices) < 3:
        return shapely.Polygon()
    return shapely.Polygon(vertices)


def rectangles(corners: NDArray[np.float64]) -> NDArray[Any]:
    """Polygons from (n, 4) corners x, y, x2, y2."""
    low = np.minimum(corners[:, :2], corners[:, 2:])
    high = np.maximum(corners[:, :2], corners[:, 2:])
    boxes: NDArray[Any] = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1], ccw=False)
    return boxes


def ellipses(corners: NDArray[np.float64]) -> NDArray[Any]:
    """Polygons of ``ELLIPSE_VERTICES`` from (n, 4) corners, at QuPath's places.

    QuPath starts at the right and rounds to 0.01 px, halves up.
    """
    low = np.minimum(corners[:, :2], corners[:, 2:])
    radius = np.abs(corners[:, 2:] - corners[:, :2]) / 2
    angle = np.arange(ELLIPSE_VERTICES) * (2 * np.pi / ELLIPSE_VERTICES)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vertices = unit[None] * radius[:, None] + (low + radius)[:, None]
    rounded = np.floor(vertices * 100 + 0.5) / 100
    return np.asarray(shapely.polygons(np.concatenate([rounded, rounded[:, :1]], axis=1)))
