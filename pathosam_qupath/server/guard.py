"""Who may call the server: every request passes here first, whatever route it asks for.

A browser runs pages of strangers beside the user's own. Such a page can send requests to
127.0.0.1, so each of these alone must stop it: the token, which it cannot know; the
``Origin`` header, which it cannot forge; and the ``Host`` header, which names its own domain
where that domain was made to point to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pathosam_qupath import __version__
from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.pages import refusal_page
from pathosam_qupath.server.problems import ProblemError

PROTOCOL = {"min": 1, "max": 1}
PROTOCOL_HEADER = "X-PathoSAM-Protocol"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PIXELS_PATH = "/v1/images/pixels"

_COMMON_HEADERS = {
    PROTOCOL_HEADER: str(PROTOCOL["max"]),
    "X-PathoSAM-Version": __version__,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """What a request must bring.

    Attributes
    ----------
    token : borne by programs.
    hosts : names, lower case, by which the server may be called; the port is free, since
        a tunnel may bring it to another one.
    port : of the server; tells its cookie from that of another server on this machine.
    secure : whether it speaks TLS.
    """

    token: str
    hosts: frozenset[str]
    port: int
    secure: bool = False

    @property
    def cookie(self) -> str:
        """The cookie's name. Cookies do not tell ports apart."""
        return f"pathosam_{self.port}"

    @property
    def page_secret(self) -> str:
        """What the cookie holds: it opens the page, and does not tell the token."""
        return hmac.new(self.token.encode(), b"page", hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware: checks host, origin, token, protocol and size of each request."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits) -> None:
        self._app, self._access, self._limits = app, access, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through to the app, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        first_visit = False

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                for name, value in _COMMON_HEADERS.items():
                    added.setdefault(name, value)
                if first_visit:
                    added.append("Set-Cookie", self._cookie_text())
            await send(message)

        try:
            headers = _Headers(scope["headers"])
            self._check_host(headers)
            self._check_origin(headers, scope["scheme"])
            first_visit = self._is_first_visit(scope)
            if not first_visit:
                self._check_token(headers, scope)
            _check_protocol(headers)
            limit = self._limits.json_bytes
            if scope["path"] == PIXELS_PATH:
                limit = self._limits.pixel_bytes
            _check_length(headers, limit)
        except ProblemError as problem:
            await _answer(problem, scope, send_with_headers)
            return
        body = _Body(receive, limit, self._limits.body_seconds)
        await self._app(scope, body.receive, send_with_headers)

    def _check_host(self, headers: _Headers) -> None:
        host = headers.one("host") or ""
        if _host_name(host) not in self._access.hosts:
            raise ProblemError(
                403,
                "foreign_host",
                f"Host {host!r}",
                "the server does not answer to this name",
                "Call it as 127.0.0.1 or localhost (or by the name given with --host).",
            )

    def _check_origin(self, headers: _Headers, scheme: str) -> None:
        for origin in headers.all("origin"):
            if origin.lower() != f"{scheme}://{headers.one('host')}".lower():
                raise ProblemError(
                    403,
                    "foreign_origin",
                    f"Origin {origin!r}",
                    "pages of other sites may not use this server",
                    "Leave the header out, or use the server's own page.",
                )

    def _check_token(self, headers: _Headers, scope: Scope) -> None:
        kind, _, given = (headers.one("authorization") or "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self._access.token):
            return
        path, method = str(scope["path"]), scope["method"]
        looks = method in ("GET", "HEAD")
        cancels = method == "DELETE" and path.startswith("/v1/jobs/")
        if looks or cancels:
            cookie = _cookie(headers, self._access.cookie)
            if cookie is not None and _same(cookie, self._access.page_secret):
                return
        raise ProblemError(
            401,
            "unauthorized",
            "token",
            "the request does not bear the server's token",
            "Read it from server.json in the server's state folder and send "
            "`Authorization: Bearer <token>`; open the page as /?token=<token>.",
            {"WWW-Authenticate": "Bearer"},
        )

    def _is_first_visit(self, scope: Scope) -> bool:
        if scope["path"] != "/" or scope["method"] not in ("GET", "HEAD"):
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return len(given) == 1 and _same(given[0], self._access.token)

    def _cookie_text(self) -> str:
        """What the page's later requests bear; it takes the token out of its address."""
        text = f"{self._access.cookie}={self._access.page_secret}; Path=/; HttpOnly"
        return text + "; SameSite=Strict" + ("; Secure" if self._access.secure else "")


class _Headers:
    """A request's headers; one that may come once only counts as absent where it repeats."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = [
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw
        ]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._raw if key == name]

    def one(self, name: str) -> str | None:
        found = self.all(name)
        return found[0].strip() if len(found) == 1 else None


class _Body:
    """A request's body as it arrives, bounded in bytes and in time."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._limit = receive, limit
        self._until = time.monotonic() + seconds
        self._size, self._complete = 0, False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        left = max(0.0, self._until - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except asyncio.TimeoutError as error:
            raise _http_error(
                ProblemError(408, "too_slow", "request", "its body took too long", "Send it again.")
            ) from error
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise _http_error(_too_large(self._limit))
        self._complete = not message.get("more_body", False)
        return message


def _http_error(problem: ProblemError) -> Exception:
    """As FastAPI lets it through while it reads a body; others it takes for broken JSON."""
    from fastapi import HTTPException

    return HTTPException(problem.status, detail=problem.said, headers={"Connection": "close"})


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        413,
        "too_large",
        "request",
        f"its body is larger than {limit >> 20} MB",
        "Send fewer or smaller regions at a time.",
        {"Connection": "close"},
    )


def _check_length(headers: _Headers, limit: int) -> None:
    length = headers.one("content-length")
    if length is not None and length.isdecimal() and int(length) > limit:
        raise _too_large(limit)


def _check_protocol(headers: _Headers) -> None:
    given = headers.one(PROTOCOL_HEADER.lower())
    if given is None:
        return
    oldest, newest = PROTOCOL["min"], PROTOCOL["max"]
    if not given.isascii() or not given.isdigit() or not oldest <= int(given[:9]) <= newest:
        raise ProblemError(
            426,
            "protocol_mismatch",
            f"protocol {given[:20]}",
            f"this server (version {__version__}) speaks protocol {oldest} to {newest}",
            "Bring the Groovy scripts and pathosam-qupath to the same version.",
            {"Upgrade": f"PathoSAM/{newest}"},
        )


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    name, colon, port = host.partition(":")
    return name.lower() if not colon or port.isdecimal() else ""


def _cookie(headers: _Headers, name: str) -> str | None:
    try:
        found = SimpleCookie("; ".join(headers.all("cookie"))).get(name)
    except CookieError:
        return None
    return None if found is None else found.value


def _same(one: str, other: str) -> bool:
    """Compare in constant time, so that the time does not tell how much was right."""
    return hmac.compare_digest(one.encode(), other.encode())


async def _answer(problem: ProblemError, scope: Scope, send: Send) -> None:
    body, kind = json.dumps({"error": problem.said}).encode(), b"application/json"
    accepted = _Headers(scope["headers"]).one("accept") or ""
    if scope["path"] == "/" and "text/html" in accepted:
        body, kind = refusal_page(problem).encode(), b"text/html; charset=utf-8"
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
