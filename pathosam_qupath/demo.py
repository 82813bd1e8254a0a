"""The whole way on the example project: copy it, segment it, write, draw, count."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pathosam_qupath.errors import ProjectError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from pathosam_qupath.batch import Report
    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.picture import Box
    from pathosam_qupath.qupath.project import Color, Entry, Project
    from pathosam_qupath.run_record import RunManifest

EXAMPLE = "projects_example"
_NEAR_UM = 160.0
"""Side of the close view in micrometres."""


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo leaves.

    Attributes
    ----------
    project : the working copy, to be opened in QuPath.
    pictures : overlays: of the whole image, and close by with the bare tissue beside it.
    table : nuclei per annotation and class, with density and mean area.
    """

    project: Path
    pictures: tuple[Path, ...]
    table: pd.DataFrame
    table_path: Path
    manifest: RunManifest

    def summary(self) -> dict[str, object]:
        """What the demo left, for machines."""
        rows = self.table.to_dict("records")
        return {**vars(self), "table": rows}


def find_example() -> Path:
    """The example project's ``.qpproj`` in the repository that this package was cloned with.

    Raises
    ------
    ProjectError : it is not there, as with a package that was installed without its
        repository.
    """
    folder = _repository() / EXAMPLE
    found = sorted(folder.rglob("*.qpproj"))
    if not found:
        raise ProjectError(
            "example project",
            f"it belongs to the repository, not to the installed package, and is not at {folder}",
            "Clone the repository and run `make demo` there, or segment a project of your own: "
            "`pathosam-qupath segment PROJECT`.",
        )
    return found[0]


def run_demo(out: Path, model: NucleusModel, *, report: Report | None = None) -> Demo:
    """Copy the example project to ``out``, segment its annotations, draw and count.

    Raises
    ------
    UsageError : ``out`` has something else in it.
    """
    from pathosam_qupath.batch import run
    from pathosam_qupath.qupath.project import open_project
    from pathosam_qupath.run_plan import RunOptions, plan_run

    path = copy_example(out)
    with open_project(path, "embedded") as project:
        options = RunOptions()
        record = run(project, model, options, plan_run(project, options), report=report)
    with open_project(path, "embedded") as project:
        pictures = [p for entry in project.entries for p in _draw(entry, project.classes, out)]
        table = count_nuclei(project)
    table_path = out / "nuclei.csv"
    table.to_csv(table_path, index=False)
    return Demo(path, tuple(pictures), table, table_path, record.manifest)


def copy_example(out: Path) -> Path:
    """Copy the example project with its slide; the copy's ``.qpproj``.

    A copy that an earlier demo left is used again, with what has been drawn in it since.

    Raises
    ------
    UsageError : ``out`` has something else in it.
    """
    example = find_example()
    root = example.parents[len(example.relative_to(_repository()).parts) - 2]
    copy = out / example.relative_to(root)
    if copy.is_file():
        return copy
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"--out {out}",
            "it has something else in it than an earlier demo",
            "Give a folder that is empty or does not exist.",
        )
    shutil.copytree(
        root, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "*.md", "__*")
    )
    return copy


def count_nuclei(project: Project) -> pd.DataFrame:
    """Nuclei of a project by image, annotation and class.

    Returns
    -------
    table : image, annotation, class, nuclei, per mm² (of the annotation's own area), mean
        area in µm². A nucleus counts for the smallest annotation that holds it.
    """
    import pandas as pd

    from pathosam_qupath.inspect_project import inspect_entry

    rows = []
    for entry in project.entries:
        found = entry.detections()
        areas = {a.id: (a.label, a.area) for a in inspect_entry(entry).annotations}
        for (parent, kind), nuclei in found.groupby(["parent", "classification"], dropna=False):
            name, area = areas.get(str(parent), ("outside annotations", None))
            rows.append(
                {
                    "image": entry.name,
                    "annotation": name,
                    "class": kind if isinstance(kind, str) else "unclassified",
                    "nuclei": len(nuclei),
                    "per mm²": len(nuclei) / area * 1e6 if area else None,
                    "mean area µm²": float(nuclei["Area µm^2"].mean()),
                }
            )
    columns = ["image", "annotation", "class", "nuclei", "per mm²", "mean area µm²"]
    return pd.DataFrame(rows, columns=columns)


def _draw(entry: Entry, colors: Mapping[str, Color], out: Path) -> list[Path]:
    """Draw an image with its annotations and nuclei, whole and close by."""
    from pathosam_qupath.picture import busiest, overlay
    from pathosam_qupath.run_plan import open_entry

    stem = Path(entry.name).stem
    nuclei, annotations = entry.detections(), entry.annotations()
    paths = []
    with open_entry(entry) as slide:
        near = busiest(nuclei, _NEAR_UM / slide.mpp[0])
        views: list[tuple[str, Box | None, int]] = [(f"{stem}-nuclei.png", None, 1200)]
        views += [(f"{stem}-nuclei-near.png", near, 700)] if near else []
        for name, box, width in views:
            picture = overlay(
                slide,
                nuclei,
                box=box,
                annotations=annotations,
                colors=colors,
                title=f"{entry.name}: {len(nuclei):,} nuclei" if box is None else "",
                width=width,
                beside=box is not None,
            )
            paths.append(out / name)
            picture.save(paths[-1], optimize=True)
    return paths


def _repository() -> Path:
    return Path(__file__).resolve().parents[1]
