"""What jobs can be asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from pathosam_qupath.server.schemas.fields import (
    EXAMPLE_REGION,
    ClassNames,
    Name,
    PixelSize,
    Regions,
    Share,
    Text,
    Words,
    request_like,
)


class SegmentOptionsModel(BaseModel):
    """How to segment; what is left out is the model's own."""

    model_config = request_like({"classes": {"Epithelial": "Tumor", "Connective": None}})
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

    model_config = request_like({"project": "/projects/study/project.qpproj", "entry": "3"})
    project: Text
    entry: Name


class SegmentJob(BaseModel):
    """Nuclei of regions of an open image."""

    model_config = request_like(
        {
            "kind": "segment",
            "image": "img-0f3a7c2b9d1e4f60",
            "regions": {"type": "FeatureCollection", "features": [EXAMPLE_REGION]},
            "options": {"classes": {"Epithelial": "Tumor"}},
            "record": None,
        }
    )
    kind: Literal["segment"]
    image: Name
    regions: Regions | None = Field(default=None, description="None: the whole image.")
    options: SegmentOptionsModel = Field(default_factory=SegmentOptionsModel)
    record: RecordModel | None = None


class ProjectJob(BaseModel):
    """``pathosam-qupath segment`` on a project, as a process of its own."""

    model_config = request_like(
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

    model_config = request_like({"kind": "rollback", "project": "/projects/study", "run": "last"})
    kind: Literal["rollback"]
    project: Text
    run: Annotated[str, Field(pattern=r"^(last|[0-9][0-9a-f-]{0,30})$")]


class CollectJob(BaseModel):
    """``pathosam-qupath corrections collect``: what people changed since a run."""

    model_config = request_like({"kind": "collect", "project": "/projects/study"})
    kind: Literal["collect"]
    project: Text


class FinetuneJob(BaseModel):
    """A model that learns from a project's corrections.

    ``pathosam-qupath corrections export`` into the project's folder, then ``finetune`` on that.
    """

    model_config = request_like(
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


class SuggestJob(BaseModel):
    """``pathosam-qupath corrections suggest``: what to review next, as annotations."""

    model_config = request_like({"kind": "suggest", "project": "/projects/study", "count": 20})
    kind: Literal["suggest"]
    project: Text
    count: Annotated[int, Field(ge=1, le=1000)] = 20
    model: Name | None = Field(default=None, description="None: the one that is loaded.")
    mpp: PixelSize | None = None


class RerunJob(BaseModel):
    """``pathosam-qupath corrections rerun``: segment again where a model's nuclei differ."""

    model_config = request_like(
        {"kind": "rerun", "project": "/projects/study", "model": "our-stain"}
    )
    kind: Literal["rerun"]
    project: Text
    model: Name | None = Field(default=None, description="None: the one that is loaded.")
    threshold: Share = Field(
        default=0.2, description="A field changes where more than this share of nuclei differs."
    )
    mpp: PixelSize | None = None


JobRequest = Annotated[
    SegmentJob | ProjectJob | RollbackJob | CollectJob | FinetuneJob | SuggestJob | RerunJob,
    Field(discriminator="kind"),
]
