"""GeoJSON objects as any QuPath has written them, and as other programs make them.

Objects without an id get a new one. The type of an object, its class, its colours and
its measurements have changed their spelling between QuPath 0.2 and 0.7; every one of
them is understood.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from uuid import UUID, uuid4

import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.classes import Color, normal_name, unpack_rgb
from pathosam_qupath.qupath.objects import ObjectType, PathObject, Plane

_TYPES: dict[str, ObjectType] = {
    **{kind: kind for kind in get_args(ObjectType)},
    "tmaCore": "tma_core",
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
}
"""Object types by every name that QuPath has used (0.2 put class names into ``id``)."""

_ROIS = {
    "Point": "Points",
    "MultiPoint": "Points",
    "LineString": "Polyline",
    "Polygon": "Polygon",
}


@dataclass(frozen=True, eq=False)
class GeoJson:
    """What a GeoJSON file holds: objects, parents first, and their classes' colours."""

    objects: tuple[PathObject, ...]
    class_colors: Mapping[str, Color]


def read_geojson(path: str | Path) -> GeoJson:
    """Read the objects of a GeoJSON file, gzipped or not.

    Objects without an id get a new one; unknown object types are annotations, as in
    QuPath. Nested objects (``childObjects``) follow their parent and name it.

    Raises
    ------
    FormatError : not JSON, or not GeoJSON of objects.
    """
    content = Path(path).read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        document = json.loads(content)
        colors: dict[str, Color] = {}
        objects = [
            item for feature in _feature_list(document) for item in _parse(feature, None, colors)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError) as error:
        raise FormatError(
            path,
            f"is not GeoJSON that QuPath could read ({type(error).__name__}: {error})",
            "Export the objects from QuPath again, as GeoJSON.",
        ) from error
    except (shapely.errors.ShapelyError, RecursionError) as error:
        raise FormatError(
            path, f"holds a geometry that is none ({error})", "Export the objects again."
        ) from error
    return GeoJson(tuple(objects), colors)


def _feature_list(document: object) -> list[Any]:
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise TypeError("expected a FeatureCollection")
    if "features" in document:
        return list(document["features"])
    if document.get("type") == "Feature":
        return [document]
    if "coordinates" in document or "geometries" in document:
        return [{"type": "Feature", "geometry": document}]
    raise TypeError(f"expected a FeatureCollection, found type {document.get('type')!r}")


def _parse(
    feature: Mapping[str, Any], parent: UUID | None, colors: dict[str, Color]
) -> Iterator[PathObject]:
    """Yield the object of a feature, then its children."""
    properties = feature.get("properties") or {}
    number, kind = feature.get("id"), None
    if isinstance(number, str) and number in _TYPES:
        kind, number = number, None
    for key in ("objectType", "object_type", "type"):
        if isinstance(properties.get(key), str):
            kind = properties[key]
            break
    own = _uuid(number)
    if kind not in ("root", "PathRootObject"):
        geometry = feature.get("geometry") or {}
        outline, plane = _shape(geometry)
        nucleus = feature.get("nucleusGeometry")
        metadata = properties.get("metadata")
        name = properties.get("name")
        yield PathObject(
            id=own,
            object_type=_TYPES.get(str(kind), "annotation"),
            geometry=outline,
            roi=_roi(geometry, outline),
            classification=_classification(properties.get("classification"), colors),
            name=str(name) if name is not None else None,
            color=_color(properties.get("color")),
            locked=properties.get("isLocked") is True,
            measurements=_measurements(properties.get("measurements")),
            metadata={
                str(key): value if isinstance(value, str) else json.dumps(value)
                for key, value in (metadata if isinstance(metadata, dict) else {}).items()
                if isinstance(value, str | int | float)
            },
            parent=parent,
            plane=plane,
            nucleus=_shape(nucleus)[0] if nucleus else None,
        )
        parent = own
    for child in properties.get("childObjects") or properties.get("children") or ():
        yield from _parse(child, parent, colors)


def _uuid(number: object) -> UUID:
    try:
        return UUID(str(number))
    except ValueError:
        return uuid4()


def _shape(geometry: Mapping[str, Any]) -> tuple[BaseGeometry, Plane]:
    plane = geometry.get("plane") or {}
    where = Plane(int(plane.get("c", -1)), int(plane.get("z", 0)), int(plane.get("t", 0)))
    if not geometry.get("type"):
        return shapely.GeometryCollection(), where
    outline: BaseGeometry = shapely.force_2d(shape(dict(geometry)))
    if isinstance(outline, shapely.Point):
        outline = shapely.MultiPoint([outline])
    return outline, where


def _roi(geometry: Mapping[str, Any], outline: BaseGeometry) -> str:
    """Return the kind of ROI that QuPath makes of a geometry."""
    if outline.is_empty:
        return "none"
    if geometry.get("isEllipse") is True:
        return "Ellipse"
    if isinstance(outline, shapely.Polygon):
        if outline.interiors:
            return "Geometry"
        corners = shapely.get_num_coordinates(outline) == 5
        return "Rectangle" if corners and outline.equals(outline.envelope) else "Polygon"
    if isinstance(outline, shapely.LineString):
        return "Line" if len(outline.coords) == 2 else "Polyline"
    return _ROIS.get(outline.geom_type, "Geometry")


def _classification(value: object, colors: dict[str, Color]) -> str | None:
    """Return a class's name, and remember its colour, from any form QuPath has written."""
    if isinstance(value, str):
        return normal_name(value) or None
    if not isinstance(value, Mapping):
        return None
    name = value.get("name")
    if name is None:
        name = ": ".join(value.get("names") or ())
    parent = _classification(value.get("parentClass"), colors)
    name = normal_name(f"{parent}: {name}" if parent else str(name))
    color = _color(value.get("color", value.get("colorRGB")))
    if name and color is not None:
        colors[name] = color
    return name or None


def _color(value: object) -> Color | None:
    if type(value) is int:
        return unpack_rgb(value)
    if isinstance(value, list) and len(value) in (3, 4):
        red, green, blue = (int(channel) & 255 for channel in value[:3])
        return red, green, blue
    return None


def _measurements(value: object) -> dict[str, float]:
    """Return measurements from a JSON object, or the list of pairs of QuPath before 0.4."""
    if isinstance(value, list):
        value = {item["name"]: item["value"] for item in value}
    if not isinstance(value, dict):
        return {}
    return {
        str(name): float(number)
        for name, number in value.items()
        if isinstance(number, int | float | str)
    }
