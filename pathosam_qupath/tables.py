"""How results look as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pathosam_qupath.console import duration_text
from pathosam_qupath.disk_space import size_text

if TYPE_CHECKING:
    from pathosam_qupath.demo import Demo
    from pathosam_qupath.doctor import Check
    from pathosam_qupath.estimates import Estimate
    from pathosam_qupath.export import Exported
    from pathosam_qupath.inspect_project import EntryReport
    from pathosam_qupath.model.catalogue import FileCheck, ModelSummary
    from pathosam_qupath.report.writing import Report
    from pathosam_qupath.rollback import EntryRollback
    from pathosam_qupath.run_record import RunManifest

STATE_STYLE = {
    "written": "green",
    "restored": "green",
    "removed": "green",
    "ok": "green",
    "skipped": "dim",
    "nothing": "dim",
    "rolled back": "dim",
    "planned": "dim",
    "predicted": "yellow",
    "warn": "yellow",
    "failed": "red",
    "fail": "red",
    "intact": "green",
    "not there": "yellow",
    "damaged": "red",
}
UNCLASSIFIED = "unclassified"
_MOST = 30
"""Annotations of one image that ``inspect`` lists in a terminal."""


def entries_table(reports: Sequence[EntryReport]) -> Group:
    """The tables of ``inspect``: images, their annotations, and what stands in the way."""
    images = _table("id", "image", "type", "size", "µm/px", "annotations", "detections", "ready")
    annotations = _table("image", "annotation", "class", "area", "can be segmented")
    problems = []
    for r in reports:
        usable = sum(a.problem is None for a in r.annotations)
        ready = "yes" if usable else "only with --whole-image"
        if r.problem is not None:
            ready = "no, see below"
            remedy = r.remedy or ""
            problems.append(_text(f"{r.name}: {r.problem}. {remedy}".rstrip(), "red"))
        images.add_row(
            _text(r.id),
            _text(r.name),
            _text(r.image_type or "?"),
            "?" if r.size is None else f"{r.size[0]} × {r.size[1]}",
            "?" if r.mpp is None else f"{r.mpp[0]:.4g}",
            f"{usable} of {len(r.annotations)}",
            _text(
                "\n".join([f"{r.detections:,}", *(f"{n:,} of {run}" for run, n in r.runs.items())])
            ),
            _text(ready, "red" if r.problem is not None else None),
        )
        for a in r.annotations[:_MOST]:
            annotations.add_row(
                _text(r.id),
                _text(a.label),
                _text(a.classification or UNCLASSIFIED, "dim" if not a.classification else None),
                "–" if a.area is None else area_text(a.area),
                _text("no, it " + a.problem if a.problem else "yes", "dim" if a.problem else None),
            )
        if len(r.annotations) > _MOST:
            annotations.add_row(
                _text(r.id), f"and {len(r.annotations) - _MOST:,} more", "", "", "--json lists all"
            )
    return Group(images, annotations, *problems)


def plans_table(estimates: Sequence[Estimate]) -> Group:
    """The table of a dry run, and below it why images would be left out."""
    table = _table("image", "regions", "area", "tiles", "time", "disk", "would be")
    notes = []
    for e in estimates:
        plan, regions, verdict, style = e.plan, "–", "segmented", None
        if plan.error is not None:
            verdict, style = "refused", "red"
            notes.append(
                _text(f"{plan.entry.name}: {plan.error.cause}. {plan.error.remedy}", "red")
            )
        elif plan.nothing is not None:
            verdict, style = "skipped", "dim"
            notes.append(_text(f"{plan.entry.name}: {plan.nothing}", "dim"))
        if plan.regions is not None:
            count = len(plan.regions.treated)
            regions = "whole image" if count == 0 else f"{count} annotations"
            regions += "" if plan.tissue is None else ", its tissue"
        table.add_row(
            _text(plan.entry.name),
            regions,
            "–" if plan.area is None else area_text(plan.area),
            "–" if e.tiles is None else f"{e.tiles:,}",
            "–" if e.seconds is None else duration_text(e.seconds),
            "–" if not e.disk else size_text(e.disk),
            _text(verdict, style),
        )
    return Group(table, _text(plan_text(estimates)), *notes)


def plan_text(estimates: Sequence[Estimate]) -> str:
    """What a run will take, in one sentence."""
    treated = [e for e in estimates if e.disk]
    tiles = sum(e.tiles or 0 for e in treated)
    seconds = [e.seconds for e in treated if e.seconds is not None]
    area = area_text(sum(e.plan.area or 0.0 for e in treated))
    words = [f"{len(treated)} of {len(estimates)} images", area]
    words += [f"{tiles:,} tiles"] if tiles else []
    if seconds:
        words.append(f"about {duration_text(sum(seconds))} (estimated from {treated[0].source})")
    words.append(f"up to {size_text(sum(e.disk for e in treated))} of disk")
    return " · ".join(words)


def run_table(manifest: RunManifest) -> Group:
    """The summary of a run, and below it what the reader should know about single images."""
    title = f"run {manifest.run} · {manifest.model.get('name')}"
    table = _table(
        "image", "state", "nuclei", "per mm²", "replaced", "kept", "seconds", title=title
    )
    for column in table.columns[2:]:
        column.justify = "right"
    notes = []
    for e in manifest.entries:
        density = f"{e.nuclei / e.area * 1e6:,.0f}" if e.area else "–"
        counts = [f"{e.nuclei:,}", density, f"{e.removed:,}", f"{e.kept:,}"]
        if e.state != "written":
            counts = ["–"] * len(counts)
        state = _text(e.state, STATE_STYLE.get(e.state))
        table.add_row(_text(e.name), state, *counts, f"{e.seconds:.1f}")
        if e.message:
            notes.append(_text(f"{e.name}: {e.message}", STATE_STYLE.get(e.state)))
        notes += [_text(f"{e.name}: {warning}.", "yellow") for warning in e.warnings]
        if e.kept:
            notes.append(
                _text(
                    f"{e.name}: {e.kept:,} nuclei of earlier runs were kept; "
                    f"{e.overlapping:,} new ones that lay on them were left out"
                )
            )
    return Group(table, *notes)


def report_table(report: Report) -> Group:
    """Where a report lies."""
    return Group(_text(f"report: {report.page}"), *(_text(f"table: {p}") for p in report.tables))


def runs_table(manifests: Sequence[RunManifest]) -> Table:
    """The table of ``runs``."""
    table = _table("run", "model", "images", "nuclei", "state")
    for manifest in manifests:
        states: dict[str, int] = {}
        for entry in manifest.entries:
            states[entry.state] = states.get(entry.state, 0) + 1
        state = ", ".join(f"{count} {name}" for name, count in states.items())
        nuclei = sum(e.nuclei for e in manifest.entries if e.state == "written")
        table.add_row(
            manifest.run,
            _text(str(manifest.model.get("name"))),
            str(len(manifest.entries)),
            f"{nuclei:,}",
            state + ("" if manifest.finished else " (cut off)"),
        )
    return table


def rollback_table(results: Sequence[EntryRollback]) -> Table:
    """The summary of a rollback."""
    table = _table("image", "what happened", "nuclei removed", "edited ones kept", "note")
    words = {
        "restored": "as it was before, byte for byte",
        "removed": "own untouched nuclei removed",
        "nothing": "nothing to undo",
        "failed": "failed",
    }
    for r in results:
        byte_wise = r.action in ("restored", "nothing")
        table.add_row(
            _text(r.name),
            _text(words[r.action], STATE_STYLE[r.action]),
            "–" if byte_wise else f"{r.removed:,}",
            "–" if byte_wise else f"{r.kept:,}",
            _text(r.message or ""),
        )
    return table


def checks_table(checks: Sequence[Check]) -> Table:
    """The table of ``doctor``."""
    table = Table(show_header=False, box=None)
    for name in ("status", "name", "found"):
        table.add_column(name, overflow="fold")
    for check in checks:
        found = check.found + (f"\n→ {check.remedy}" if check.remedy else "")
        status = _text(check.status, STATE_STYLE[check.status])
        table.add_row(status, _text(check.name), _text(found))
    return table


def models_table(models: Sequence[ModelSummary]) -> Table:
    """The table of ``models list``."""
    table = _table("model", "parameters", "µm/px", "classes", "downloaded", "licence", "source")
    for m in models:
        presence = m.cached if m.files[0].url else "comes with it"
        table.add_row(
            m.name,
            f"{m.parameters:.3g} M",
            f"{m.mpp:g}",
            _classes_text(m),
            presence + (f", {_megabytes(m.size)}" if m.size else ""),
            m.licence,
            _text(m.source),
        )
    return table


def model_table(model: ModelSummary) -> Table:
    """What ``models info`` says."""
    facts = [
        ("model", model.name),
        ("what it is", model.description),
        ("parameters", f"{model.parameters:.3g} million"),
        ("works at", f"{model.mpp:g} µm/px"),
        ("classes", _classes_text(model)),
        ("licence", model.licence),
        ("source", model.source),
    ]
    for file in model.files:
        there = "not there" if file.size is None else _megabytes(file.size)
        origin = file.url or "comes with the package"
        facts.append(("file", f"{file.name}: {there}\n{file.path}\n{origin}\n{file.hash}"))
    table = Table(show_header=False, box=None)
    for name in ("name", "value"):
        table.add_column(name, overflow="fold")
    for name, value in facts:
        table.add_row(name, _text(value))
    return table


def files_table(checks: Sequence[FileCheck]) -> Group:
    """The table of ``models verify``, and what to do about files that are not intact."""
    table = _table("model", "file", "state", "path")
    notes = []
    for c in checks:
        state = _text(c.state, STATE_STYLE[c.state])
        table.add_row(c.model, _text(c.file), state, _text(str(c.path)))
        if c.remedy is not None:
            found = "nothing" if c.found is None else c.found
            said = f"{c.file}: expected {c.expected}, found {found}. {c.remedy}"
            notes.append(_text(said, STATE_STYLE[c.state]))
    return Group(table, *notes)


def _classes_text(model: ModelSummary) -> str:
    if not model.segments:
        return "none: prompts only"
    return ", ".join(model.classes) or "none"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def exports_table(exported: Sequence[Exported]) -> Table:
    """The table of ``export``."""
    table = _table("image", "files", "annotations", "detections", "note")
    for e in exported:
        table.add_row(
            _text(e.name),
            _text("\n".join(e.files)),
            f"{e.annotations:,}",
            f"{e.detections:,}",
            _text(e.message or "", "red"),
        )
    return table


def demo_table(demo: Demo) -> Group:
    """What the demo found, and where it lies."""
    table = Table(title="Nuclei of the example project", title_justify="left")
    for name in demo.table.columns:
        table.add_column(
            str(name), justify="left" if name in ("image", "annotation", "class") else "right"
        )
    for row in demo.table.itertuples(index=False):
        table.add_row(*(_text(_number(value)) for value in row))
    places = [("project, to be opened in QuPath", demo.project), ("table", demo.table_path)]
    places += [("picture", picture) for picture in demo.pictures]
    lines = [_text(f"{name}: {path}") for name, path in places]
    return Group(run_table(demo.manifest), table, *lines)


def evaluation_table(report: Mapping[str, Any]) -> Table:
    """The scores of ``evaluate``, a row per source and their mean, and those of prompts."""
    columns = ("images", "nuclei", "f1_50", "msa", "aji", "pq", "class_accuracy")
    prompted = report.get("prompts", {"sources": {}, "mean": {}})
    table = Table()
    for name in ("source", *columns, *(f"{kind} IoU" for kind in prompted["mean"])):
        table.add_column(name, justify="left" if name == "source" else "right")
    for source, scores in [*report["sources"].items(), ("mean", report["mean"])]:
        answers = prompted["mean"] if source == "mean" else prompted["sources"].get(source, {})
        table.add_row(
            _text(source),
            *(_number(scores.get(name)) for name in columns),
            *(_number(answers.get(kind)) for kind in prompted["mean"]),
        )
    return table


def _number(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return (
            f"{value:,.0f}" if value >= 1000 else f"{value:.3f}" if value < 10 else f"{value:.1f}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


def area_text(area: float) -> str:
    """An area in µm² as a person reads it."""
    return f"{area / 1e6:.3g} mm²" if area >= 1e4 else f"{area:,.0f} µm²"


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(text: str, style: str | None = None) -> Text:
    """Text that is shown as it is: names of images and classes may hold brackets."""
    return Text(text, style=style or "")
