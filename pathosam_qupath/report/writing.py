"""Write the report of a run: the page, and its numbers as CSV and Parquet beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pathosam_qupath.errors import UsageError
from pathosam_qupath.qupath.atomic import replace_file
from pathosam_qupath.report.findings import COLUMNS, ImageFindings, findings
from pathosam_qupath.report.page import write_page
from pathosam_qupath.run_record import open_run

if TYPE_CHECKING:
    from pathosam_qupath.qupath.project import Project


@dataclass(frozen=True)
class Report:
    """Where a report lies.

    Attributes
    ----------
    page : the HTML file.
    tables : numbers by image, and by image, annotation class and nucleus class; as CSV and
        as Parquet.
    """

    run: str
    page: Path
    tables: tuple[Path, ...]


def write_report(project: Project, run: str, out: Path | None = None) -> Report:
    """Write the report of a run.

    Parameters
    ----------
    run : the run's id, an unambiguous beginning of it, or "last".
    out : the HTML file; None: ``report.html`` in the run's folder.

    Raises
    ------
    RunError : there is no such run.
    UsageError : ``out`` cannot be written there.
    """
    record = open_run(project.path.parent, run)
    out = record.folder / "report.html" if out is None else out
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(
            f"--out {out}",
            "it is a folder" if out.is_dir() else f"there is no folder {out.parent}",
            "Give the name of an HTML file in a folder that exists.",
        )
    found: list[ImageFindings] = []
    replace_file(
        out,
        lambda file: found.extend(write_page(file, record.manifest, findings(project, record))),
    )
    paths = []
    for name, table in (("images", image_table(found)), ("classes", class_table(found))):
        for suffix in ("csv", "parquet"):
            path = out.with_name(f"{out.stem}-{name}.{suffix}")
            if suffix == "csv":
                text = table.to_csv(index=False)
                replace_file(path, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
            else:
                replace_file(path, lambda file, table=table: table.to_parquet(file, index=False))  # type: ignore[misc]
            paths.append(path)
    return Report(record.manifest.run, out, tuple(paths))


def image_table(found: list[ImageFindings]) -> pd.DataFrame:
    """A row per image: what the run recorded of it, what was checked, and its flags."""
    rows = []
    for f in found:
        row = asdict(f.record)
        row.pop("warnings")
        row.update({f"check {check.key}": check.value for check in f.checks})
        row["flags"] = "; ".join(f.flags)
        rows.append(row)
    return pd.DataFrame(rows)


def class_table(found: list[ImageFindings]) -> pd.DataFrame:
    """A row per image, annotation class and nucleus class."""
    tables = [f.classes for f in found if len(f.classes)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
