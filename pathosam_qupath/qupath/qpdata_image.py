"""What a ``.qpdata`` stream says about the image, apart from its objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pathosam_qupath.qupath.java_objects import (
    BlockData,
    JavaEnum,
    JavaObject,
    JavaString,
    Node,
    Value,
)
from pathosam_qupath.qupath.qpdata_objects import (
    boxed,
    damaged,
    is_instance,
    list_items,
    map_items,
    text,
)

STAINS = "qupath.lib.color.ColorDeconvolutionStains"
WORKFLOW = "qupath.lib.plugins.workflow.Workflow"
IMAGE_TYPE = "qupath.lib.images.ImageData$ImageType"
VERSION = "Data file version"


@dataclass(frozen=True)
class WorkflowStep:
    """A step of the image's history: its name, and the script line that repeats it."""

    name: str
    script: str


def find(nodes: Sequence[Node], class_name: str) -> JavaObject | None:
    """The first top-level object of this class or one derived from it."""
    for node in nodes:
        if isinstance(node, JavaObject) and node.of.is_a(class_name):
            return node
    return None


def read_version(nodes: Sequence[Node], subject: object) -> int:
    """The data file version; 0 where it is no number.

    Raises
    ------
    FormatError : the stream does not begin as QuPath's do.
    """
    first = nodes[0] if nodes else None
    raw = first.raw[2:] if isinstance(first, BlockData) else b""
    line = str(JavaString(raw))
    if not line.startswith(VERSION):
        raise damaged(subject, f"it does not begin with QuPath's {VERSION!r}")
    number = line.removeprefix(VERSION).strip()
    return int(number) if number.isdecimal() and len(number) < 10 else 0


def read_server(nodes: Sequence[Node]) -> dict[str, Any] | None:
    """The JSON about the image: ``dataVersion``, ``qupathVersion``, ``server``, ``id``.

    None in files older than QuPath 0.2, which have a path instead.
    """
    for node in nodes:
        if isinstance(node, JavaString):
            return _json_object(str(node))
    return None


def read_image_type(nodes: Sequence[Node]) -> str | None:
    """QuPath's constant, for instance "BRIGHTFIELD_H_E"; None where there is none."""
    for node in nodes:
        if isinstance(node, JavaEnum) and node.of.is_a(IMAGE_TYPE):
            return text(node.constant)
    return None


def read_stains(nodes: Sequence[Node], subject: object) -> dict[str, str] | None:
    """Names, vectors and background of the stains, as QuPath's script line has them."""
    node = find(nodes, STAINS)
    if node is None:
        return None
    for entry in node.contents:
        if isinstance(entry, JavaString):
            stains = _json_object(str(entry))
            if stains is None:
                raise damaged(subject, "the stains are no JSON text")
            return {str(k): str(v) for k, v in stains.items()}
    raise damaged(subject, "the stains lack their text")


def read_workflow(nodes: Sequence[Node]) -> list[WorkflowStep]:
    """The image's history; a step of an unknown kind has an empty script."""
    node = find(nodes, WORKFLOW)
    steps = []
    for step in node.contents if node is not None else []:
        if not isinstance(step, JavaObject):
            continue
        texts = [str(n) for n in step.contents if isinstance(n, JavaString)]
        if len(texts) >= 3:
            steps.append(WorkflowStep(texts[0], f"runPlugin('{texts[1]}', '{texts[2]}')"))
        else:
            name, script = text(step.get("name")), text(step.get("script"))
            steps.append(WorkflowStep(name or "", script or ""))
    return steps


def read_properties(nodes: Sequence[Node]) -> dict[str, Any]:
    """The image's properties; a value of an unknown class is "<its class>"."""
    for node in nodes:
        if is_instance(node, "java.util.HashMap"):
            return {text(k) or "": _plain(v) for k, v in map_items(node)}
    return {}


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _plain(node: Node, depth: int = 0) -> Value:
    if node is None or isinstance(node, JavaString):
        return text(node)
    if isinstance(node, JavaEnum):
        return text(node.constant)
    if isinstance(node, JavaObject) and depth < 8:
        if (value := boxed(node)) is not None and not isinstance(value, JavaObject):
            return value
        if is_instance(node, "java.util.ArrayList"):
            return [_plain(item, depth + 1) for item in list_items(node)]
        if is_instance(node, "java.util.HashMap"):
            return {text(k) or "": _plain(v, depth + 1) for k, v in map_items(node)}
        return f"<{node.of.name}>"
    return f"<{type(node).__name__}>"
