"""The report as one HTML file: styles, script and pictures inside, nothing from a network."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.picture import class_palette
from pathosam_qupath.report.findings import ImageFindings, View

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from pathosam_qupath.qupath.project import Color
    from pathosam_qupath.report.checks import Check
    from pathosam_qupath.run_record import RunManifest

_BINS = 40
_WIDE, _HIGH = 520, 150


def write_page(
    file: BinaryIO, manifest: RunManifest, found: Iterable[ImageFindings]
) -> list[ImageFindings]:
    """Write the HTML of a report, holding the pictures of one image at a time.

    Returns
    -------
    What was found, without pictures and areas.
    """
    title = f"Run {manifest.run}"
    folder = files("pathosam_qupath.report")
    style = (folder / "report.css").read_text(encoding="utf-8")
    script = (folder / "report.js").read_text(encoding="utf-8")
    kept = []
    with tempfile.TemporaryFile() as sections:  # the overview comes first, and is known last
        for number, f in enumerate(found):
            colors = class_palette(sorted(f.areas), manifest.class_colors)
            sections.write(_image(f, colors, number).encode())
            kept.append(replace(f, areas={}, views=()))
        head = [
            "<!doctype html><html lang=en><head><meta charset=utf-8>"
            '<meta name=viewport content="width=device-width">'
            "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
            "img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
            f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
            f"<h1>{escape(title)}</h1>",
            f"<p class=facts>{escape(_facts(manifest))}</p>",
            "<p class=notice>For research. Not a medical device, not for diagnosis.</p>",
            _overview(kept),
        ]
        file.write("\n".join(head).encode())
        sections.seek(0)
        shutil.copyfileobj(sections, file)
    stored = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, default=str)
    tail = (
        f"<details><summary>Manifest</summary><pre>{escape(stored)}</pre></details>"
        f"</main><script>{script}</script></body></html>\n"
    )
    file.write(tail.encode())
    return kept


def histogram(areas: Mapping[str, NDArray[np.float64]], colors: Mapping[str, Color]) -> str:
    """Distribution of areas by class as inline SVG; stacked, the last bar open to the right."""
    everything = np.concatenate(list(areas.values())) if areas else np.zeros(0)
    if len(everything) == 0:
        return ""
    most = float(np.percentile(everything, 99)) or 1.0
    edges = np.linspace(0, most, _BINS + 1)
    counts = {
        kind: np.histogram(np.minimum(values, most), edges)[0] for kind, values in areas.items()
    }
    highest = max(1, int(np.sum(list(counts.values()), axis=0).max()))
    bars = []
    base = np.zeros(_BINS)
    for kind, count in counts.items():
        for i in np.flatnonzero(count):
            x, width = i * _WIDE / _BINS, _WIDE / _BINS - 1
            height = count[i] / highest * _HIGH
            y = _HIGH - base[i] / highest * _HIGH - height
            said = f"{kind}: {count[i]:,} of {edges[i]:.0f}–{edges[i + 1]:.0f} µm²"
            bars.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'fill="{_hex(colors[kind])}"><title>{escape(said)}</title></rect>'
            )
        base += count
    median = float(np.median(everything))
    at = min(median, most) / most * _WIDE
    ticks = "".join(
        f'<text x="{share * _WIDE:.0f}" y="{_HIGH + 16}" text-anchor="{anchor}">'
        f"{share * most:.0f} µm²</text>"
        for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH + 22}" role=img aria-label="sizes of nuclei">'
        + "".join(bars)
        + f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{_HIGH}" class=median />'
        f'<text x="{at + 4:.1f}" y="12">median {median:.0f} µm²</text>{ticks}</svg>'
    )


def _facts(manifest: RunManifest) -> str:
    model = manifest.model
    nuclei = sum(e.nuclei for e in manifest.entries if e.state == "written")
    return " · ".join(
        [
            f"{model.get('name')} at {model.get('mpp')} µm/px on {model.get('device')}",
            f"{nuclei:,} nuclei in {len(manifest.entries)} images",
            f"begun {manifest.created}",
            f"ended {manifest.finished}" if manifest.finished else "cut off",
            f"pathosam-qupath {manifest.versions.get('pathosam-qupath')}",
        ]
    )


def _overview(found: Sequence[ImageFindings]) -> str:
    rows = []
    for number, f in enumerate(found):
        r = f.record
        density = f"{r.nuclei / r.area * 1e6:,.0f}" if r.area and r.state == "written" else "–"
        area = f"{r.area / 1e6:.3g}" if r.area else "–"
        rows.append(
            f'<tr><td><a href="#image-{number}">{escape(r.name)}</a><td class="{escape(r.state)}">'
            f"{escape(r.state)}<td class=n>{r.nuclei:,}<td class=n>{area}<td class=n>{density}"
            f"<td class=n>{r.seconds:,.0f}<td class=n>{len(f.flags) or ''}"
        )
    return (
        "<table><thead><tr><th>image<th>state<th class=n>nuclei<th class=n>mm²<th class=n>per mm²"
        "<th class=n>seconds<th class=n>flags<tbody>" + "".join(rows) + "</table>"
    )


def _image(f: ImageFindings, colors: Mapping[str, Color], number: int) -> str:
    flags = "".join(f"<li>{escape(flag)}" for flag in f.flags)
    parts = [
        f"<section id=image-{number}><h2>{escape(f.record.name)}</h2>",
        f"<ul class=flags>{flags}</ul>" if flags else "",
    ]
    if f.views:
        parts.append(
            '<label><input type=checkbox class=toggle checked> nuclei</label><div class="views">'
        )
        parts += [_view(view) for view in f.views]
        parts.append("</div>")
    if len(f.classes):
        parts += ["<div class=numbers>", _legend(f, colors), _table(f.classes), "</div>"]
        parts.append(histogram(f.areas, colors))
    if f.checks:
        parts.append(_checks(f.checks))
    return "".join(parts) + "</section>"


def _checks(checks: Sequence[Check]) -> str:
    rows = []
    for check in checks:
        usual = "–"
        if check.lowest is not None and check.highest is not None:
            usual = f"{check.lowest:.3g} to {_value(check, check.highest)}"
        elif check.highest is not None:
            usual = f"at most {_value(check, check.highest)}"
        mark = " class=doubtful" if check.doubtful else ""
        rows.append(
            f"<tr{mark}><td>{escape(check.name)}<td class=n>{_value(check, check.value)}"
            f"<td class=n>{usual}"
        )
    return (
        "<table class=checks><thead><tr><th>check<th class=n>here<th class=n>usual<tbody>"
        + "".join(rows)
        + "</table>"
    )


def _value(check: Check, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if check.unit == "share" else f"{value:.3g} {check.unit}".rstrip()


def _legend(f: ImageFindings, colors: Mapping[str, Color]) -> str:
    total = sum(len(areas) for areas in f.areas.values()) or 1
    bars = "".join(
        f'<span style="width:{100 * len(areas) / total:.2f}%;background:{_hex(colors[kind])}" '
        f'title="{escape(kind)}: {len(areas) / total:.1%}"></span>'
        for kind, areas in f.areas.items()
    )
    names = "".join(
        f'<li><i style="background:{_hex(colors[kind])}"></i>{escape(kind)} '
        f"{len(areas):,} ({len(areas) / total:.1%})"
        for kind, areas in f.areas.items()
    )
    return f"<div class=shares>{bars}</div><ul class=legend>{names}</ul>"


def _table(classes: pd.DataFrame) -> str:
    columns = [column for column in classes.columns if column != "image"]
    texts = ("region", "class")
    head = "".join(
        f"<th{'' if column in texts else ' class=n'}>{escape(column)}" for column in columns
    )
    rows = []
    for row in classes[columns].itertuples(index=False):
        cells = [
            f"<td class=n>{_number(value, column)}"
            if isinstance(value, int | float)
            else f"<td>{escape(str(value))}"
            for value, column in zip(row, columns, strict=True)
        ]
        rows.append("<tr>" + "".join(cells))
    return f"<table><thead><tr>{head}<tbody>{''.join(rows)}</table>"


def _number(value: float, column: str) -> str:
    if value != value:
        return "–"
    if column == "share":
        return f"{value:.1%}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def _view(view: View) -> str:
    pictures = "".join(
        f'<img class={name} alt="{escape(view.title)}, {name}" src="{_data(picture)}">'
        for name, picture in (("tissue", view.tissue), ("nuclei", view.nuclei))
        if picture is not None
    )
    return (
        f"<figure tabindex=0><div>{pictures}</div><figcaption>{escape(view.title)}</figcaption>"
        "</figure>"
    )


def _data(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
