"""The ASGI application: its routes, its OpenAPI document, its guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from pathosam_qupath import __version__
from pathosam_qupath.server import schemas
from pathosam_qupath.server.error_responses import install_error_responses
from pathosam_qupath.server.guard import Access, Guard
from pathosam_qupath.server.routes.image_routes import add_image_routes
from pathosam_qupath.server.routes.job_routes import add_job_routes
from pathosam_qupath.server.routes.model_routes import add_model_routes
from pathosam_qupath.server.routes.page_routes import add_pages
from pathosam_qupath.server.routes.prompt_routes import add_prompt_routes
from pathosam_qupath.server.server import Server, Settings
from pathosam_qupath.server.warm_model import WarmModel

__all__ = ["Server", "Settings", "create_app"]

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas.ErrorResponse, "description": "What is wrong, and what to do"},
    "5XX": {"model": schemas.ErrorResponse, "description": "The server failed"},
}


def create_app(settings: Settings, access: Access, warm: WarmModel) -> tuple[ASGIApp, Server]:
    """The ASGI application behind its guard, and what it works with."""
    server = Server(settings, warm)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.changes.bind(asyncio.get_running_loop())
        yield
        await run_in_threadpool(server.close)

    app = FastAPI(
        title="pathosam-qupath",
        version=__version__,
        summary="Nuclei of open slides and of QuPath projects, by a model that stays loaded.",
        description=(
            "Every request bears the token of `server.json`: `Authorization: Bearer <token>`. "
            "Coordinates are full-resolution pixels of the slide, x to the right, y down. "
            "Every error is `{error: {subject, cause, remedy, code}}`."
        ),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=_ERRORS,
    )
    install_error_responses(app)
    add_model_routes(app, server)
    add_image_routes(app, server)
    add_job_routes(app, server)
    add_prompt_routes(app, server)
    add_pages(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return Guard(app, access, settings.limits), server


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
        )
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer"}
        document["security"] = [{"token": []}]
        # FastAPI leaves out whatever is null, also in examples, where it says something.
        for name, schema in document["components"].get("schemas", {}).items():
            model = getattr(schemas, name, None)
            extra = {} if model is None else model.model_config.get("json_schema_extra", {})
            if "examples" in extra:
                schema["examples"] = extra["examples"]
        app.openapi_schema = document
    return app.openapi_schema
