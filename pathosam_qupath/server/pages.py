"""The server's pages: self-contained, without anything from elsewhere.

The front page is ``page.html`` beside this module; it asks the same endpoints as any client.
The documentation is made from the OpenAPI document, since the usual viewers load their code
from other servers.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathosam_qupath.server.problems import ProblemError

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2530; background: #f6f7f9; margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h2 { margin-top: 2rem; font-size: 1.05rem; }
section { background: #fff; border: 1px solid #dfe3e8; border-radius: 10px;
  padding: .8rem 1.2rem; margin: .8rem 0; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: #f2f4f7; border-radius: 8px; padding: .7rem; overflow: auto; max-height: 22rem; }
b.method { display: inline-block; min-width: 4.2rem; color: #6a2c91; }
"""


@cache
def front_page() -> str:
    """The page with jobs, the model and recent results."""
    return (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def _script_hash() -> str:
    """How the one script of the front page is told from any that might be slipped in."""
    found = re.search(r"<script>(.*?)</script>", front_page(), re.DOTALL)
    digest = hashlib.sha256((found.group(1) if found else "").encode()).digest()
    return base64.b64encode(digest).decode()


PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{_script_hash()}'; style-src 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
}


def docs_page(document: Mapping[str, Any]) -> str:
    """The OpenAPI document for people."""
    info = document["info"]
    body = "".join(_operations(document))
    return _framed(
        "PathoSAM server: requests",
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>"
        f"<p>{html.escape(info['description'])} For programs: "
        '<a href="/openapi.json">openapi.json</a>.</p>' + body,
    )


def refusal_page(problem: ProblemError) -> str:
    """What a browser shows that may not see the front page."""
    return _framed(
        "PathoSAM server",
        f"<h1>PathoSAM server</h1><section><p>{html.escape(problem.cause.capitalize())}.</p>"
        "<p>Open this page from QuPath's menu, or by the file <code>page.html</code> in the "
        "server's state folder (<code>~/.pathosam-qupath</code>).</p></section>",
    )


def _framed(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head><body><main>{body}</main></body></html>"
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts = [
                f'<h2><b class="method">{method.upper()}</b> <code>{html.escape(path)}</code></h2>',
                f"<p>{html.escape(operation.get('description', ''))}</p>",
            ]
            for parameter in operation.get("parameters", []):
                note = parameter.get("description", "")
                need = "" if parameter.get("required") else " (optional)"
                parts.append(
                    f"<div><code>{parameter['name']}</code>{need} {html.escape(note)}</div>"
                )
            parts += _examples(document, operation.get("requestBody", {}), "Request")
            for status, response in operation.get("responses", {}).items():
                if status.startswith("2"):
                    parts += _examples(document, response, f"Response {status}")
            yield f"<section>{''.join(parts)}</section>"


def _examples(document: Mapping[str, Any], body: Mapping[str, Any], title: str) -> Iterator[str]:
    for kind, content in body.get("content", {}).items():
        found = [content["example"]] if "example" in content else []
        found = found or list(_schema_examples(document, content.get("schema", {})))
        yield f"<div><b>{title}</b> <code>{html.escape(kind)}</code></div>"
        for example in found:
            text = json.dumps(example, indent=2, ensure_ascii=False)
            yield f"<pre>{html.escape(text)}</pre>"


def _schema_examples(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Any]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
    yield from schema.get("examples", ())
    if "items" in schema:
        yield list(_schema_examples(document, schema["items"]))
    for choice in schema.get("oneOf", ()):
        yield from _schema_examples(document, choice)
