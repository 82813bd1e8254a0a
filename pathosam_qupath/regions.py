"""Which parts of an image a run treats: annotations chosen by class or name, or all of it.

QuPath has a convention for class names that end in an asterisk: such classes mark a region
rather than a kind of tissue or cell ("Region*"), and "Ignore*" marks what should not be
looked at. Here "Ignore*" is kept to the letter: its annotations are never treated, and
their area is cut out of what is. "Region*" is an annotation class like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.qupath.objects import PathObject

IGNORED_CLASS = "Ignore*"
ALL = "all"


@dataclass(frozen=True, eq=False)
class Regions:
    """What to treat in one image.

    Attributes
    ----------
    treated : annotations that are treated, in the hierarchy's order.
    polygons : their areas within the image, less what is ignored, in full-resolution
        pixels; None means the whole image.
    refused : annotations that were asked for but have no area to treat, each with a reason.
    area : treated area in full-resolution square pixels, overlaps counted once.
    """

    treated: tuple[PathObject, ...]
    polygons: tuple[BaseGeometry, ...] | None
    refused: tuple[tuple[PathObject, str], ...]
    area: float

    @property
    def empty(self) -> bool:
        """True where there is nothing to treat."""
        return self.polygons is not None and not self.polygons

    def union(self) -> BaseGeometry | None:
        """The treated area as one geometry; None means the whole image."""
        return None if self.polygons is None else shapely.union_all(list(self.polygons))

    def within(self, part: BaseGeometry, size: tuple[int, int]) -> Regions:
        """These regions, cut to a part of an image of ``size`` (width, height) pixels."""
        whole = self.polygons is None
        polygons = [shapely.box(0, 0, *size)] if whole else list(self.polygons or ())
        cut = [_area(shapely.intersection(polygon, part)) for polygon in polygons]
        kept = tuple(polygon for polygon in cut if polygon.area > 0)
        area = float(shapely.union_all(kept).area) if kept else 0.0
        return Regions(self.treated, kept, self.refused, area)

    def digest(self) -> str:
        """A text that is the same for the same treated area only."""
        union = self.union()
        if union is None:
            return "whole image"
        return hashlib.sha256(shapely.to_wkb(shapely.normalize(union))).hexdigest()


def choose_regions(
    annotations: Iterable[PathObject],
    size: tuple[int, int],
    *,
    wanted: Sequence[str] = (ALL,),
    whole_image: bool = False,
) -> Regions:
    """Choose what to treat in an image of ``size`` (width, height) pixels.

    Parameters
    ----------
    annotations : the image's annotations.
    wanted : classes or names; "Tumor" also takes derived classes such as
        "Tumor: Positive"; "all" takes every annotation.
    whole_image : treat everything but what is ignored, whatever ``wanted`` says.
    """
    annotations = list(annotations)
    frame = shapely.box(0, 0, *size)
    ignored = shapely.union_all(
        [_area(a.geometry) for a in annotations if is_ignored(a) and reason_against(a) is None]
    )
    if whole_image:
        whole = shapely.difference(frame, ignored)
        polygons = None if ignored.is_empty else tuple(_parts(whole))
        return Regions((), polygons, (), float(whole.area))
    treated: list[PathObject] = []
    polygons_of: list[BaseGeometry] = []
    refused: list[tuple[PathObject, str]] = []
    for annotation in annotations:
        if is_ignored(annotation) or not is_wanted(annotation, wanted):
            continue
        reason = reason_against(annotation)
        if reason is None:
            area = shapely.intersection(_area(annotation.geometry), frame)
            if area.area == 0:
                reason = "lies outside the image"
            else:
                area = _area(shapely.difference(area, ignored))
                if area.area == 0:
                    reason = f"lies inside an annotation of class {IGNORED_CLASS}"
        if reason is None:
            treated.append(annotation)
            polygons_of.append(area)
        else:
            refused.append((annotation, reason))
    covered = shapely.union_all(polygons_of) if polygons_of else None
    return Regions(
        tuple(treated),
        tuple(polygons_of),
        tuple(refused),
        0.0 if covered is None else float(covered.area),
    )


def is_ignored(annotation: PathObject) -> bool:
    """Whether the annotation marks tissue that must not be looked at."""
    return annotation.classification == IGNORED_CLASS


def is_wanted(annotation: PathObject, wanted: Sequence[str]) -> bool:
    """Whether an annotation's class (or a class it derives from) or name is asked for."""
    for word in wanted:
        if word == ALL or word == annotation.name:
            return True
        kind = annotation.classification
        if kind is not None and (kind == word or kind.startswith(word + ": ")):
            return True
    return False


def reason_against(annotation: PathObject) -> str | None:
    """Why an annotation has no area to segment in, or None."""
    if annotation.geometry.is_empty:
        return "has no geometry"
    if annotation.geometry.geom_type not in ("Polygon", "MultiPolygon", "GeometryCollection"):
        return f"is a {annotation.roi} and has no area"
    if _area(annotation.geometry).area == 0:
        return "has no area"
    if annotation.plane.z or annotation.plane.t:
        return f"lies on plane z={annotation.plane.z}, t={annotation.plane.t}, not on the first"
    return None


def label(annotation: PathObject) -> str:
    """How to name an annotation to a person: its name, else its class, else its id."""
    return annotation.name or annotation.classification or f"annotation {str(annotation.id)[:8]}"


def _area(geometry: BaseGeometry) -> BaseGeometry:
    """The valid polygonal part of a geometry; people draw outlines that cross themselves."""
    if not geometry.is_valid:
        geometry = shapely.make_valid(geometry)
    return shapely.union_all(_parts(geometry)) if _parts(geometry) else shapely.Polygon()


def _parts(geometry: BaseGeometry) -> list[BaseGeometry]:
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
