"""The server itself: versions, device, model, what else could be loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from pathosam_qupath.server.schemas.errors import ErrorModel
from pathosam_qupath.server.schemas.fields import Name, request_like, response_like

EXAMPLE_HEALTH: dict[str, Any] = {
    "state": "ready",
    "version": "0.2.0",
    "protocol": {"min": 1, "max": 1},
    "device": "cpu",
    "python": "3.12.4",
    "torch": "2.6.0",
    "model": {
        "name": "bundled",
        "weights_hash": "3f786850e387550fdab836ed7e6dc881de23001b4f1a1ef2e2c5f6f0d1b2a3c4",
        "mpp": 0.25,
        "classes": [{"name": "Epithelial", "color": [200, 0, 0]}],
        "prompts": True,
        "modes": ["ais", "apg"],
    },
    "loading": None,
    "error": None,
    "jobs": {"queued": 0, "running": 1},
    "images": 2,
    "uptime_s": 431.7,
    "roots": ["/slides"],
    "limits": {"json_bytes": 33554432, "vertices": 100000, "prompts": 1000},
}


class ModelClass(BaseModel):
    """A class of nuclei and its colour."""

    name: str
    color: list[int]


class LoadedModel(BaseModel):
    """The model that is loaded.

    ``prompts``: whether it answers /v1/prompt; ``modes``: of segment jobs.
    """

    name: str
    weights_hash: str
    mpp: float
    classes: list[ModelClass]
    prompts: bool
    modes: list[str]


class HealthResponse(BaseModel):
    """Versions, device, model, load."""

    model_config = response_like(EXAMPLE_HEALTH)
    state: Literal["loading", "ready", "failed"]
    version: str
    protocol: dict[str, int]
    device: str | None
    python: str
    torch: str | None
    model: LoadedModel | None
    loading: str | None
    error: ErrorModel | None
    jobs: dict[str, int]
    images: int
    uptime_s: float
    roots: list[str]
    limits: dict[str, float]


class ModelChoice(BaseModel):
    """A model that can be loaded."""

    model_config = response_like(
        {
            "name": "bundled",
            "available": True,
            "loaded": True,
            "mpp": 0.25,
            "classes": ["Epithelial", "Inflammatory", "Connective"],
            "note": "comes with the package",
        }
    )
    name: str
    available: bool
    loaded: bool
    mpp: float | None
    classes: list[str]
    note: str


class ChooseModelRequest(BaseModel):
    """A name of /v1/models."""

    model_config = request_like({"name": "bundled"})
    name: Name


class ShutdownResponse(BaseModel):
    """The server has been told to end."""

    model_config = response_like({"state": "stopping"})
    state: Literal["stopping"]
