"""What is said of a job."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from pathosam_qupath.server.schemas.errors import ErrorModel
from pathosam_qupath.server.schemas.fields import response_like

EXAMPLE_JOB: dict[str, Any] = {
    "id": "job-1f2e3d4c5b6a7988",
    "kind": "segment",
    "state": "running",
    "label": "case-7.svs",
    "run": "20261123-233000-ab12",
    "image": "img-0f3a7c2b9d1e4f60",
    "position": 0,
    "progress": {
        "stage": "segmenting",
        "tiles_done": 12,
        "tiles_total": 40,
        "nuclei": 310,
        "images_done": 0,
        "images_total": 0,
        "fraction": 0.3,
        "seconds": 2.1,
        "eta_seconds": 4.9,
        "change": 17,
    },
    "recorded": False,
    "note": None,
    "error": None,
    "result": None,
    "picture": False,
    "created": "2026-11-23T23:30:00Z",
    "started": "2026-11-23T23:30:00Z",
    "finished": None,
}


class ProgressModel(BaseModel):
    """How far a job is; ``change`` counts up with every change."""

    stage: str
    tiles_done: int
    tiles_total: int
    nuclei: int
    images_done: int
    images_total: int
    fraction: float | None
    seconds: float
    eta_seconds: float | None
    change: int


class JobResponse(BaseModel):
    """A job as it is now."""

    model_config = response_like(EXAMPLE_JOB)
    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    label: str
    run: str | None
    image: str | None
    position: int
    progress: ProgressModel
    recorded: bool
    note: str | None
    error: ErrorModel | None
    result: dict[str, Any] | list[Any] | None
    picture: bool
    created: datetime
    started: datetime | None
    finished: datetime | None


class JobsResponse(BaseModel):
    """All jobs that are remembered, newest first."""

    model_config = response_like({"jobs": [EXAMPLE_JOB]})
    jobs: list[JobResponse]
