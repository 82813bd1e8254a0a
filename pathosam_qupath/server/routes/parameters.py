"""Parameters of addresses that several routes take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from pathosam_qupath.server.limits import Limits

Wait = Annotated[
    float,
    Query(ge=0, le=Limits.wait_seconds, description="Seconds to wait.", examples=[20]),
]
ImageId = Annotated[
    str, Path(description="As POST /v1/images gave it.", examples=["img-0f3a7c2b9d1e4f60"])
]
RunId = Annotated[
    str,
    Path(
        description="As a job's ``run`` says.",
        examples=["20261123-233000-ab12"],
        pattern=r"^[0-9][0-9a-f-]{0,30}$",
    ),
]
JobId = Annotated[
    str, Path(description="As POST /v1/jobs gave it.", examples=["job-1f2e3d4c5b6a7988"])
]
