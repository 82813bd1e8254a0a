"""Pages for people."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from pathosam_qupath.server.pages import PAGE_HEADERS, docs_page, front_page


def add_pages(app: FastAPI) -> None:
    """Add the front page and the documentation."""

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(front_page(), headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers=PAGE_HEADERS)
