"""The ``serve`` command. No logic lives here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathosam_qupath.cli_options import DeviceOption, JsonOption, ModelOption


def serve(
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen. Beyond 127.0.0.1 other machines can reach the server: give "
            "--tls-cert and --tls-key then, or leave this and use an SSH tunnel.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="0: any free one. Default 8377, or a free one if it is taken."
        ),
    ] = None,
    name: Annotated[
        list[str],
        typer.Option("--name", help="A further name by which clients call this machine; repeat."),
    ] = [],  # noqa: B006
    root: Annotated[
        list[Path],
        typer.Option(
            "--root",
            metavar="DIR",
            help="Slides and projects below this folder may be opened; repeat. Default: your "
            "home folder; with --host none.",
        ),
    ] = [],  # noqa: B006
    model: ModelOption = "bundled",
    device: DeviceOption = "auto",
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of server.json. Default $PATHOSAM_HOME or ~/.pathosam-qupath.",
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a model loaded for QuPath's menu; ends with Ctrl-C."""
    import json

    from pathosam_qupath.console import err
    from pathosam_qupath.server.serving import ServeOptions, remote_warning
    from pathosam_qupath.server.serving import serve as serve_until_ended
    from pathosam_qupath.server.state import ServerState

    options = ServeOptions(
        host=host,
        port=port,
        names=tuple(name),
        roots=tuple(root) or None,
        model=model,
        device=device,
        state=state,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    warning = remote_warning(options)
    if warning is not None:
        err().print(f"Warning: {warning}", style="yellow", markup=False)

    def started(found: ServerState, page: Path) -> None:
        if as_json:
            typer.echo(json.dumps(found.public()))
        else:
            typer.echo(f"PathoSAM server at {found.url}\nIts page: {page.as_uri()}")

    serve_until_ended(options, started)
