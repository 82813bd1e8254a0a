"""What every response says that is no success."""

from __future__ import annotations

from pydantic import BaseModel

from pathosam_qupath.server.schemas.fields import response_like


class ErrorModel(BaseModel):
    """What went wrong, why, and what to do about it."""

    subject: str
    cause: str
    remedy: str
    code: str


class ErrorResponse(BaseModel):
    """Every response that is no success."""

    model_config = response_like(
        {
            "error": {
                "subject": "token",
                "cause": "the request does not bear the server's token",
                "remedy": "Read it from server.json.",
                "code": "unauthorized",
            }
        }
    )
    error: ErrorModel
