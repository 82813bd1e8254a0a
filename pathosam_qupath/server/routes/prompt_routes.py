"""Prompts, and what became of detections since their run."""

from __future__ import annotations

import asyncio
import threading

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from pathosam_qupath.server import schemas
from pathosam_qupath.server.comparing import untouched_ids, withdraw
from pathosam_qupath.server.geometry import check_vertices
from pathosam_qupath.server.routes.parameters import RunId
from pathosam_qupath.server.server import Server

_LOOK = 0.5
"""Seconds between two looks whether the client of a prompt is still there."""


def add_prompt_routes(app: FastAPI, server: Server) -> None:
    """Add the routes that answer about single objects."""

    @app.post("/v1/prompt", tags=["prompts"])
    async def prompt(request: schemas.PromptRequest, connection: Request) -> schemas.PromptResponse:
        """One object per prompt, at once; given up where the client goes away."""
        gone = threading.Event()
        work = asyncio.ensure_future(run_in_threadpool(server.prompts.answer, request, gone))
        while not work.done():
            await asyncio.wait({work}, timeout=_LOOK)
            if not work.done() and await connection.is_disconnected():
                gone.set()
        return await work

    @app.post("/v1/untouched", tags=["projects"])
    def untouched(request: schemas.UntouchedRequest) -> schemas.UntouchedResponse:
        """Which detections are as their run has recorded them."""
        check_vertices((f.geometry for f in request.objects.features), 50 * server.limits.objects)
        project = server.roots.check_project(request.project)
        return schemas.UntouchedResponse(untouched=untouched_ids(request, project))

    @app.post("/v1/runs/{run}/withdrawn", tags=["projects"], status_code=204)
    def withdrawn(run: RunId, request: schemas.WithdrawnRequest) -> None:
        """Note that nuclei of a run were taken out of an open image again."""
        withdraw(run, request, server.roots.check_project(request.project))
