"""Opening images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from pathosam_qupath.server.schemas.fields import (
    BOUND,
    PixelSize,
    Text,
    request_like,
    response_like,
)


class OpenImageRequest(BaseModel):
    """An image file that the server reads itself."""

    model_config = request_like(
        {"path": "/slides/case-7.svs"},
        {"uri": "file:/slides/case-7.tif", "mpp": 0.25, "rotation": 90},
    )
    path: Text | None = Field(default=None, description="Full path on the server's machine.")
    uri: Text | None = Field(
        default=None, description="The same as a file: URI; give one of the two."
    )
    series: Annotated[int, Field(ge=0, le=10_000)] = 0
    rotation: Literal[0, 90, 180, 270] = Field(default=0, description="Clockwise, after the crop.")
    crop: (
        Annotated[
            list[Annotated[int, Field(ge=0, le=int(BOUND))]], Field(min_length=4, max_length=4)
        ]
        | None
    ) = Field(default=None, description="x, y, width, height in pixels of the file.")
    mpp: PixelSize | Annotated[list[PixelSize], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="µm per pixel instead of what the file says; one number or x, y."
    )


class ImageResponse(BaseModel):
    """An open image. Coordinates of later requests are pixels of this width and height."""

    model_config = response_like(
        {
            "image": "img-0f3a7c2b9d1e4f60",
            "width": 46000,
            "height": 32914,
            "mpp": [0.499, 0.499],
            "source": "file",
        }
    )
    image: str
    width: int
    height: int
    mpp: list[float]
    source: Literal["file", "pixels"]
