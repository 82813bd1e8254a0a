"""Detections of a frame as nodes of a ``.qpdata`` stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import numpy as np
import shapely

from pathosam_qupath.errors import UsageError
from pathosam_qupath.qupath.java_objects import (
    JavaArray,
    JavaClass,
    JavaEnum,
    JavaObject,
    JavaString,
    Node,
)
from pathosam_qupath.qupath.objects import FRAME_COLUMNS, RUN_KEY
from pathosam_qupath.qupath.qpdata_build import Color, Nodes

if TYPE_CHECKING:
    import geopandas as gpd


def build_detections(
    frame: gpd.GeoDataFrame, class_colors: Mapping[str, Color], stream: Sequence[Node]
) -> dict[UUID | None, list[Node]]:
    nodes = Nodes(walk_nodes(stream))
    measures = [c for c in frame.columns if c not in FRAME_COLUMNS]
    names = nodes.names(measures) if measures else None
    run_key = nodes.string(RUN_KEY)
    added: dict[UUID | None, list[Node]] = defaultdict(list)
    for row in frame.to_dict("records"):
        geometry = row["geometry"]
        if geometry.geom_type == "Polygon" and not len(geometry.interiors):
            xy = shapely.get_coordinates(geometry)[:-1].astype(np.float32)
            roi = nodes.polygon(xy[:, 0], xy[:, 1])
        else:
            roi = nodes.geometry(shapely.to_wkb(geometry, byte_order=0))
        run, cls, parent = row.get("run"), row.get("classification"), row.get("parent")
        values = np.array([row[m] for m in measures], float)
        prob = row.get("probability")
        added[UUID(parent) if isinstance(parent, str) else None].append(
            nodes.detection(
                UUID(row["id"]) if isinstance(row.get("id"), str) else uuid4(),
                roi,
                run=nodes.string(run) if isinstance(run, str) else None,
                run_key=run_key,
                measurements=nodes.measurements(names, values) if names else None,
                path_class=nodes.path_class(cls, class_colors) if isinstance(cls, str) else None,
                probability=float("nan") if prob is None else float(prob),
                locked=bool(row.get("locked", False)),
                name=row["name"] if isinstance(row.get("name"), str) else None,
                color=row["color"] if isinstance(row.get("color"), tuple) else None,
            )
        )
    return added


def walk_nodes(nodes: Sequence[Node]) -> Iterator[Node]:
    """Every node once, in the order of the stream."""
    seen: set[Node] = set()
    stack: list[Node] = list(reversed(nodes))
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        below: list[Any] = []
        if isinstance(node, JavaObject):
            below.append(node.of)
            for part in node.data:
                below += [v for v in part.values if not isinstance(v, bytes)]
                below += part.annotation or []
        elif isinstance(node, JavaArray):
            below = [node.of, *node.items]
        elif isinstance(node, JavaEnum):
            below = [node.of, node.constant]
        elif isinstance(node, JavaClass):
            below = [*(f.type for f in node.fields), *node.annotation, node.parent]
        stack.extend(reversed(below))
