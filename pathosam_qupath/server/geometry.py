"""Geometries of requests as shapely's, counted before they are built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID, uuid4

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.server.open_image import OpenImage
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.schemas import AreaFeature, MultiPolygonModel, PolygonModel

AreaModel = PolygonModel | MultiPolygonModel


def check_vertices(areas: Iterable[AreaModel], most: int) -> None:
    """Refuse geometries with too many vertices in all.

    Raises
    ------
    ProblemError : more than ``most``.
    """
    count = sum(len(ring) for area in areas for ring in _rings(area))
    if count > most:
        raise ProblemError(
            413,
            "too_large",
            "regions",
            f"their outlines have {count:,} vertices, at most {most:,} are taken at a time",
            "Simplify the outlines, or send fewer regions at a time.",
        )


def shape_of(area: AreaModel) -> BaseGeometry:
    """A polygon or multipolygon in slide pixels; a third coordinate is left out."""
    polygons = [area.coordinates] if isinstance(area, PolygonModel) else area.coordinates
    built = [_polygon(rings) for rings in polygons]
    return built[0] if len(built) == 1 else shapely.MultiPolygon(built)


def annotations_of(features: Sequence[AreaFeature], image: OpenImage) -> list[PathObject]:
    """Regions as annotations in coordinates of the image."""
    annotations = []
    for feature in features:
        shape = shape_of(feature.geometry)
        if not image.placement.is_identity:
            shape = shapely.transform(shape, image.placement.to_image)
        annotations.append(
            PathObject(
                id=_uuid(feature.id) or uuid4(),
                object_type="annotation",
                geometry=shape,
                roi="Polygon",
                classification=_class_name(feature.properties or {}),
                name=_text((feature.properties or {}).get("name")),
            )
        )
    return annotations


def named_parents(features: Sequence[AreaFeature]) -> frozenset[str]:
    """Ids of the regions that nuclei may name as their parents."""
    return frozenset(str(number) for f in features if (number := _uuid(f.id)) is not None)


def _polygon(rings: Sequence[Sequence[Sequence[float]]]) -> shapely.Polygon:
    closed = []
    for ring in rings:
        xy = np.array([position[:2] for position in ring], np.float64)
        closed.append(xy if (xy[0] == xy[-1]).all() else np.vstack([xy, xy[:1]]))
    return shapely.Polygon(closed[0], closed[1:])


def _rings(area: AreaModel) -> Iterable[Sequence[Sequence[float]]]:
    if isinstance(area, PolygonModel):
        return area.coordinates
    return (ring for rings in area.coordinates for ring in rings)


def _class_name(properties: dict[str, object]) -> str | None:
    value = properties.get("classification")
    return _text(value.get("name")) if isinstance(value, dict) else _text(value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text is not None else None
    except ValueError:
        return None
