"""A project's list of classes, and the colours that QuPath gives to classes.

``classifiers/classes.json`` holds the list as ``{"pathClasses": [{"name", "color"}]}``,
colours as packed ARGB in a signed 32-bit integer. A derived class is written with its
names joined by ``": "``. A class whose colour nobody chose gets one from its name, by
the same rule as in QuPath, so that a class looks the same whoever created it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.atomic import MISSING, read_file, replace_file
from pathosam_qupath.qupath.project_file import gson_text

Color = tuple[int, int, int]

DEFAULT_CLASSES: dict[str, Color] = {
    "Tumor": (200, 0, 0),
    "Stroma": (150, 200, 150),
    "Immune cells": (160, 90, 160),
    "Necrosis": (50, 50, 50),
    "Other": (255, 200, 0),
    "Region*": (0, 0, 180),
    "Ignore*": (180, 180, 180),
    "Positive": (250, 62, 62),
    "Negative": (112, 112, 225),
}
"""The classes, in order, that QuPath offers in a project without a list of its own."""

_INTENSITIES: dict[str, tuple[Color, float]] = {
    "1+": ((255, 215, 0), 0.9),
    "2+": ((225, 150, 50), 0.6),
    "3+": ((200, 50, 50), 0.4),
    "Positive": ((200, 50, 50), 0.75),
    "Negative": ((90, 90, 180), 1.25),
}
"""Colour under "Tumor", and the factor by which any other parent's colour is scaled."""


def read_classes(folder: Path) -> dict[str, Color]:
    """Return the project's classes in order; empty where it has no list.

    Raises
    ------
    FormatError : the list is not what QuPath writes.
    """
    path = _path(folder)
    try:
        content, _ = read_file(path)
    except FileNotFoundError:
        return {}
    classes = {}
    for item in _named(path, _items(path, _document(path, content))):
        name = normal_name(item["name"])
        packed = item.get("color")
        classes[name] = default_color(name) if packed is None else unpack_rgb(packed)
    return classes


def extend_classes(folder: Path, classes: Mapping[str, Color]) -> dict[str, Color]:
    """Append the classes that the project's list lacks, and return the whole list.

    Classes that are listed keep their colour and place. A project without a list gets
    QuPath's default classes first: QuPath shows exactly what is listed, and would offer
    no "Tumor" or "Stroma" any more if a list held only the new ones. The file that was
    there stays as ``classes.json.backup``.
    """
    path = _path(folder)
    try:
        content, expected = read_file(path)
    except FileNotFoundError:
        document: dict[str, Any] = {}
        expected = MISSING
    else:
        document = _document(path, content)
    items = _items(path, document)
    known = {normal_name(item["name"]) for item in _named(path, items)}
    wanted = _normal(classes) if known else {**DEFAULT_CLASSES, **_normal(classes)}
    new = {name: color for name, color in wanted.items() if name not in known}
    if new:
        items.extend({"name": name, "color": pack_rgb(color)} for name, color in new.items())
        document["pathClasses"] = items
        path.parent.mkdir(exist_ok=True)
        text = gson_text(document).encode()
        backup = path.with_name("classes.json.backup")
        replace_file(path, lambda file: file.write(text), expected=expected, backup=backup)
    return read_classes(folder)


def normal_name(name: str) -> str:
    """Return a class name as QuPath writes it: "Tumor: Positive", no stray blanks."""
    return ": ".join(part.strip() for part in name.split(":"))


def default_color(name: str) -> Color:
    """Return the colour that QuPath gives to a class whose colour nobody chose."""
    *parents, last = normal_name(name).split(": ")
    if not parents:
        if last in DEFAULT_CLASSES:
            return DEFAULT_CLASSES[last]
        if last in _INTENSITIES:
            return _scaled(_INTENSITIES[last][0], 1.25)
    elif last in _INTENSITIES:
        own, factor = _INTENSITIES[last]
        return own if parents == ["Tumor"] else _scaled(default_color(": ".join(parents)), factor)
    return _random_color("\n".join([*parents, last]))


def pack_rgb(color: Color) -> int:
    """Return an opaque colour as QuPath packs it: ARGB in a signed 32-bit integer."""
    red, green, blue = color
    return (0xFF000000 | red << 16 | green << 8 | blue) - (1 << 32)


def unpack_rgb(packed: int) -> Color:
    """Return (red, green, blue) of a packed ARGB integer, signed or not."""
    return (packed >> 16) & 255, (packed >> 8) & 255, packed & 255


def _path(folder: Path) -> Path:
    return folder / "classifiers" / "classes.json"


def _normal(classes: Mapping[str, Color]) -> dict[str, Color]:
    return {normal_name(name): color for name, color in classes.items()}


def _document(path: Path, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise FormatError(
            path, f"is not JSON ({error})", "Restore it, or delete it to get QuPath's classes."
        ) from error
    if not isinstance(document, dict):
        raise FormatError(path, "is not a JSON object", "Restore it, or delete it.")
    return document


def _items(path: Path, document: dict[str, Any]) -> list[Any]:
    items = document.get("pathClasses") or []
    if not isinstance(items, list):
        raise FormatError(path, "'pathClasses' is not a list", "Restore it, or delete it.")
    return items


def _named(path: Path, items: list[Any]) -> list[dict[str, Any]]:
    """Return the items that are classes ("Unclassified" stands for having none)."""
    named = []
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            continue
        color = item.get("color")
        if color is not None and type(color) is not int:
            raise FormatError(
                path, f"the colour of {item['name']!r} is not a packed integer", "Restore it."
            )
        if item["name"] != "Unclassified":
            named.append(item)
    return named


def _scaled(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, int(channel * factor)) for channel in color)
    return red, green, blue


def _random_color(key: str) -> Color:
    """Return the first colour, not too dark, of Java's ``Random(key.hashCode())``."""
    units = memoryview(key.encode("utf-16-le")).cast("H")
    seed = 0
    for unit in units:
        seed = (31 * seed + unit) & 0xFFFFFFFF
    signed = seed - (1 << 32) if seed >= 1 << 31 else seed
    mask = (1 << 48) - 1
    state = (signed ^ 0x5DEECE66D) & mask

    def channel() -> int:
        nonlocal state
        state = (state * 0x5DEECE66D + 0xB) & mask
        return state >> 40  # the top 8 of 48 bits: nextInt(256)

    while True:
        color = channel(), channel(), channel()
        if max(color) >= 40:
            return color
