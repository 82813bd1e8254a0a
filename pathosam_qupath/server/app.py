"""The routes: each checks its request, calls one function, and says what it gave."""

from __future__ import annotations

import asyncio
import gzip
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from starlette.types import ASGIApp

from pathosam_qupath import __version__
from pathosam_qupath.server import schemas
from pathosam_qupath.server.access import Roots, path_of_uri
from pathosam_qupath.server.changes import Changes
from pathosam_qupath.server.comparing import untouched_ids
from pathosam_qupath.server.error_responses import install_error_responses
from pathosam_qupath.server.geometry import check_vertices
from pathosam_qupath.server.guard import PROTOCOL, Access, Guard
from pathosam_qupath.server.images import Images, OpenImage, PixelRectangle
from pathosam_qupath.server.jobs import Job, Jobs
from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.pages import PAGE_HEADERS, docs_page, front_page
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.project_job import project_job
from pathosam_qupath.server.prompt_models import answers_prompts, modes_of
from pathosam_qupath.server.prompting import Prompts
from pathosam_qupath.server.results import Results
from pathosam_qupath.server.segment_job import Bench, segment_job
from pathosam_qupath.server.warm_model import Device, WarmModel

GEOJSON = "application/geo+json"
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas.ErrorResponse, "description": "What is wrong, and what to do"},
    "5XX": {"model": schemas.ErrorResponse, "description": "The server failed"},
}
_CANCEL_SECONDS = 1.0
_PIECE = 1 << 18

Wait = Annotated[float, Query(ge=0, le=Limits.wait_seconds, description="Seconds to wait.")]
Pixel = Annotated[float, Query(ge=0, le=1e8, allow_inf_nan=False)]
Extent = Annotated[float, Query(gt=0, le=1e8, allow_inf_nan=False)]
MicrometresPerPixel = Annotated[float, Query(gt=0, le=1000, allow_inf_nan=False)]


@dataclass(frozen=True)
class Settings:
    """How a server is set up.

    Attributes
    ----------
    model : the name, or a weight file of the owner's choice.
    roots : folders below which files may be opened.
    results : folder for results, the server's alone.
    """

    model: str
    device: str
    roots: tuple[Path, ...]
    results: Path
    limits: Limits = field(default_factory=Limits)


class Server:
    """What the routes work with; lives as long as the server."""

    def __init__(self, settings: Settings) -> None:
        limits = settings.limits
        self.limits, self.began = limits, time.monotonic()
        self.changes = Changes()
        self.roots = Roots(settings.roots)
        self.results = Results(settings.results, limits)
        self.warm = WarmModel(settings.device, settings.model, self.changes.announce)
        self.device = Device()
        self.images = Images(limits, closed=lambda image: self.prompts.forget(image))
        self.prompts = Prompts(limits, self.images, self.warm, self.device)
        self.jobs = Jobs(
            limits,
            changed=self.changes.announce,
            forgotten=lambda job: self.results.forget(job.id),
            out_of_memory=self.free_memory,
        )
        self.bench = Bench(self.images, self.jobs, self.results, self.roots, self.warm, self.device)
        self.decoding = asyncio.Semaphore(2)
        self.stop: Callable[[], None] = lambda: None

    def free_memory(self) -> None:
        """Drop what can be made again, after an allocation has failed."""
        self.prompts.clear()
        self.warm.free_memory()

    def close(self) -> None:
        """End the jobs and let go of files."""
        self.changes.stop()
        self.jobs.close()
        self.prompts.clear()
        self.images.close()
        self.results.clear()


