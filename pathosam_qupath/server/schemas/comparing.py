"""Detections of an open image, to be compared with what their runs recorded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.schemas.fields import (
    EXAMPLE_REGION,
    Area,
    Name,
    Text,
    request_like,
    response_like,
)

_LIMITS = Limits()

Uuid = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]


class ComparedFeature(BaseModel):
    """A detection as it is now."""

    model_config = ConfigDict(strict=True)
    type: Literal["Feature"]
    id: Uuid
    geometry: Area
    properties: dict[str, Any]


class ComparedFeatures(BaseModel):
    """Detections; their properties: run, classification (name or null), name, locked,
    color, children (whether it has any).
    """

    model_config = ConfigDict(strict=True)
    type: Literal["FeatureCollection"]
    features: Annotated[list[ComparedFeature], Field(max_length=_LIMITS.objects)]


class UntouchedRequest(BaseModel):
    """Detections to compare with what their runs recorded."""

    model_config = request_like(
        {
            "project": "/projects/study",
            "entry": "3",
            "objects": {
                "type": "FeatureCollection",
                "features": [
                    {
                        **EXAMPLE_REGION,
                        "properties": {
                            "run": "20261123-233000-ab12",
                            "classification": "Tumor",
                            "name": None,
                            "locked": False,
                        },
                    }
                ],
            },
        }
    )
    project: Text
    entry: Name
    objects: ComparedFeatures


class WithdrawnRequest(BaseModel):
    """Nuclei of a run that were taken out of an open image again."""

    model_config = request_like(
        {
            "project": "/projects/study",
            "entry": "3",
            "ids": [EXAMPLE_REGION["id"]],
            "undone": True,
        }
    )
    project: Text
    entry: Name
    ids: Annotated[list[Uuid], Field(max_length=_LIMITS.objects)]
    undone: bool = Field(
        description="True: the run was taken back; false: a later one replaced it."
    )


class UntouchedResponse(BaseModel):
    """Ids of the detections that nobody has edited since their run."""

    model_config = response_like({"untouched": [EXAMPLE_REGION["id"]]})
    untouched: list[str]
