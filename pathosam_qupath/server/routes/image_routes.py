"""Images: opened from files, sent as pixels, let go of."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool

from pathosam_qupath.server import schemas
from pathosam_qupath.server.access import path_of_uri
from pathosam_qupath.server.open_image import OpenImage
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.routes.parameters import ImageId
from pathosam_qupath.server.sent_pixels import PixelRectangle
from pathosam_qupath.server.server import Server

Pixel = Annotated[
    float,
    Query(
        ge=0,
        le=1e8,
        allow_inf_nan=False,
        description="Where the rectangle begins, in slide pixels.",
        examples=[2048],
    ),
]
Extent = Annotated[
    float,
    Query(
        gt=0,
        le=1e8,
        allow_inf_nan=False,
        description="How far it reaches, in slide pixels.",
        examples=[1024],
    ),
]
# Annotations inside a union would lose their description.
_MPP = Query(
    gt=0,
    le=1000,
    allow_inf_nan=False,
    description="µm per slide pixel; ``mpp_y`` where it is another from top to bottom.",
    examples=[0.25],
)
_SIDE = Query(
    ge=1,
    le=10**8,
    description="Of the whole slide in pixels, where the client wants it back.",
    examples=[46000],
)


def add_image_routes(app: FastAPI, server: Server) -> None:
    """Add the routes of images."""

    @app.post("/v1/images", tags=["images"], status_code=201)
    def open_image(request: schemas.OpenImageRequest) -> schemas.ImageResponse:
        """Open an image file of the server's machine; the same request gives the same id."""
        if (request.path is None) == (request.uri is None):
            raise ProblemError(
                422, "invalid_request", "path, uri", "one of the two is needed", "Give one."
            )
        text = request.path if request.path is not None else path_of_uri(request.uri or "")
        mpp = request.mpp
        image = server.images.open_file(
            server.roots.check(text),
            series=request.series,
            rotation=request.rotation,
            crop=None if request.crop is None else tuple(request.crop),  # type: ignore[arg-type]
            mpp=None if mpp is None else (mpp[0], mpp[1]) if isinstance(mpp, list) else (mpp, mpp),
        )
        return _image(image)

    @app.post(
        "/v1/images/pixels",
        tags=["images"],
        status_code=201,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    kind: {
                        "schema": {"type": "string", "format": "binary"},
                        "example": f"the bytes that `curl --data-binary @{name}` sends",
                    }
                    for kind, name in (("image/png", "region.png"), ("image/jpeg", "region.jpg"))
                },
            }
        },
    )
    async def open_pixels(
        request: Request,
        x: Pixel,
        y: Pixel,
        width: Extent,
        height: Extent,
        mpp: Annotated[float, _MPP],
        mpp_y: Annotated[float | None, _MPP] = None,
        slide_width: Annotated[int | None, _SIDE] = None,
        slide_height: Annotated[int | None, _SIDE] = None,
    ) -> schemas.ImageResponse:
        """Pixels of a rectangle of a slide that the server cannot read.

        The rectangle is in slide pixels, ``mpp`` in µm per slide pixel; the pixels may show it
        at any downsample. Send about 40 µm around what is to be segmented.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("image/png", "image/jpeg"):
            raise ProblemError(
                415, "unsupported", f"Content-Type {kind!r}", "PNG and JPEG are read", "Send one."
            )
        size = None
        if slide_width is not None and slide_height is not None:
            size = slide_width, slide_height
        rectangle = PixelRectangle(x, y, width, height, (mpp, mpp_y or mpp), size)
        async with server.decoding:
            content = await request.body()
            image = await run_in_threadpool(server.images.open_pixels, content, rectangle)
        return _image(image)

    @app.get("/v1/images/{image}", tags=["images"])
    def image(image: ImageId) -> schemas.ImageResponse:
        """An open image."""
        return _image(server.images.get(image))

    @app.delete("/v1/images/{image}", tags=["images"], status_code=204)
    def close_image(image: ImageId) -> None:
        """Let go of an image; jobs that use it go on."""
        server.images.drop(image)


def _image(image: OpenImage) -> schemas.ImageResponse:
    return schemas.ImageResponse(
        image=image.id,
        width=image.size[0],
        height=image.size[1],
        mpp=list(image.mpp),
        source=image.source,
    )
