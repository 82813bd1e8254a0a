"""Objects by clicks, boxes and outlines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.schemas.fields import (
    EXAMPLE_NUCLEUS,
    Area,
    Box,
    ClassNames,
    Name,
    Point,
    request_like,
    response_like,
)

_LIMITS = Limits()


class PromptModel(BaseModel):
    """One object: clicks on it (and beside it), a box around it, an outline to redraw."""

    model_config = request_like(
        {"points": [[1200.5, 840.0]], "labels": [1]}, {"box": [1180, 820, 1230, 870]}
    )
    points: Annotated[list[Point], Field(max_length=1000)] = []
    labels: Annotated[list[Literal[0, 1]], Field(max_length=1000)] = Field(
        default=[], description="Per point: 1 on the object, 0 beside it. Empty: all on it."
    )
    box: Box | None = Field(default=None, description="Left, top, right, bottom in slide pixels.")
    geometry: Area | None = None


class PromptOptions(BaseModel):
    """How to answer prompts."""

    model_config = request_like({"classes": {"Epithelial": "Tumor"}})
    classes: ClassNames | None = None


class PromptRequest(BaseModel):
    """Objects by prompts on an open image."""

    model_config = request_like(
        {"image": "img-0f3a7c2b9d1e4f60", "prompts": [{"points": [[1200.5, 840.0]]}]}
    )
    image: Name
    prompts: Annotated[list[PromptModel], Field(min_length=1, max_length=_LIMITS.prompts)]
    options: PromptOptions = Field(default_factory=PromptOptions)


class PromptResponse(BaseModel):
    """One feature per prompt, in their order; its geometry is null where nothing was seen."""

    model_config = response_like(
        {
            "type": "FeatureCollection",
            "features": [EXAMPLE_NUCLEUS],
            "encoder_passes": 0,
            "milliseconds": 31.4,
        }
    )
    type: Literal["FeatureCollection"]
    features: list[dict[str, Any]]
    encoder_passes: int
    milliseconds: float
