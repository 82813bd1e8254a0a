"""Jobs: submitted, watched, cancelled; their results."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from pathosam_qupath.server import schemas
from pathosam_qupath.server.geometry import check_vertices
from pathosam_qupath.server.job import Job
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.project_job import project_job
from pathosam_qupath.server.routes.parameters import JobId, Wait
from pathosam_qupath.server.schemas.fields import EXAMPLE_NUCLEUS
from pathosam_qupath.server.segment_job import segment_job
from pathosam_qupath.server.server import Server

GEOJSON = "application/geo+json"
Seen = Annotated[
    int | None,
    Query(ge=0, description="``progress.change`` of the last answer.", examples=[17]),
]
_CANCEL_SECONDS = 1.0
EXAMPLE_OUTPUT = {
    "run": "20261123-233000-ab12",
    "entries": [{"id": "3", "name": "case-7.svs", "state": "written", "nuclei": 1893}],
}
_PIECE = 1 << 18


def add_job_routes(app: FastAPI, server: Server) -> None:
    """Add the routes of jobs."""

    @app.post("/v1/jobs", tags=["jobs"], status_code=202)
    def submit(request: Annotated[schemas.JobRequest, Body()]) -> schemas.JobResponse:
        """Submit a job: segment regions of an open image, or run a command on a project."""
        if isinstance(request, schemas.SegmentJob):
            if request.regions is not None:
                areas = (feature.geometry for feature in request.regions.features)
                check_vertices(areas, server.limits.vertices)
            server.warm.check()
            job = segment_job(request, server.bench)
        else:
            job = project_job(request, server.jobs, server.roots, server.warm)
        return _job(server, server.jobs.submit(job))

    @app.get("/v1/jobs", tags=["jobs"])
    def jobs() -> schemas.JobsResponse:
        """All jobs that are remembered, newest first."""
        return schemas.JobsResponse(jobs=[_job(server, j) for j in server.jobs.newest_first()])

    @app.get("/v1/jobs/{job}", tags=["jobs"])
    async def job(job: JobId, wait: Wait = 0, seen: Seen = None) -> schemas.JobResponse:
        """A job. With ``wait``: once it has ended, or changed after ``seen``, or then."""
        found = server.jobs.get(job)
        await server.changes.wait(
            lambda: found.ended or (seen is not None and found.progress.change > seen), wait
        )
        return _job(server, found)

    @app.delete("/v1/jobs/{job}", tags=["jobs"])
    async def cancel(job: JobId) -> schemas.JobResponse:
        """Cancel a job; one that has ended stays as it is."""
        found = server.jobs.get(job)
        await run_in_threadpool(server.jobs.cancel, found)
        await server.changes.wait(lambda: found.ended, _CANCEL_SECONDS)
        return _job(server, found)

    @app.get(
        "/v1/jobs/{job}/result",
        tags=["jobs"],
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "QuPath's GeoJSON, or the JSON of a command",
                "content": {
                    GEOJSON: {
                        "schema": {"type": "object"},
                        "example": {"type": "FeatureCollection", "features": [EXAMPLE_NUCLEUS]},
                    },
                    "application/json": {"schema": {}, "example": EXAMPLE_OUTPUT},
                },
            }
        },
    )
    def result(job: JobId, request: Request) -> Response:
        """The nuclei of a segment job, streamed; the output of a command as JSON."""
        found = server.jobs.get(job)
        if not found.ended:
            raise ProblemError(
                409, "not_finished", job, f"it is {found.state}", "Wait until it is done."
            )
        if found.state != "done":
            raise ProblemError(409, "no_result", job, f"it is {found.state}", "Run it again.")
        if found.kind != "segment":
            return JSONResponse((found.result or {}).get("output"))
        path = server.results.find(job)
        headers = {"Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return FileResponse(path, media_type=GEOJSON, headers=headers)
        return StreamingResponse(_unpacked(path), media_type=GEOJSON, headers=headers)

    @app.get(
        "/v1/jobs/{job}/picture",
        tags=["jobs"],
        response_class=FileResponse,
        responses={200: {"description": "Tissue and outlines", "content": {"image/png": {}}}},
    )
    def picture(job: JobId) -> FileResponse:
        """A picture of where a segment job found most nuclei."""
        path = server.results.find_picture(server.jobs.get(job).id)
        if path is None:
            raise ProblemError(404, "not_found", job, "there is no picture of it", "Run it again.")
        return FileResponse(path, media_type="image/png")


def _unpacked(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        while piece := file.read(_PIECE):
            yield piece


def _job(server: Server, job: Job) -> schemas.JobResponse:
    eta = job.eta()
    output = job.result
    return schemas.JobResponse(
        id=job.id,
        kind=job.kind,
        state=job.state,
        label=job.label,
        run=job.run,
        image=job.image,
        position=server.jobs.position(job),
        progress=schemas.ProgressModel(
            **asdict(job.progress),
            seconds=round(job.elapsed(), 2),
            eta_seconds=None if eta is None else round(eta, 1),
        ),
        recorded=job.recorded,
        note=job.note,
        error=None if job.error is None else schemas.ErrorModel(**job.error.said),
        result=_plain(output) if output is not None else None,
        picture=job.has_picture,
        created=job.created,
        started=job.started,
        finished=job.finished,
    )


def _plain(result: Mapping[str, object]) -> Any:  # noqa: ANN401 (JSON)
    return result["output"] if set(result) == {"output"} else dict(result)
