"""Health, models, the end of the server."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from functools import cache
from importlib.metadata import version

from fastapi import FastAPI

from pathosam_qupath import __version__
from pathosam_qupath.server import schemas
from pathosam_qupath.server.guard import PROTOCOL
from pathosam_qupath.server.prompt_models import answers_prompts, modes_of
from pathosam_qupath.server.routes.parameters import Wait
from pathosam_qupath.server.server import Server


def add_model_routes(app: FastAPI, server: Server) -> None:
    """Add the routes of the server itself."""

    @app.get("/v1/health", tags=["model"])
    async def health(wait: Wait = 0) -> schemas.HealthResponse:
        """Versions, device, model. With ``wait``: once the model is loaded, or then."""
        await server.changes.wait(lambda: server.warm.state != "loading", wait)
        return _health(server)

    @app.get("/v1/models", tags=["model"])
    def models() -> list[schemas.ModelChoice]:
        """Models that can be loaded."""
        return _model_choices(server)

    @app.post("/v1/model", tags=["model"], status_code=202)
    def choose_model(request: schemas.ChooseModelRequest) -> schemas.HealthResponse:
        """Load another model in the background; running jobs keep theirs."""
        server.warm.load(request.name)
        server.prompts.clear()
        return _health(server)

    @app.post("/v1/shutdown", tags=["model"], status_code=202)
    def shutdown() -> schemas.ShutdownResponse:
        """End the server; running jobs are cancelled."""
        server.stop()
        return schemas.ShutdownResponse(state="stopping")


def _health(server: Server) -> schemas.HealthResponse:
    warm, model = server.warm, server.warm.loaded
    loaded = None
    if model is not None:
        info = model.info
        loaded = schemas.LoadedModel(
            name=warm.name,
            weights_hash=info.weights_hash,
            mpp=info.mpp,
            classes=[
                schemas.ModelClass(name=name, color=list(color))
                for name, color in zip(info.classes, info.colors, strict=True)
            ],
            prompts=answers_prompts(model),
            modes=list(modes_of(model)),
        )
    limits = server.limits
    return schemas.HealthResponse(
        state=warm.state,
        version=__version__,
        protocol=PROTOCOL,
        device=None if model is None else model.device,
        python=platform.python_version(),
        torch=_torch_version(),
        model=loaded,
        loading=warm.name if warm.state == "loading" else None,
        error=None if warm.error is None else schemas.ErrorModel(**warm.error.said),
        jobs={"queued": server.jobs.count("queued"), "running": server.jobs.count("running")},
        images=len(server.images),
        uptime_s=round(time.monotonic() - server.began, 1),
        roots=[str(folder) for folder in server.roots.folders],
        limits={name: value for name, value in asdict(limits).items()},
    )


@cache
def _torch_version() -> str:
    return version("torch")


def _model_choices(server: Server) -> list[schemas.ModelChoice]:
    from pathosam_qupath.model.catalogue import list_models

    warm = server.warm
    known = {summary.name: summary for summary in list_models() if summary.segments}
    choices = []
    for name in warm.allowed():
        summary = known.get(name)
        choices.append(
            schemas.ModelChoice(
                name=name,
                available=summary is None or summary.cached == "yes",
                loaded=warm.state == "ready" and warm.name == name,
                mpp=None if summary is None else summary.mpp,
                classes=[] if summary is None else list(summary.classes),
                note="chosen when the server was started"
                if summary is None
                else summary.description,
            )
        )
    return choices
