"""Put annotations into a ``data.qpdata`` file.

Segmentation only ever adds detections; annotations are a pathologist's. This is for regions
that are suggested for review, and for projects that are built from scratch.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from uuid import UUID

import numpy as np
import shapely

from pathosam_qupath.errors import UsageError
from pathosam_qupath.qupath.java_objects import BlockData, JavaObject, JavaString, Node, encode_utf
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.qpdata import QpData
from pathosam_qupath.qupath.qpdata_build import (
    ALL_CHANNELS,
    Color,
    Nodes,
    packed_color,
    walk_nodes,
)
from pathosam_qupath.qupath.qpdata_classes import ROI
from pathosam_qupath.qupath.qpdata_objects import ID_KEY, PACKAGE


def add_annotations(
    data: QpData,
    annotations: Sequence[PathObject],
    class_colors: Mapping[str, Color] | None = None,
) -> None:
    """Append annotations to the hierarchy, in their order.

    Measurements are not written; QuPath computes those of annotations itself.

    Parameters
    ----------
    data : changed in place.
    annotations : parents before their children; a ``parent`` is None, an object of the
        file, or another of these. ``roi`` "Rectangle" and "Ellipse" are written as such
        with the geometry's bounds, "Polygon" with its outer ring, anything else as a
        geometry.
    class_colors : of classes that the file lacks.

    Raises
    ------
    UsageError : one is not an annotation, or has no geometry.
    ProjectError : a parent is not in the file.
    """
    for level in _by_depth(annotations):
        nodes = Nodes(walk_nodes(data._nodes))
        added: dict[UUID | None, list[Node]] = defaultdict(list)
        for annotation in level:
            added[annotation.parent].append(_node(nodes, annotation, class_colors or {}))
        data._hierarchy.append(added)


def _by_depth(annotations: Sequence[PathObject]) -> list[list[PathObject]]:
    depths: dict[UUID, int] = {}
    levels: dict[int, list[PathObject]] = defaultdict(list)
    for annotation in annotations:
        if annotation.object_type != "annotation" or annotation.geometry.is_empty:
            raise UsageError(
                f"object {annotation.id}",
                f"an annotation with a geometry is expected, not a {annotation.object_type}",
                "Add detections with add_detections.",
            )
        depth = depths[annotation.parent] + 1 if annotation.parent in depths else 0
        depths[annotation.id] = depth
        levels[depth].append(annotation)
    return [levels[depth] for depth in sorted(levels)]


def _node(nodes: Nodes, annotation: PathObject, colors: Mapping[str, Color]) -> JavaObject:
    pairs = {nodes.string(ID_KEY): JavaString(str(annotation.id).encode())}
    for key, value in annotation.metadata.items():
        pairs[nodes.string(key)] = JavaString(encode_utf(value))
    name, color, probability = annotation.name, annotation.color, annotation.probability
    contents: list[Node] = [
        JavaString(encode_utf(name)) if name is not None else None,
        nodes.integer(packed_color(color)) if color is not None else None,
        nodes.metadata(pairs),
        None,
        BlockData(struct.pack(">i", 0)),
        nodes.boolean(annotation.locked),
        nodes.path_class(annotation.classification, colors) if annotation.classification else None,
        _roi(nodes, annotation),
        BlockData(struct.pack(">d", float("nan") if probability is None else probability)),
    ]
    return nodes.object(PACKAGE + "PathAnnotationObject", annotation=contents)


def _roi(nodes: Nodes, annotation: PathObject) -> JavaObject:
    geometry = annotation.geometry
    if annotation.roi in ("Rectangle", "Ellipse"):
        corners = zip(("x", "y", "x2", "y2"), geometry.bounds, strict=True)
        fields = {name: struct.pack(">d", value) for name, value in corners}
        kind = f"{ROI}{annotation.roi}ROI$SerializationProxy"
        return nodes.object(kind, {"c": ALL_CHANNELS, **fields})
    if annotation.roi == "Polygon" and isinstance(geometry, shapely.Polygon):
        xy = shapely.get_coordinates(geometry.exterior)[:-1].astype(np.float32)
        return nodes.polygon(xy[:, 0], xy[:, 1])
    return nodes.geometry(shapely.to_wkb(geometry, byte_order=0))
