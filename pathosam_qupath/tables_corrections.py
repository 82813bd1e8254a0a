"""How the results of the correction loop look as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pathosam_qupath.corrections.collect import EntryCorrections

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


def _numbers(counts: Mapping[str, int], kinds: Sequence[str]) -> list[str]:
    return [f"{counts[kind]:,}" if kind in counts else "–" for kind in kinds]
