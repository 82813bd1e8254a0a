"""Values that several requests share: coordinates, names, regions as QuPath exports them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

BOUND = 1e8
"""Slide pixels: no coordinate lies farther out."""

Coordinate = Annotated[float, Field(ge=-BOUND, le=BOUND, allow_inf_nan=False)]
PixelSize = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Position = Annotated[list[Coordinate], Field(min_length=2, max_length=3)]
Point = Annotated[list[Coordinate], Field(min_length=2, max_length=2)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
Ring = Annotated[list[Position], Field(min_length=4)]
Rings = Annotated[list[Ring], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Words = Annotated[list[Name], Field(max_length=10_000)]
ClassNames = Annotated[dict[str, str | Literal[False] | None], Field(max_length=200)]
"""Model class → what to call it; null: unclassified; false: leave its nuclei out."""

EXAMPLE_REGION: dict[str, Any] = {
    "type": "Feature",
    "id": "6a3f0e0e-7a43-4a7f-9a3c-0d3f2f6f9d11",
    "geometry": {
        "type": "Polygon",
        "coordinates": [[[100, 100], [612, 100], [612, 612], [100, 612], [100, 100]]],
    },
    "properties": {"objectType": "annotation"},
}

EXAMPLE_NUCLEUS: dict[str, Any] = {
    "type": "Feature",
    "id": "0b9c6a52-3c1f-4e64-9b53-3a3a0d8a2f10",
    "geometry": {
        "type": "Polygon",
        "coordinates": [[[1194, 832], [1207, 833], [1209, 846], [1196, 848], [1194, 832]]],
    },
    "properties": {
        "objectType": "detection",
        "classification": {"name": "Epithelial", "color": [200, 0, 0]},
        "measurements": {"Area µm^2": 12.6, "Probability: Epithelial": 0.93},
        "metadata": {"PathoSAM run": "20261123-233000-ab12"},
        "parent": EXAMPLE_REGION["id"],
        "probability": 0.93,
    },
}


def request_like(*examples: dict[str, Any]) -> ConfigDict:
    """Configuration of a request: unknown fields and other types are refused."""
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": list(examples)})


def response_like(*examples: dict[str, Any]) -> ConfigDict:
    """Configuration of a response."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class PolygonModel(BaseModel):
    """A polygon in slide pixels: its outline, then holes, each closed."""

    model_config = ConfigDict(strict=True)
    type: Literal["Polygon"]
    coordinates: Rings


class MultiPolygonModel(BaseModel):
    """Several polygons in slide pixels."""

    model_config = ConfigDict(strict=True)
    type: Literal["MultiPolygon"]
    coordinates: Annotated[list[Rings], Field(min_length=1)]


Area = Annotated[PolygonModel | MultiPolygonModel, Field(discriminator="type")]


class AreaFeature(BaseModel):
    """A region. Where its id is a UUID, nuclei in it name it as ``parent``.

    One whose ``properties.classification.name`` is "Ignore*" is cut out of the others.
    """

    model_config = ConfigDict(strict=True, json_schema_extra={"examples": [EXAMPLE_REGION]})
    type: Literal["Feature"]
    id: Annotated[str, Field(max_length=200)] | None = None
    geometry: Area
    properties: dict[str, Any] | None = None


class Regions(BaseModel):
    """Regions as QuPath exports annotations."""

    model_config = ConfigDict(strict=True)
    type: Literal["FeatureCollection"]
    features: Annotated[list[AreaFeature], Field(min_length=1)]
