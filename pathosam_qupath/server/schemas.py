"""What requests must look like, and what responses do; the OpenAPI document follows from it.

Requests are strict: a field that is not known, a number in quotes or one that is no finite
number is refused. GeoJSON alone may carry more than is named here, as its standard allows.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pathosam_qupath.server.limits import Limits

_BOUND = 1e8
_LIMITS = Limits()

Coordinate = Annotated[float, Field(ge=-_BOUND, le=_BOUND, allow_inf_nan=False)]
Length = Annotated[float, Field(gt=0, le=_BOUND, allow_inf_nan=False)]
PixelSize = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Position = Annotated[list[Coordinate], Field(min_length=2, max_length=3)]
Point = Annotated[list[Coordinate], Field(min_length=2, max_length=2)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
Ring = Annotated[list[Position], Field(min_length=4)]
Rings = Annotated[list[Ring], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
ClassNames = Annotated[dict[str, str | Literal[False] | None], Field(max_length=200)]
"""Model class → what to call it; null: unclassified; false: leave its nuclei out."""

_EXAMPLE_REGION: dict[str, Any] = {
    "type": "Feature",
    "id": "6a3f0e0e-7a43-4a7f-9a3c-0d3f2f6f9d11",
    "geometry": {
        "type": "Polygon",
        "coordinates": [[[100, 100], [612, 100], [612, 612], [100, 612], [100, 100]]],
    },
    "properties": {"objectType": "annotation"},
}


def _example(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": list(examples)})


class PolygonModel(BaseModel):
    """A polygon in slide pixels: its outline, then holes, each closed."""

    model_config = ConfigDict(strict=True)
    type: Literal["Polygon"]
    coordinates: Rings


class MultiPolygonModel(BaseModel):
    """Several polygons in slide pixels."""

    model_config = ConfigDict(strict=True)
    type: Literal["MultiPolygon"]
    coordinates: Annotated[list[Rings], Field(min_length=1)]


Area = Annotated[PolygonModel | MultiPolygonModel, Field(discriminator="type")]


class AreaFeature(BaseModel):
    """A region. Where its id is a UUID, nuclei in it name it as ``parent``.

    One whose ``properties.classification.name`` is "Ignore*" is cut out of the others.
    """

    model_config = ConfigDict(strict=True, json_schema_extra={"examples": [_EXAMPLE_REGION]})
    type: Literal["Feature"]
    id: Annotated[str, Field(max_length=200)] | None = None
    geometry: Area
    properties: dict[str, Any] | None = None


class Regions(BaseModel):
    """Regions as QuPath exports annotations."""

    model_config = ConfigDict(strict=True)
    type: Literal["FeatureCollection"]
    features: Annotated[list[AreaFeature], Field(min_length=1)]


class OpenImageRequest(BaseModel):
    """An image file that the server reads itself."""

    model_config = _example(
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
            list[Annotated[int, Field(ge=0, le=int(_BOUND))]], Field(min_length=4, max_length=4)
        ]
        | None
    ) = Field(default=None, description="x, y, width, height in pixels of the file.")
    mpp: PixelSize | Annotated[list[PixelSize], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="µm per pixel instead of what the file says; one number or x, y."
    )


class ImageResponse(BaseModel):
    """An open image. Coordinates of later requests are pixels of this width and height."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image": "img-0f3a7c2b9d1e4f60",
                    "width": 46000,
                    "height": 32914,
                    "mpp": [0.499, 0.499],
                    "source": "file",
                }
            ]
        }
    )
    image: str
    width: int
    height: int
    mpp: list[float]
    source: Literal["file", "pixels"]


class SegmentOptionsModel(BaseModel):
    """How to segment; what is left out is the model's own."""

    model_config = _example({"classes": {"Epithelial": "Tumor", "Connective": None}})
    mode: Literal["ais", "apg"] = Field(
        default="ais", description="One of the modes that /v1/health names for the model."
    )
    classes: ClassNames | None = None
    foreground_threshold: Share | None = None
    center_distance_threshold: Share | None = None
    boundary_distance_threshold: Share | None = None
    min_size: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="Smallest area, in pixels at the model's resolution."
    )


class RecordModel(BaseModel):
    """The image's place in a project, in whose folder the run is to be remembered."""

    model_config = _example({"project": "/projects/study/project.qpproj", "entry": "3"})
    project: Text
    entry: Name


class SegmentJob(BaseModel):
    """Nuclei of regions of an open image."""

    model_config = _example(
        {
            "kind": "segment",
            "image": "img-0f3a7c2b9d1e4f60",
            "regions": {"type": "FeatureCollection", "features": [_EXAMPLE_REGION]},
            "options": {"classes": {"Epithelial": "Tumor"}},
            "record": None,
        }
    )
    kind: Literal["segment"]
    image: Name
    regions: Regions | None = Field(default=None, description="None: the whole image.")
    options: SegmentOptionsModel = Field(default_factory=SegmentOptionsModel)
    record: RecordModel | None = None


