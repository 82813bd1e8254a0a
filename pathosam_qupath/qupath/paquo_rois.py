"""QuPath's regions of interest between its own Java objects and shapely, in bulk.

Vertices come as QuPath's ROI holds them, not through its conversion to a JTS geometry,
which repairs and rounds; so both backends read the same coordinates, and float32 stays
float32. Only a GeometryROI, which holds a JTS geometry, comes as well-known binary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from jpype import JArray, JClass
from numpy.typing import NDArray

from pathosam_qupath.qupath import java_columns as columns
from pathosam_qupath.qupath.java_columns import Java
from pathosam_qupath.qupath.qpdata_rois import ellipses, rectangles

ROI = "qupath.lib.roi.interfaces.ROI"
_LIST = "java.util.List"
_GEOMETRY = "org.locationtech.jts.geom.Geometry"
_PLANE = "qupath.lib.regions.ImagePlane"


def geometries(rois: Java) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return QuPath's names of the kinds, and shapely geometries, of a Java list of ROIs."""
    places, names = columns.texts(rois, columns.method(ROI, "getRoiName", "java.lang.String"))
    kinds = np.array(["Geometry" if name == "Area" else name for name in names], dtype=object)
    shapes = np.empty(len(places), dtype=object)
    for code, name in enumerate(names):
        chosen = np.flatnonzero(places == code)
        some = rois if len(chosen) == len(places) else columns.take(rois, chosen)
        shapes[chosen] = _of_kind(str(name), some)
    return kinds[places] if len(places) else np.empty(0, dtype=object), shapes


def _of_kind(kind: str, rois: Java) -> NDArray[Any]:
    if kind == "Ellipse":
        x, y, width, height = (
            columns.doubles(rois, columns.method(ROI, name, "double"))
            for name in ("getBoundsX", "getBoundsY", "getBoundsWidth", "getBoundsHeight")
        )
        return ellipses(np.stack([x, y, x + width, y + height], axis=1))
    if kind in ("Polygon", "Polyline", "Points", "Rectangle", "Line"):
        counts, vertices = _vertices(rois)
        if kind == "Rectangle":
            corners = vertices.reshape(-1, 4, 2)
            return rectangles(np.concatenate([corners[:, 0], corners[:, 2]], axis=1))
        return _assemble(kind, counts, vertices)
    return _through_wkb(rois)


def _vertices(rois: Java) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how many vertices each ROI has, and all of them end to end, (n, 2)."""
    points = columns.method(ROI, "getAllPoints", _LIST)
    counts = columns.longs(rois, columns.chain(points, columns.method(_LIST, "size", "int")))
    ordinates = []
    for name in ("getX", "getY"):
        ordinate = columns.method("qupath.lib.geom.Point2", name, "double")
        ordinates.append(columns.doubles_of(columns.each_of(rois, points), ordinate))
    return counts, np.stack(ordinates, axis=1)


def _assemble(kind: str, counts: NDArray[np.int64], vertices: NDArray[np.float64]) -> NDArray[Any]:
    """Return geometries from their vertices; those with too few vertices are empty."""
    least, empty = {
        "Polygon": (3, shapely.Polygon()),
        "Polyline": (2, shapely.LineString()),
        "Line": (2, shapely.LineString()),
        "Points": (1, shapely.MultiPoint()),
    }[kind]
    enough = counts >= least
    vertices = vertices[np.repeat(enough, counts)]
    owners = np.repeat(np.arange(int(enough.sum())), counts[enough])
    shapes = np.full(len(counts), empty, dtype=object)
    if kind == "Polygon":
        shapes[enough] = shapely.polygons(shapely.linearrings(vertices, indices=owners))
    elif kind == "Points":
        shapes[enough] = shapely.multipoints(vertices, indices=owners)
    else:
        shapes[enough] = shapely.linestrings(vertices, indices=owners)
    return shapes


def _through_wkb(rois: Java) -> NDArray[Any]:
    found = columns.values(rois, columns.method(ROI, "getGeometry", _GEOMETRY))
    parts = found.toArray(JArray(JClass(_GEOMETRY))(0))
    factory = JClass("org.locationtech.jts.geom.GeometryFactory")()
    wkb = JClass("org.locationtech.jts.io.WKBWriter")().write(
        factory.createGeometryCollection(parts)
    )
    return np.asarray(shapely.get_parts(shapely.from_wkb(bytes(wkb))))


def make_rois(shapes: NDArray[Any]) -> Java:
    """Return a Java list of ROIs on QuPath's default plane.

    Polygons without holes become PolygonROIs with float32 vertices; anything else (holes,
    several parts) a GeometryROI.
    """
    plane = JClass(_PLANE).getDefaultPlane()
    simple = (shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON) & (
        shapely.get_num_interior_rings(shapes) == 0
    )
    rois = _polygon_rois(shapely.get_exterior_ring(shapes[simple]), plane)
    if simple.all():
        return rois
    reader = JClass("org.locationtech.jts.io.WKBReader")(
        JClass("qupath.lib.roi.GeometryTools").getDefaultFactory()
    )
    to_roi = JClass("qupath.lib.roi.GeometryTools").geometryToROI
    polygons = iter(rois)
    everything = JClass("java.util.ArrayList")()
    for shape, is_simple in zip(shapes, simple, strict=True):
        if is_simple:
            everything.add(next(polygons))
        else:
            everything.add(to_roi(reader.read(shapely.to_wkb(shape)), plane))
    return everything


def _polygon_rois(rings: NDArray[Any], plane: Java) -> Java:
    vertices, owners = shapely.get_coordinates(rings, return_index=True)
    # QuPath's polygons close by themselves: the last vertex of a ring repeats the first.
    last = np.append(owners[1:] != owners[:-1], True) if len(owners) else np.empty(0, bool)
    vertices = vertices[~last]
    counts = np.maximum(np.bincount(owners, minlength=len(rings)) - 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    x, y = (
        columns.slices(columns.double_array(vertices[:, axis]), "double", offsets)
        for axis in (0, 1)
    )
    create = columns.static_method(
        "qupath.lib.roi.ROIs", "createPolygonROI", ROI, "double[]", "double[]", _PLANE
    )
    return columns.build(len(rings), columns.for_rows(create, x, y, plane))
