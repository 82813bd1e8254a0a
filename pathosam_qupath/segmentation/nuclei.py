"""Nuclei as rows of a frame: ids, classes, measurements."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.model.interface import ModelInfo
from pathosam_qupath.segmentation.block_plan import SegmentOptions
from pathosam_qupath.segmentation.classes import classify
from pathosam_qupath.segmentation.measurements import shape_measurements
from pathosam_qupath.segmentation.objects import Objects, joined

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


def nuclei_frame(
    parts: Sequence[Objects],
    mpp: tuple[float, float] | None,
    info: ModelInfo,
    options: SegmentOptions,
) -> GeoDataFrame:
    """The objects of several blocks as rows (see :func:`segment`): ids, classes, measurements.

    Parameters
    ----------
    mpp : µm per slide pixel; measurements are in pixels where it is None or not finite.
    """
    from geopandas import GeoDataFrame

    objects = joined([_nothing(info), *parts])
    namespace = _namespace(options)
    classes = classify(objects.class_sums, info.classes, options.class_map)
    kept = classes.kept
    polygons = objects.polygons[kept]
    columns: dict[str, NDArray[np.object_] | NDArray[np.float64]] = {
        "id": np.array(_ids(namespace, objects.anchors[kept]), object),
        "classification": classes.classification[kept],
        "probability": classes.probability[kept],
        "geometry": polygons,
    }
    finite = mpp is not None and all(map(math.isfinite, mpp))
    columns.update(shape_measurements(polygons, mpp if finite else None))
    columns.update({name: value[kept] for name, value in classes.measurements.items()})
    return GeoDataFrame(columns, geometry="geometry")


def _nothing(info: ModelInfo) -> Objects:
    return Objects(
        np.zeros((0, 2), np.int64), np.zeros(0, object), np.zeros((0, len(info.classes)))
    )


def _ids(namespace: uuid.UUID, anchors: NDArray[np.int64]) -> list[str]:
    """``str(uuid.uuid5(namespace, "x,y"))`` of each anchor, in a third of the time."""
    begun = hashlib.sha1(namespace.bytes, usedforsecurity=False)
    digests = bytearray()
    for x, y in anchors.tolist():
        digest = begun.copy()
        digest.update(b"%d,%d" % (x, y))
        digests += digest.digest()[:16]
    values = np.frombuffer(digests, np.uint8).reshape(-1, 16)
    values[:, 6] = values[:, 6] & 0x0F | 0x50  # version 5
    values[:, 8] = values[:, 8] & 0x3F | 0x80  # of RFC 4122
    text = values.tobytes().hex()
    return [
        f"{text[i : i + 8]}-{text[i + 8 : i + 12]}-{text[i + 12 : i + 16]}"
        f"-{text[i + 16 : i + 20]}-{text[i + 20 : i + 32]}"
        for i in range(0, len(text), 32)
    ]


def _namespace(options: SegmentOptions) -> uuid.UUID:
    if options.seed is None:
        return uuid.uuid4()
    return uuid.uuid5(uuid.NAMESPACE_OID, f"pathosam-qupath nuclei {options.seed}")