Words = Annotated[list[Name], Field(max_length=10_000)]


class ProjectJob(BaseModel):
    """``pathosam-qupath segment`` on a project, as a process of its own."""

    model_config = _example(
        {"kind": "project", "project": "/projects/study", "annotations": ["Tumor"]}
    )
    kind: Literal["project"]
    project: Text
    images: Words = []
    annotations: Words = []
    whole_image: bool = False
    model: Name | None = Field(default=None, description="None: the one that is loaded.")
    mpp: PixelSize | None = None
    classes: ClassNames | None = None
    keep: bool = False
    replace_edited: bool = False


class RollbackJob(BaseModel):
    """``pathosam-qupath rollback``: undo a run of a project."""

    model_config = _example({"kind": "rollback", "project": "/projects/study", "run": "last"})
    kind: Literal["rollback"]
    project: Text
    run: Annotated[str, Field(pattern=r"^(last|[0-9][0-9a-f-]{0,30})$")]


class CollectJob(BaseModel):
    """``pathosam-qupath corrections collect``: what people changed since a run."""

    model_config = _example({"kind": "collect", "project": "/projects/study"})
    kind: Literal["collect"]
    project: Text


class FinetuneJob(BaseModel):
    """A model that learns from a project's corrections.

    ``pathosam-qupath corrections export`` into the project's folder, then ``finetune`` on that.
    """

    model_config = _example(
        {"kind": "finetune", "project": "/projects/study", "name": "our-stain", "what": "decoder"}
    )
    kind: Literal["finetune"]
    project: Text
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        default="corrected", description="What the new model is called."
    )
    model: Name | None = Field(
        default=None, description="To begin with; None: the one that is loaded."
    )
    what: Literal["class-head", "decoder", "all"] = "class-head"


JobRequest = Annotated[
    SegmentJob | ProjectJob | RollbackJob | CollectJob | FinetuneJob, Field(discriminator="kind")
]


class ErrorModel(BaseModel):
    """What went wrong, why, and what to do about it."""

    subject: str
    cause: str
    remedy: str
    code: str


class ErrorResponse(BaseModel):
    """Every response that is no success."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "subject": "token",
                        "cause": "the request does not bear the server's token",
                        "remedy": "Read it from server.json.",
                        "code": "unauthorized",
                    }
                }
            ]
        }
    )
    error: ErrorModel


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

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
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
            ]
        }
    )
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

    jobs: list[JobResponse]


class PromptModel(BaseModel):
    """One object: clicks on it (and beside it), a box around it, an outline to redraw."""

    model_config = _example(
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

    model_config = _example({"classes": {"Epithelial": "Tumor"}})
    classes: ClassNames | None = None


class PromptRequest(BaseModel):
    """Objects by prompts on an open image."""

    model_config = _example(
        {"image": "img-0f3a7c2b9d1e4f60", "prompts": [{"points": [[1200.5, 840.0]]}]}
    )
    image: Name
    prompts: Annotated[list[PromptModel], Field(min_length=1, max_length=_LIMITS.prompts)]
    options: PromptOptions = Field(default_factory=PromptOptions)


class PromptResponse(BaseModel):
    """One feature per prompt, in their order; its geometry is null where nothing was seen."""

    type: Literal["FeatureCollection"]
    features: list[dict[str, Any]]
    encoder_passes: int
    milliseconds: float


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

    name: str
    available: bool
    loaded: bool
    mpp: float | None
    classes: list[str]
    note: str


class ChooseModelRequest(BaseModel):
    """A name of /v1/models."""

    model_config = _example({"name": "bundled"})
    name: Name


class ComparedFeature(BaseModel):
    """A detection as it is now."""

    model_config = ConfigDict(strict=True)
    type: Literal["Feature"]
    id: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    geometry: Area
    properties: dict[str, Any]


class ComparedFeatures(BaseModel):
    """Detections; their properties: run, classification (name or null), name, locked,
    color, children (whether it has any).
    """

    model_config = ConfigDict(strict=True)
    type: Literal["FeatureCollection"]
    features: Annotated[list[ComparedFeature], Field(max_length=_LIMITS.objects)]


class UntouchedRequest(BaseModel):
    """Detections to compare with what their runs recorded."""

    model_config = _example(
        {
            "project": "/projects/study",
            "entry": "3",
            "objects": {
                "type": "FeatureCollection",
                "features": [
                    {
                        **_EXAMPLE_REGION,
                        "properties": {
                            "run": "20261123-233000-ab12",
                            "classification": "Tumor",
                            "name": None,
                            "locked": False,
                        },
                    }
                ],
            },
        }
    )
    project: Text
    entry: Name
    objects: ComparedFeatures


class UntouchedResponse(BaseModel):
    """Ids of the detections that nobody has edited since their run."""

    untouched: list[str]
