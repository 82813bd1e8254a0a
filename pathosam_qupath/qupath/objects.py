"""QuPath's objects as plain values, shared by both project backends.

Coordinates are full-resolution pixels of the image, x to the right and y down, the
frame that QuPath's ROIs use: the corner of the first pixel is (0, 0), its centre
(0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from shapely.geometry.base import BaseGeometry

ObjectType = Literal["annotation", "detection", "cell", "tile", "tma_core"]

RUN_KEY = "PathoSAM run"
"""Metadata key under which a detection names the run that made it."""

FRAME_COLUMNS = (
    "id",
    "object_type",
    "classification",
    "probability",
    "name",
    "color",
    "locked",
    "parent",
    "run",
    "geometry",
)
"""Columns of a detections frame that are not measurements; every other one is."""


@dataclass(frozen=True)
class Plane:
    """The image plane of a ROI; ``c == -1`` means all channels (QuPath's default)."""

    c: int = -1
    z: int = 0
    t: int = 0


@dataclass(frozen=True, eq=False)
class PathObject:
    """One object of a QuPath hierarchy, the root excepted.

    Attributes
    ----------
    id : the object's UUID; unique within an image.
    object_type : what QuPath would call it (cells, tiles are kinds of detection).
    geometry : shapely geometry in full-resolution pixels. Ellipses become polygons,
        points become ``MultiPoint``, lines ``LineString``.
    roi : QuPath's name of the ROI's kind: "Polygon", "Rectangle", "Ellipse", "Line",
        "Polyline", "Points", "Geometry" or "none".
    classification : "Tumor", or derived "Tumor: Positive"; None when unclassified.
    probability : class probability in 0…1; None when absent.
    color : the object's own (not its class's) colour as (red, green, blue), or None.
    parent : id of the parent; None where that is the root.
    nucleus : a cell's nucleus, else None.
    metadata : string pairs, without the object id.
    """

    id: UUID
    object_type: ObjectType
    geometry: BaseGeometry
    roi: str
    classification: str | None = None
    probability: float | None = None
    name: str | None = None
    color: tuple[int, int, int] | None = None
    locked: bool = False
    measurements: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    parent: UUID | None = None
    plane: Plane = Plane()
    nucleus: BaseGeometry | None = None

    @property
    def run(self) -> str | None:
        """The id of the run that made this object, or None."""
        return self.metadata.get(RUN_KEY)
