"""The ``models`` commands: what there is, get it, check it. No logic lives here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathosam_qupath.cli_options import JsonOption

app = typer.Typer(
    name="models",
    help="Published models: list, download and check them.",
    epilog="Files lie in micro-sam's cache ($MICROSAM_CACHEDIR or the user's cache folder). "
    "PATHOSAM_OFFLINE=1 forbids downloads.",
    no_args_is_help=True,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name of `models list`.")]


@app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """List the models that `--model` takes, and whether their files are there."""
    from pathosam_qupath.console import show
    from pathosam_qupath.model.catalogue import list_models
    from pathosam_qupath.tables import models_table

    show(list_models(), models_table, as_json)


@app.command()
def info(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show what is known of a model: resolution, classes, files, licence."""
    from pathosam_qupath.console import show
    from pathosam_qupath.model.catalogue import describe_model
    from pathosam_qupath.tables import model_table

    show(describe_model(name), model_table, as_json)


@app.command()
def download(name: NameArgument, as_json: JsonOption = False) -> None:
    """Download a model's files; one that broke off goes on where it stopped."""
    from pathosam_qupath.console import download_progress, show
    from pathosam_qupath.model.catalogue import describe_model
    from pathosam_qupath.model.registry import fetch_model
    from pathosam_qupath.tables import model_table

    with download_progress() as progress:
        fetch_model(name, progress=progress)
    show(describe_model(name), model_table, as_json)


@app.command()
def verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One model; default: every file that is there."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check files against the published hashes; exit code 5 if one is damaged or missing."""
    from pathosam_qupath.console import show
    from pathosam_qupath.model.catalogue import verify_models
    from pathosam_qupath.tables import files_table

    checks = verify_models(name)
    show(checks, files_table, as_json)
    raise typer.Exit(max(check.exit_code for check in checks))


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file downloaded elsewhere.")],
    name: Annotated[
        str,
        typer.Option("--as", metavar="NAME", help="The published file; `models info` names them."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Put a published file that was downloaded elsewhere where downloads go, once checked."""
    from pathosam_qupath.console import print_json
    from pathosam_qupath.model.registry import import_file

    path = import_file(file, name)
    print_json({"name": name, "path": str(path)}) if as_json else typer.echo(f"{name}: {path}")
