"""Start the server, tell clients where it is, end it cleanly."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pathosam_qupath import __version__
from pathosam_qupath.c_memory import share_freed_memory
from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.adopted import user_folder
from pathosam_qupath.server.guard import LOOPBACK, PROTOCOL, Access
from pathosam_qupath.server.state import ServerState, StateFolder, new_token
from pathosam_qupath.server.warm_model import WarmModel

if TYPE_CHECKING:
    import uvicorn

PORT = 8377
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")
_CONNECTIONS = 200
_GRACE = 2


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes
    ----------
    host : to listen at; another than loopback must be asked for.
    port : None: the usual one, or any free one where that is taken; 0: any.
    names : further names by which clients call it (behind a proxy or in a certificate).
    roots : see :class:`pathosam_qupath.server.access.Roots`; None: the user's home folder,
        or nothing where the server listens beyond this machine.
    state : folder of ``server.json``; None: the usual one.
    tls_cert, tls_key : PEM files; both or none.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    names: tuple[str, ...] = ()
    roots: tuple[Path, ...] | None = None
    model: str = "bundled"
    device: str = "auto"
    state: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can reach it."""
        return self.host in _LOOPBACK_HOSTS


def serve(options: ServeOptions, started: Callable[[ServerState, Path], None]) -> None:
    """Serve until a signal or a client ends it.

    Parameters
    ----------
    started : called once the server accepts requests (its model may still be loading), with
        the file that opens its page in a browser.

    Raises
    ------
    UsageError : it runs already, the port is taken, the state folder is not private, or the
        certificate cannot be used.
    """
    check_tls(options)
    share_freed_memory()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    with StateFolder(options.state or user_folder()) as state, _bound(options) as listening:
        # Reading and compiling torch's code takes longest: it begins before all other imports.
        warm = WarmModel(options.device, options.model)
        warm.load(options.model)

        from pathosam_qupath.run_record import utc_now
        from pathosam_qupath.server.app import Settings, create_app

        port = int(listening.getsockname()[1])
        token = new_token()
        names = {*LOOPBACK, *options.names, _reached_at(options)}
        secure = options.tls_cert is not None
        app, server = create_app(
            Settings(_roots(options), state.folder("results")),
            Access(token, frozenset(map(str.lower, names)), port, secure),
            warm,
        )
        described = ServerState(
            url=f"{'https' if secure else 'http'}://{_reached_at(options)}:{port}",
            token=token,
            pid=os.getpid(),
            version=__version__,
            protocol=dict(PROTOCOL),
            started=utc_now(),
        )

        def announce() -> None:
            state.publish(described)
            started(described, state.link_path)

        running = _uvicorn(app, options, announce, server.changes.stop)
        server.stop = lambda: setattr(running, "should_exit", True)
        # uvicorn ends by itself at a signal and passes it on afterwards.
        with contextlib.suppress(KeyboardInterrupt):
            running.run(sockets=[listening])


def check_tls(options: ServeOptions) -> None:
    """Refuse a certificate without its key, and files that are none.

    Raises
    ------
    UsageError : what is wrong with them.
    """
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError(
            "--tls-cert, --tls-key", "one was given without the other", "Give both, or neither."
        )
    if options.tls_cert is None or options.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            options.tls_cert,
            f"the certificate and its key cannot be used ({error})",
            "Give PEM files that belong together.",
        ) from error


def remote_warning(options: ServeOptions) -> str | None:
    """What the owner of a server that listens beyond this machine should know."""
    if options.is_local:
        return None
    said = f"The server listens at {options.host}: other machines can reach it."
    if options.tls_cert is None:
        said += (
            " Without --tls-cert and --tls-key whoever listens in on the network can read the "
            "token and the images. An SSH tunnel is safer: leave --host out and run "
            f"`ssh -L {PORT}:127.0.0.1:{PORT} user@this-machine` on the other one."
        )
    said += f" It answers to the name {_reached_at(options)}; add others with --name."
    if options.roots is None:
        said += " It opens no files of this machine; allow folders with --root."
    return said


def _roots(options: ServeOptions) -> tuple[Path, ...]:
    if options.roots is not None:
        return options.roots
    return (Path.home(),) if options.is_local else ()


def _reached_at(options: ServeOptions) -> str:
    if options.host in _EVERYWHERE:
        return options.names[0] if options.names else socket.gethostname()
    return f"[{options.host}]" if ":" in options.host else options.host


def _bound(options: ServeOptions) -> socket.socket:
    """A listening socket; where the usual port is taken and none was asked for, any free one."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    tried = [PORT, 0] if options.port is None else [options.port]
    for port in tried:
        # asyncio sends small answers at once (TCP_NODELAY) only over sockets that name TCP; else
        # each one waits up to 40 ms for the client to confirm the headers.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((options.host, port))
            return listening
        except OSError as error:
            listening.close()
            if port == tried[-1]:
                raise UsageError(
                    f"{options.host}:{port}",
                    f"the server cannot listen there ({error.strerror or error})",
                    "Choose another --port (0: any free one) or --host.",
                ) from error
    raise AssertionError("a port is always tried")


def _uvicorn(
    app: object, options: ServeOptions, announce: Callable[[], None], leaving: Callable[[], None]
) -> uvicorn.Server:
    import uvicorn

    class Announcing(uvicorn.Server):
        """Says when it accepts requests, and lets waiting ones go when it ends."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                announce()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            leaving()
            await super().shutdown(sockets)

    return Announcing(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_level="warning",
            access_log=False,
            ws="none",
            lifespan="on",
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_GRACE,
            server_header=False,
            proxy_headers=False,
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
        )
    )
