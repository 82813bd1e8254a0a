"""GeoJSON as QuPath 0.5 to 0.7 exports and imports it.

A FeatureCollection with one feature per object, without nesting. Coordinates are
full-resolution pixels with two decimals, as QuPath writes them. What GeoJSON has no word
for are foreign members: ``plane`` and ``isEllipse`` in a geometry, ``nucleusGeometry``
in a cell's feature, and the properties ``objectType``, ``name``, ``color``,
``classification``, ``isLocked``, ``measurements``, ``metadata``. The format has no place
for a class probability; nuclei carry one measurement "Probability: …" per class.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.qupath.atomic import replace_file
from pathosam_qupath.qupath.classes import Color, default_color, normal_name
from pathosam_qupath.qupath.geojson_reader import GeoJson, read_geojson
from pathosam_qupath.qupath.objects import FRAME_COLUMNS, RUN_KEY, PathObject, Plane

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["GeoJson", "detection_features", "read_geojson", "write_geojson"]

_CHUNK = 16_384
_GRID = 100


def write_geojson(
    path: str | Path,
    objects: Iterable[PathObject] = (),
    detections: gpd.GeoDataFrame | Iterable[gpd.GeoDataFrame] = (),
    *,
    class_colors: Mapping[str, Color] | None = None,
    foreign: bool = False,
) -> int:
    """Write objects to a file that QuPath imports; gzipped where it is named ``….gz``.

    Parameters
    ----------
    path : the file, replaced atomically.
    objects : objects one by one.
    detections : a frame (columns: ``FRAME_COLUMNS`` and measurements), or frames that
        are written one after the other, so that not all need be in memory. A NaN is a
        measurement that the object lacks. A frame has no nuclei of cells.
    class_colors : colour by class; a class that is not in it gets QuPath's.
    foreign : add to the features of frames what QuPath's format has no word for, as
        properties that its readers skip: ``parent`` (an annotation's id) and
        ``probability`` of the class.

    Returns
    -------
    count : how many features were written.
    """
    frames = [detections] if _is_frame(detections) else detections
    colors = dict(class_colors or {})
    count = 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        count = 0
        target: Any = file
        if str(path).endswith(".gz"):
            target = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
        with io.TextIOWrapper(io.BufferedWriter(_Open(target), 1 << 20), "utf-8") as text:
            text.write('{"type":"FeatureCollection","features":[')
            for feature in _features(objects, frames, colors, foreign):
                text.write(",\n" if count else "\n")
                text.write(feature)
                count += 1
            text.write("\n]}\n")
        if target is not file:
            target.close()

    replace_file(Path(path), write)
    return count


def detection_features(
    frame: gpd.GeoDataFrame, *, class_colors: Mapping[str, Color] | None = None
) -> Iterator[str]:
    """The features of a frame one by one, each a JSON text, as :func:`write_geojson`'s foreign."""
    return _features((), [frame], dict(class_colors or {}), True)


def _is_frame(value: object) -> bool:
    return hasattr(value, "geometry")


class _Open(io.RawIOBase):
    """A file that a text wrapper may close without closing what lies beneath."""

    def __init__(self, target: Any) -> None:  # noqa: ANN401 (a file or a gzip stream)
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 (any buffer)
        self._target.write(data)
        return len(data)


def _features(
    objects: Iterable[PathObject],
    frames: Iterable[gpd.GeoDataFrame],
    colors: Mapping[str, Color],
    foreign: bool,
) -> Iterator[str]:
    classes: dict[str | None, str] = {}
    for item in objects:
        yield _object_feature(item, colors, classes)
    for frame in frames:
        for start in range(0, len(frame), _CHUNK):
            chunk = frame.iloc[start : start + _CHUNK]
            yield from _frame_features(chunk, colors, classes, foreign=foreign)


def _object_feature(
    item: PathObject, colors: Mapping[str, Color], classes: dict[str | None, str]
) -> str:
    geometry = _geometry_text([item.geometry])[0]
    extra = ""
    if item.plane != Plane():
        plane = item.plane
        extra += f',"plane":{{"c":{plane.c},"z":{plane.z},"t":{plane.t}}}'
    if item.roi == "Ellipse":
        extra += ',"isEllipse":true'
    nucleus = ""
    if item.nucleus is not None:
        nucleus = f',"nucleusGeometry":{_geometry_text([item.nucleus])[0]}'
    measured = ",".join(
        f"{_quoted(name)}:{_number(float(value))}" for name, value in item.measurements.items()
    )
    return _feature(
        str(item.id),
        geometry[:-1] + extra + "}" + nucleus,
        item.object_type,
        _shared(item.name, item.color, item.locked),
        _class_text(item.classification, colors, classes),
        measured,
        dict(item.metadata),
    )


def _frame_features(
    frame: gpd.GeoDataFrame,
    colors: Mapping[str, Color],
    classes: dict[str | None, str],
    *,
    foreign: bool,
) -> Iterator[str]:
    """Yield the features of one chunk of a frame, column by column where that is faster."""
    rows = len(frame)

    def column(name: str, default: object) -> list[Any]:
        return frame[name].tolist() if name in frame.columns else [default] * rows

    measured: list[list[str]] = []
    for name in frame.columns:
        if name not in FRAME_COLUMNS:
            key = _quoted(str(name))
            values = frame[name].to_numpy(np.float64, na_value=np.nan).tolist()
            measured.append([f"{key}:{_number(v)}" if v == v else "" for v in values])
    measurements: Iterable[str] = (
        (",".join(filter(None, texts)) for texts in zip(*measured, strict=True))
        if measured
        else [""] * rows
    )
    geometries = _geometry_text(np.asarray(frame.geometry.array, dtype=object))
    parents = column("parent" if foreign else "", None)
    probabilities = column("probability" if foreign else "", None)
    for number, kind, geometry, name, color, locked, label, run, values, parent, chance in zip(
        column("id", None),
        column("object_type", "detection"),
        geometries,
        column("name", None),
        column("color", None),
        column("locked", False),
        column("classification", None),
        column("run", None),
        measurements,
        parents,
        probabilities,
        strict=True,
    ):
        extra = f',"parent":{_quoted(parent)}' if isinstance(parent, str) else ""
        if chance is not None and chance == chance:
            extra += f',"probability":{_number(float(chance))}'
        yield _feature(
            str(number or uuid4()),
            geometry,
            kind,
            _shared(name, color, locked),
            _class_text(label, colors, classes),
            values,
            {RUN_KEY: run} if isinstance(run, str) else {},
            extra,
        )


def _feature(
    number: str,
    geometry: str,
    kind: str,
    shared: tuple[str, str],
    classification: str,
    measurements: str,
    metadata: Mapping[str, str],
    foreign: str = "",
) -> str:
    """Put one feature together, its properties in QuPath's order, then foreign ones."""
    before, after = shared
    kind = "tmaCore" if kind == "tma_core" else kind
    measured = f',"measurements":{{{measurements}}}' if measurements else ""
    extra = f',"metadata":{_json(metadata)}' if metadata else ""
    return (
        f'{{"type":"Feature","id":"{number}","geometry":{geometry},'
        f'"properties":{{"objectType":"{kind}"{before}{classification}{after}{measured}{extra}{foreign}}}}}'
    )


def _shared(name: object, color: object, locked: object) -> tuple[str, str]:
    """Return the properties before and after the classification (absent: NaN or None)."""
    before = f',"name":{_quoted(name)}' if isinstance(name, str) else ""
    if isinstance(color, Sequence | np.ndarray) and not isinstance(color, str):
        before += ',"color":[{}, {}, {}]'.format(*(int(channel) for channel in color))
    return before, ',"isLocked":true' if locked is True or locked == 1 else ""


def _class_text(name: object, colors: Mapping[str, Color], classes: dict[str | None, str]) -> str:
    if not isinstance(name, str):
        return ""
    text = classes.get(name)
    if text is None:
        parts = normal_name(name).split(": ")
        color = list(colors.get(name) or default_color(name))
        named = {"name": parts[0]} if len(parts) == 1 else {"names": parts}
        text = classes[name] = f',"classification":{_json({**named, "color": color})}'
    return text


def _geometry_text(
    geometries: Sequence[BaseGeometry] | NDArray[np.object_],
) -> Sequence[str]:
    """Return GeoJSON of geometries, rounded as QuPath rounds: halves go up."""
    rounded = shapely.transform(
        np.asarray(geometries, dtype=object), lambda xy: np.floor(xy * _GRID + 0.5) / _GRID
    )
    texts: list[str | None] = shapely.to_geojson(rounded).tolist()
    return [text if text is not None else "{}" for text in texts]


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return '"NaN"' if value != value else '"Infinity"' if value > 0 else '"-Infinity"'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


_quoted = _json
