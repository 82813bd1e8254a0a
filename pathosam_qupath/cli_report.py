"""The ``report`` command. No logic lives here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathosam_qupath.cli_options import (
    Backend,
    BackendOption,
    JsonOption,
    PathMapOption,
    ProjectArgument,
)


def report(
    project: ProjectArgument,
    run: Annotated[
        str, typer.Option(metavar="ID", help="The run's id, its beginning, or last.")
    ] = "last",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The HTML file. Default: report.html in the run's folder."
        ),
    ] = None,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Write what a run found as one HTML file, with tables as CSV and Parquet beside it."""
    from pathosam_qupath.cli import open_as_told
    from pathosam_qupath.console import show
    from pathosam_qupath.report.writing import write_report
    from pathosam_qupath.tables import report_table

    with open_as_told(project, backend, path_map) as opened:
        written = write_report(opened, run, out)
    show(written, report_table, as_json)
