"""How the results of the correction loop look as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pathosam_qupath.corrections.collect import EntryCorrections
    from pathosam_qupath.corrections.comparison import Comparison
    from pathosam_qupath.corrections.exporting import ExportReport
    from pathosam_qupath.corrections.gate import FinetuneReport
    from pathosam_qupath.corrections.learning_run import FinetuneProgress
    from pathosam_qupath.corrections.rerun import RerunReport
    from pathosam_qupath.corrections.suggesting import SuggestReport

_SHORT = {"reshaped and reclassified": "both"}
_MOST = 40
"""Regions of one image that are listed in a terminal."""


def collected_table(found: Sequence[EntryCorrections]) -> Group:
    """The table of ``corrections collect``: a row per image and region, and what went wrong."""
    from pathosam_qupath.corrections.diff import KINDS, UNRECORDED

    used = {kind for one in found for kind in one.counts}
    kinds = [kind for kind in KINDS if kind != UNRECORDED or kind in used]
    table = Table()
    for name in ("image", "region", "reviewed"):
        table.add_column(name, overflow="fold")
    for kind in kinds:
        table.add_column(_SHORT.get(kind, kind), justify="right")
    notes = []
    for one in found:
        if one.message is not None:
            notes.append(Text(f"{one.name}: {one.message}", style="red"))
            continue
        table.add_row(Text(one.name), "all", "", *_numbers(one.counts, kinds), style="bold")
        for region in one.annotations[:_MOST]:
            why = "" if region.reviewed is None else f"yes ({region.reviewed})"
            table.add_row("", Text(region.label), why, *_numbers(region.counts, kinds))
        if len(one.annotations) > _MOST:
            table.add_row("", f"and {len(one.annotations) - _MOST:,} more: --json lists all")
    return Group(table, *notes)


def export_table(report: ExportReport) -> Group:
    """What ``corrections export`` added, and what the folder holds now."""
    table = Table(show_header=False, box=None)
    for name in ("name", "value"):
        table.add_column(name, overflow="fold")
    facts = {
        "folder": report.folder,
        "resolution": f"{report.mpp:g} µm/px",
        "regions": f"{report.regions:,}, {report.added:,} of them from this export",
        "crops": _listed(report.crops),
        "nuclei": _listed(report.nuclei),
        "classes": _listed(report.classes),
    }
    for name, value in facts.items():
        table.add_row(name, Text(value))
    notes = [Text(note, style="yellow") for note in report.notes]
    problems = [Text(f"{p.image}: {p.message}", style="red") for p in report.problems]
    return Group(table, *notes, *problems)


def comparison_table(comparison: Comparison) -> Table:
    """The table of ``models compare``."""
    title = (
        f"{comparison.images:,} images, {comparison.nuclei:,} nuclei: {comparison.b} is "
        f"{comparison.verdict} than {comparison.a}"
    )
    table = Table(title=title, title_justify="left")
    for name in ("figure", comparison.a, comparison.b, "difference", "95 % interval", "verdict"):
        table.add_column(name, justify="left" if name in ("figure", "verdict") else "right")
    styles = {"better": "green", "worse": "red"}
    for f in comparison.figures:
        if f.difference is None:
            table.add_row(f.figure, "–", "–", "–", "–", "–")
            continue
        table.add_row(
            f.figure,
            f"{f.a:.3f}",
            f"{f.b:.3f}",
            f"{f.difference:+.3f}",
            f"{f.low:+.3f} … {f.high:+.3f}",
            Text(f.verdict or "", style=styles.get(f.verdict or "", "")),
        )
    return table


def suggestions_table(report: SuggestReport) -> Group:
    """The table of ``corrections suggest``."""
    seen = f"{report.looked_at:,} of {report.fields:,} fields looked at"
    table = Table(title=seen, title_justify="left")
    names = list(report.suggestions[0].signs) if report.suggestions else []
    for name in ("", "image", "x", "y", "score", *names):
        table.add_column(name, justify="left" if name == "image" else "right", overflow="fold")
    for s in report.suggestions:
        signs = [f"{s.score:.1%}", *(f"{value:.2f}" for value in s.signs.values())]
        table.add_row(str(s.rank), Text(s.image), f"{s.box[0]:,.0f}", f"{s.box[1]:,.0f}", *signs)
    notes = [Text(problem, style="red") for problem in report.problems]
    if not report.written:
        notes.append(Text("Nothing was written.", style="dim"))
    return Group(table, *notes)


def rerun_table(report: RerunReport) -> Group:
    """The table of ``corrections rerun``."""
    table = Table()
    for name in ("image", "fields", "changed", "nuclei", "differing", "written"):
        table.add_column(name, justify="left" if name == "image" else "right", overflow="fold")
    entries = () if report.manifest is None else report.manifest.entries
    written = {entry.id: f"{entry.nuclei:,} nuclei" for entry in entries}
    notes = []
    for c in report.changes:
        if c.message is not None:
            notes.append(Text(f"{c.name}: {c.message}", style="red"))
            continue
        counts = (c.fields, c.changed, c.nuclei, c.differing)
        said = written.get(c.id, "nothing" if c.changed == 0 else "not yet")
        table.add_row(Text(c.name), *(f"{count:,}" for count in counts), said)
    if report.manifest is not None:
        notes.append(Text(f"Run {report.manifest.run}: `rollback` undoes it.", style="dim"))
    return Group(table, *notes)


def finetune_line(p: FinetuneProgress) -> str:
    """One line of progress of ``finetune``."""
    if p.stage == "prompts":
        return f"answers, step {p.step}/{p.steps} · mean IoU {p.score:.3f} · {p.seconds:.0f} s"
    if p.stage == "holding":
        return f"regression set, image {p.step} of {p.steps} at most · {p.seconds:.0f} s"
    loss = "" if p.loss is None else f" · loss {p.loss:.4f}"
    kept = " (kept)" if p.best else ""
    return f"step {p.step}/{p.steps}{loss} · score {p.score:.4f}{kept} · {p.seconds:.0f} s"


def finetune_table(report: FinetuneReport) -> Group:
    """What came of ``finetune``: the comparisons, and whether the model took its name."""
    parts: list[Table | Text] = []
    for what, comparison in (("held out", report.held_out), ("regression", report.regression)):
        if comparison is not None:
            parts += [Text(what), comparison_table(comparison)]
    for kind, (before, after) in (report.prompts or {}).items():
        parts.append(Text(f"one {kind}: mean IoU {before:.3f}, now {after:.3f}"))
    parts += [Text(note, style="yellow") for note in report.notes]
    if report.adopted:
        forced = " (forced)" if report.forced else ""
        parts.append(Text(f"Adopted{forced}: --model {report.name}", style="green"))
    else:
        parts.append(
            Text(
                f"Not adopted. Its weights are {report.weights}; the same command with --force "
                "adopts it all the same.",
                style="red",
            )
        )
    return Group(*parts)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"


def _numbers(counts: Mapping[str, int], kinds: Sequence[str]) -> list[str]:
    return [f"{counts[kind]:,}" if kind in counts else "–" for kind in kinds]
