"""The differences between a run and now as GeoJSON, to be dragged onto QuPath's viewer.

One annotation for each correction, in a class that says what it is (``PathoSAM: deleted``,
``PathoSAM: reshaped`` …); the former outlines of what was drawn anew, merged or split are
there too (``PathoSAM: before``). Objects of these classes never count as nuclei, so the file
may be imported into the project that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from shapely.geometry.base import BaseGeometry

from pathosam_qupath.corrections.collect import EntryCorrections
from pathosam_qupath.corrections.diff import (
    ADDED,
    BOTH,
    DELETED,
    KEPT,
    MERGED,
    RECLASSIFIED,
    RESHAPED,
    SPLIT,
    UNRECORDED,
)
from pathosam_qupath.corrections.review import REMARK
from pathosam_qupath.errors import UsageError
from pathosam_qupath.export import file_stem
from pathosam_qupath.qupath.classes import Color
from pathosam_qupath.qupath.geojson import write_geojson
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.project import Project

BEFORE = "before"
COLORS: dict[str, Color] = {
    DELETED: (214, 39, 40),
    RESHAPED: (31, 119, 180),
    RECLASSIFIED: (255, 187, 0),
    BOTH: (148, 103, 189),
    ADDED: (44, 160, 44),
    MERGED: (23, 190, 207),
    SPLIT: (227, 119, 194),
    BEFORE: (127, 127, 127),
}


def write_differences(
    project: Project, corrections: Sequence[EntryCorrections], folder: Path
) -> list[Path]:
    """Write ``<image>.corrections.geojson`` for each image that could be compared.

    Raises
    ------
    UsageError : ``folder`` cannot be a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(folder, f"it cannot be a folder ({error})", "Name another.") from error
    entries = {entry.id: entry for entry in project.entries}
    colors = {_class_name(kind): color for kind, color in COLORS.items()}
    paths = []
    for one in corrections:
        if one.exit_code == 0:
            path = folder / f"{file_stem(entries[one.id])}.corrections.geojson"
            write_geojson(path, difference_objects(one), class_colors=colors)
            paths.append(path)
    return paths


def difference_objects(corrections: EntryCorrections) -> Iterator[PathObject]:
    """An annotation for each difference, former outlines first (so that they lie below)."""
    changed = corrections.nuclei
    changed = changed[~changed["kind"].isin([KEPT, UNRECORDED]).to_numpy()]
    recorded = corrections.recorded
    redrawn = changed[changed["kind"].isin([RESHAPED, BOTH, MERGED, SPLIT]).to_numpy()]
    former = {identity for ids in redrawn["before"] for identity in ids}
    if recorded is not None:
        then = recorded[recorded["id"].isin(former).to_numpy()]
        for identity, shape, name in zip(
            then["id"], then.geometry, then["classification"], strict=True
        ):
            yield _annotation(identity, BEFORE, shape, name)
    for row in changed.itertuples(index=False):
        then, now = row.class_before or "unclassified", row.classification or "unclassified"
        label = now if row.kind == ADDED else then if row.kind == DELETED else f"{then} → {now}"
        yield _annotation(row.id, row.kind, row.geometry, now if then == now else label)


def _annotation(identity: str, kind: str, shape: BaseGeometry, name: str | None) -> PathObject:
    return PathObject(
        # Not the nucleus' own id: QuPath replaces what it imports under a known one.
        uuid5(NAMESPACE_URL, f"pathosam:{kind}:{identity}"),
        "annotation",
        shape,
        "Polygon",
        classification=_class_name(kind),
        name=name,
        metadata={"PathoSAM object": identity},
    )


def _class_name(kind: str) -> str:
    return f"{REMARK}: {kind}"
