"""Every error of every route as ``{"error": {subject, cause, remedy, code}}``."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pathosam_qupath.errors import PathosamError
from pathosam_qupath.server.problems import ProblemError, as_problem

log = logging.getLogger(__name__)

_MOST_SAID = 3
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


def install_error_responses(app: FastAPI) -> None:
    """Make an app answer errors so."""
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(PathosamError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _problem)


def _response(problem: ProblemError) -> JSONResponse:
    return JSONResponse(
        {"error": problem.said}, status_code=problem.status, headers=dict(problem.headers)
    )


def _problem(request: Request, error: Exception) -> JSONResponse:
    problem = as_problem(error)
    if problem.code == "unexpected":
        log.error("%s %s", request.method, request.url.path, exc_info=error)
    return _response(problem)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    said = [f"{_place(e['loc'])}: {e['msg']}" for e in errors[:_MOST_SAID]]
    if len(errors) > _MOST_SAID:
        said.append(f"and {len(errors) - _MOST_SAID} more")
    if any(e["type"] == "json_invalid" for e in errors):
        return _response(
            ProblemError(400, "bad_request", "request", "its body is not JSON", "Send JSON.")
        )
    return _response(
        ProblemError(
            422,
            "invalid_request",
            f"{request.method} {request.url.path}",
            "; ".join(said),
            "See /docs for what is expected.",
        )
    )


def _place(path: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in path if part not in ("body", "query")) or "request"


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    # Details that the guard gives are said as they are.
    if isinstance(error.detail, dict):
        return JSONResponse(
            {"error": error.detail}, status_code=error.status_code, headers=error.headers
        )
    problem = ProblemError(
        error.status_code,
        _CODES.get(error.status_code, "http"),
        f"{request.method} {request.url.path}",
        str(error.detail),
        "See /docs for the routes of this server.",
        dict(error.headers or {}),
    )
    return _response(problem)