def create_app(settings: Settings, access: Access) -> tuple[ASGIApp, Server]:
    """The ASGI application behind its guard, and what it works with."""
    server = Server(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.changes.bind(asyncio.get_running_loop())
        server.warm.load(settings.model)
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
    _add_model_routes(app, server)
    _add_image_routes(app, server)
    _add_job_routes(app, server)
    _add_other_routes(app, server)
    _add_pages(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return Guard(app, access, settings.limits), server


def _add_model_routes(app: FastAPI, server: Server) -> None:
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
        return _health(server)


def _add_image_routes(app: FastAPI, server: Server) -> None:
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
                    kind: {"schema": {"type": "string", "format": "binary"}}
                    for kind in ("image/png", "image/jpeg")
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
        mpp: MicrometresPerPixel,
        mpp_y: MicrometresPerPixel | None = None,
        slide_width: Annotated[int | None, Query(ge=1, le=10**8)] = None,
        slide_height: Annotated[int | None, Query(ge=1, le=10**8)] = None,
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
    def image(image: str) -> schemas.ImageResponse:
        """An open image."""
        return _image(server.images.get(image))

    @app.delete("/v1/images/{image}", tags=["images"], status_code=204)
    def close_image(image: str) -> None:
        """Let go of an image; jobs that use it go on."""
        server.images.drop(image)


def _add_job_routes(app: FastAPI, server: Server) -> None:
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
    async def job(
        job: str, wait: Wait = 0, seen: Annotated[int | None, Query(ge=0)] = None
    ) -> schemas.JobResponse:
        """A job. With ``wait``: once it has ended, or changed after ``seen``, or then."""
        found = server.jobs.get(job)
        await server.changes.wait(
            lambda: found.ended or (seen is not None and found.progress.change > seen), wait
        )
        return _job(server, found)

    @app.delete("/v1/jobs/{job}", tags=["jobs"])
    async def cancel(job: str) -> schemas.JobResponse:
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
                    GEOJSON: {"schema": {"type": "object"}},
                    "application/json": {"schema": {}},
                },
            }
        },
    )
    def result(job: str, request: Request) -> Response:
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
    def picture(job: str) -> FileResponse:
        """A picture of where a segment job found most nuclei."""
        path = server.results.find_picture(server.jobs.get(job).id)
        if path is None:
            raise ProblemError(404, "not_found", job, "there is no picture of it", "Run it again.")
        return FileResponse(path, media_type="image/png")


def _add_other_routes(app: FastAPI, server: Server) -> None:
    @app.post("/v1/prompt", tags=["prompts"])
    def prompt(request: schemas.PromptRequest) -> schemas.PromptResponse:
        """One object per prompt, at once."""
        return server.prompts.answer(request)

    @app.post("/v1/untouched", tags=["projects"])
    def untouched(request: schemas.UntouchedRequest) -> schemas.UntouchedResponse:
        """Which detections are as their run has recorded them."""
        check_vertices((f.geometry for f in request.objects.features), 50 * server.limits.objects)
        project = server.roots.check(request.project)
        return schemas.UntouchedResponse(untouched=untouched_ids(request, project))

    @app.post("/v1/shutdown", tags=["model"], status_code=202)
    def shutdown() -> dict[str, str]:
        """End the server; running jobs are cancelled."""
        server.stop()
        return {"state": "stopping"}


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(front_page(), headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers=PAGE_HEADERS)


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
        app.openapi_schema = document
    return app.openapi_schema


def _unpacked(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        while piece := file.read(_PIECE):
            yield piece


def _image(image: OpenImage) -> schemas.ImageResponse:
    return schemas.ImageResponse(
        image=image.id,
        width=image.size[0],
        height=image.size[1],
        mpp=list(image.mpp),
        source=image.source,
    )


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


def _health(server: Server) -> schemas.HealthResponse:
    from importlib.metadata import version

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
        torch=version("torch"),
        model=loaded,
        loading=warm.name if warm.state == "loading" else None,
        error=None if warm.error is None else schemas.ErrorModel(**warm.error.said),
        jobs={"queued": server.jobs.count("queued"), "running": server.jobs.count("running")},
        images=len(server.images),
        uptime_s=round(time.monotonic() - server.began, 1),
        roots=[str(folder) for folder in server.roots.folders],
        limits={name: value for name, value in asdict(limits).items()},
    )


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
