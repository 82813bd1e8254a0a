"""What requests must look like, and what responses do; the OpenAPI document follows from it.

Requests are strict: a field that is not known, a number in quotes or one that is no finite
number is refused. GeoJSON alone may carry more than is named here, as its standard allows.
Every request and every response has an example.
"""

from pathosam_qupath.server.schemas.comparing import (
    ComparedFeature,
    ComparedFeatures,
    UntouchedRequest,
    UntouchedResponse,
    WithdrawnRequest,
)
from pathosam_qupath.server.schemas.errors import ErrorModel, ErrorResponse
from pathosam_qupath.server.schemas.fields import (
    Area,
    AreaFeature,
    ClassNames,
    MultiPolygonModel,
    PolygonModel,
    Regions,
)
from pathosam_qupath.server.schemas.images import ImageResponse, OpenImageRequest
from pathosam_qupath.server.schemas.job_requests import (
    CollectJob,
    FinetuneJob,
    JobRequest,
    ProjectJob,
    RecordModel,
    RerunJob,
    RollbackJob,
    SegmentJob,
    SegmentOptionsModel,
    SuggestJob,
)
from pathosam_qupath.server.schemas.job_states import JobResponse, JobsResponse, ProgressModel
from pathosam_qupath.server.schemas.models import (
    ChooseModelRequest,
    HealthResponse,
    LoadedModel,
    ModelChoice,
    ModelClass,
    ShutdownResponse,
)
from pathosam_qupath.server.schemas.prompts import (
    PromptModel,
    PromptOptions,
    PromptRequest,
    PromptResponse,
)

__all__ = [
    "Area",
    "AreaFeature",
    "ChooseModelRequest",
    "ClassNames",
    "CollectJob",
    "ComparedFeature",
    "ComparedFeatures",
    "ErrorModel",
    "ErrorResponse",
    "FinetuneJob",
    "HealthResponse",
    "ImageResponse",
    "JobRequest",
    "JobResponse",
    "JobsResponse",
    "LoadedModel",
    "ModelChoice",
    "ModelClass",
    "MultiPolygonModel",
    "OpenImageRequest",
    "PolygonModel",
    "ProgressModel",
    "ProjectJob",
    "PromptModel",
    "PromptOptions",
    "PromptRequest",
    "PromptResponse",
    "RecordModel",
    "Regions",
    "RerunJob",
    "RollbackJob",
    "SegmentJob",
    "SegmentOptionsModel",
    "ShutdownResponse",
    "SuggestJob",
    "UntouchedRequest",
    "UntouchedResponse",
    "WithdrawnRequest",
]
