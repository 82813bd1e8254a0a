"""Detections of a frame as objects of a ``.qpdata`` stream, made many at a time.

One example of each layout is made from nodes and written; its bytes are then repeated and
the columns that differ (id, vertices, measurements, class, run) put in. What is not a
polygon without holes becomes a GeometryROI, object by object. Detections that are too many
to be held at once are made when the stream is written, and forgotten.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import numpy as np
import shapely
from numpy.typing import NDArray

from pathosam_qupath.errors import ProjectError, UsageError
from pathosam_qupath.qupath.java_objects import JavaArray, JavaObject, JavaString, Node, Run
from pathosam_qupath.qupath.java_runs import CHUNK, Indices, ObjectRun, put_rows, set_column
from pathosam_qupath.qupath.java_shapes import Layout, Shape, learn_shape
from pathosam_qupath.qupath.java_writer import StreamWriter
from pathosam_qupath.qupath.objects import FRAME_COLUMNS, RUN_KEY
from pathosam_qupath.qupath.qpdata_batches import UUID_LENGTH, has_uuids
from pathosam_qupath.qupath.qpdata_build import Color, Nodes
from pathosam_qupath.qupath.qpdata_objects import DETECTION, ID_KEY, map_items, read_parts, text

if TYPE_CHECKING:
    import geopandas as gpd

ID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, eq=False)
class Columns:
    """A frame's columns as arrays; None where there is nothing.

    ``measurements`` is (objects, names); ``geometry`` holds shapely geometries in pixels.
    """

    ids: NDArray[Any]
    classes: NDArray[Any]
    probability: NDArray[np.float64]
    names: NDArray[Any]
    colors: NDArray[Any]
    locked: NDArray[np.bool_]
    parents: NDArray[Any]
    runs: NDArray[Any]
    geometry: NDArray[Any]
    measured: tuple[str, ...]
    measurements: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)


def build_detections(
    frame: gpd.GeoDataFrame, class_colors: Mapping[str, Color], nodes: Nodes
) -> dict[UUID | None, list[Node]]:
    """Objects, and runs of them, under the id of their parent (None: the root).

    Parameters
    ----------
    frame : as ``QpData.add_detections`` takes it.
    class_colors : of classes that ``nodes`` does not know.
    nodes : what may be used again of the stream that the objects are for.

    Raises
    ------
    UsageError : a column that cannot be written, with the row and what is wrong with it.
    """
    columns = read_columns(frame)
    builder = DetectionBuilder(class_colors, nodes)
    groups: dict[Any, list[int]] = {}
    for row, parent in enumerate(columns.parents.tolist()):
        groups.setdefault(parent, []).append(row)
    return {
        None if parent is None else UUID(parent): builder.build(columns, np.array(rows, np.int64))
        for parent, rows in groups.items()
    }


class StreamedRun(Run):
    """Detections that are made while they are written, a frame at a time.

    Parameters
    ----------
    count : how many there are.
    frames : gives them anew at each call, as ``QpData.add_detections`` takes them.
    builder : the same for all runs of a stream.
    """

    def __init__(
        self,
        count: int,
        frames: Callable[[], Iterator[gpd.GeoDataFrame]],
        builder: DetectionBuilder,
    ) -> None:
        self._count = count
        self._frames = frames
        self._builder = builder

    def __len__(self) -> int:
        return self._count

    def write(self, writer: StreamWriter) -> None:
        """Make and write the detections.

        Raises
        ------
        ProjectError : there are not as many as was said, which the stream states before.
        """
        written = 0
        for frame in self._frames():
            columns = read_columns(frame)
            for node in self._builder.build(columns, np.arange(len(columns))):
                writer.node(node)
            written += len(columns)
        if written != self._count:
            raise ProjectError(
                "detections to write",
                f"there are {written:,} of them now, and there were {self._count:,}",
                "Check the disk, then run the same command again.",
            )


def read_columns(frame: gpd.GeoDataFrame) -> Columns:
    """Check a frame's columns and turn them into arrays."""
    count = len(frame)
    measured = tuple(
        c for c in frame.columns if c not in FRAME_COLUMNS and c != frame.geometry.name
    )
    values = np.empty((count, len(measured)))
    for i, name in enumerate(measured):
        try:
            values[:, i] = np.asarray(frame[name], np.float64)
        except (ValueError, TypeError):
            raise UsageError(
                f"column {name!r}",
                f"measurements are numbers, this has {frame[name].dtype}",
                "Leave the column out.",
            ) from None
    kinds = set(_objects(frame, "object_type").tolist()) - {None, "detection"}
    if kinds:
        raise UsageError(
            "detections to write",
            f"they are to be detections, found {sorted(map(str, kinds))}",
            "Write cells, tiles and annotations with QuPath.",
        )
    geometry = np.asarray(frame.geometry.values, object)
    if count and bool((shapely.is_missing(geometry) | shapely.is_empty(geometry)).any()):
        raise UsageError("detections to write", "one has no geometry", "Leave it out.")
    kinds = {g.geom_type for g in geometry[shapely.get_dimensions(geometry) != 2]}
    if kinds:
        raise UsageError(
            "detections to write",
            f"they are to be polygons, found {sorted(kinds)}",
            "Leave out what is no area.",
        )
    for first in range(0, count, CHUNK):
        if not np.isfinite(shapely.get_coordinates(geometry[first : first + CHUNK])).all():
            raise UsageError("detections to write", "a vertex is not finite", "Leave it out.")
    classes = _objects(frame, "classification")
    for row, name in enumerate(classes.tolist()):
        if name is not None and not str(name).strip(" :"):
            classes[row] = None
    ids = _objects(frame, "id")
    for row in np.flatnonzero(ids == None).tolist():  # noqa: E711
        ids[row] = str(uuid4())
    probability = np.full(count, np.nan)
    if "probability" in frame.columns:
        probability = np.asarray(frame["probability"], np.float64)
    locked = np.array([bool(v) for v in _objects(frame, "locked").tolist()], bool)
    return Columns(
        ids=_uuid_texts(ids),
        classes=classes,
        probability=probability,
        names=_objects(frame, "name"),
        colors=_colors(_objects(frame, "color")),
        locked=locked,
        parents=_parents(_objects(frame, "parent")),
        runs=_objects(frame, "run"),
        geometry=geometry,
        measured=measured,
        measurements=values,
    )


def _objects(frame: gpd.GeoDataFrame, name: str) -> NDArray[Any]:
    """A column as Python objects, all kinds of "missing" as None."""
    values = np.full(len(frame), None, object)
    if name in frame.columns:
        found = frame[name]
        present = ~np.asarray(found.isna(), bool)
        values[present] = np.asarray(found, object)[present]
    return values


def _colors(colors: NDArray[Any]) -> NDArray[Any]:
    for row, color in enumerate(colors.tolist()):
        if color is None:
            continue
        try:
            red, green, blue = (int(part) for part in color)
            if not all(0 <= part < 256 for part in (red, green, blue)):
                raise ValueError
        except (TypeError, ValueError):
            raise UsageError(
                f"colour {color!r}", "it is not three numbers in 0…255", "Give red, green, blue."
            ) from None
        colors[row] = (red, green, blue)
    return colors


def _parents(parents: NDArray[Any]) -> NDArray[Any]:
    known: dict[Any, str | None] = {None: None}
    for row, value in enumerate(parents.tolist()):
        if value not in known:
            known[value] = str(_uuid(value, "parent"))
        parents[row] = known[value]
    return parents


def _uuid(value: object, what: str) -> UUID:
    try:
        return UUID(str(value))
    except ValueError:
        raise UsageError(f"{what} {value!r}", "it is no UUID", "Give ids as UUIDs.") from None


def _uuid_texts(ids: NDArray[Any]) -> NDArray[Any]:
    """Ids as QuPath writes them; each is checked."""
    values = ids.tolist()
    if all(isinstance(v, str) and len(v) == UUID_LENGTH and v.isascii() for v in values):
        texts = np.array(values, "S36")
        if has_uuids(texts.view(np.uint8).reshape(len(texts), UUID_LENGTH)):
            return texts
    texts = np.empty(len(ids), "S36")
    for row, value in enumerate(values):
        texts[row] = str(_uuid(value, "id")).encode()
    return texts


class DetectionBuilder:
    """Makes objects for one stream; what they share is made once for all of its frames.

    Parameters
    ----------
    class_colors : of classes that ``nodes`` does not know.
    nodes : what may be used again of the stream.
    """

    def __init__(self, class_colors: Mapping[str, Color], nodes: Nodes) -> None:
        self._class_colors = class_colors
        self._nodes = nodes
        self._run_key = nodes.string(RUN_KEY)
        self._names: dict[tuple[str, ...], JavaObject] = {}
        self._classes: dict[Any, JavaObject] = {}
        self._runs: dict[Any, JavaString] = {}
        self._targets: dict[int, Node] = {}
        self._numbers: dict[Node, int] = {}
        self._layouts: list[Layout] = []
        self._kinds: dict[tuple[Any, ...], tuple[int, bytes]] = {}
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        for value in (False, True):
            self._number(nodes.boolean(value))

    def build(self, columns: Columns, rows: Indices) -> list[Node]:
        """Nodes and runs for some rows of a frame, in their order."""
        self._learn(columns)
        geometry = columns.geometry[rows]
        simple = shapely.get_type_id(geometry) == 3
        simple[simple] = shapely.get_num_interior_rings(geometry[simple]) == 0
        built: list[Node] = []
        cuts = np.flatnonzero(np.diff(simple)) + 1
        for part in np.split(rows, cuts):
            if len(part) == 0:
                continue
            if simple[np.searchsorted(rows, part[0])]:
                built.append(self._run(columns, part))
            else:
                built.extend(self._with_geometry(columns, row) for row in part.tolist())
        return built

    def _learn(self, columns: Columns) -> None:
        """Make what the rows refer to, and number it."""
        if columns.measured and columns.measured not in self._names:
            self._names[columns.measured] = self._nodes.names(columns.measured)
        for name in dict.fromkeys(columns.classes.tolist()):
            if name is not None and name not in self._classes:
                self._classes[name] = self._nodes.path_class(str(name), self._class_colors)
                self._number(self._classes[name])
        for run in dict.fromkeys(columns.runs.tolist()):
            if run is not None and run not in self._runs:
                self._runs[run] = self._nodes.string(str(run))
                self._number(self._runs[run])

    def _number(self, shared: Node) -> None:
        """Give a number to what objects refer to."""
        number = self._numbers.setdefault(shared, len(self._numbers))
        self._targets[number] = shared

    def _with_geometry(self, columns: Columns, row: int) -> JavaObject:
        """A GeometryROI, in the byte order that QuPath writes."""
        wkb = shapely.to_wkb(shapely.force_2d(columns.geometry[row]), byte_order=0)
        return self._example(columns, row, self._nodes.geometry(wkb))

    def _example(self, c: Columns, row: int, roi: JavaObject) -> JavaObject:
        run, cls = c.runs[row], c.classes[row]
        measurements = None
        if c.measured:
            measurements = self._nodes.measurements(self._names[c.measured], c.measurements[row])
        return self._nodes.detection(
            UUID(c.ids[row].decode()),
            roi,
            run=None if run is None else self._runs[run],
            run_key=self._run_key,
            measurements=measurements,
            path_class=None if cls is None else self._classes[cls],
            probability=float(c.probability[row]),
            locked=bool(c.locked[row]),
            name=None if c.names[row] is None else str(c.names[row]),
            color=c.colors[row],
        )

    def _run(self, c: Columns, rows: Indices) -> ObjectRun:
        """Polygons without holes, as bytes."""
        counts = shapely.get_num_coordinates(c.geometry[rows]) - 1
        kinds = np.empty(len(rows), np.int32)
        groups: dict[tuple[Any, ...], list[int]] = {}
        plain = (c.names[rows] == None) & (c.colors[rows] == None)  # noqa: E711
        flags = zip(
            counts.tolist(),
            (c.classes[rows] != None).tolist(),  # noqa: E711
            (c.runs[rows] != None).tolist(),  # noqa: E711
            plain.tolist(),
            strict=True,
        )
        for i, (count, has_class, has_run, is_plain) in enumerate(flags):
            named = () if is_plain else (c.names[rows[i]], c.colors[rows[i]])
            key = (count, has_class, has_run, named, c.measured)
            groups.setdefault(key, []).append(i)
        members = []
        for key, group in groups.items():
            kind, template = self._layout(c, key, int(rows[group[0]]))
            which = np.array(group, np.int64)
            kinds[which] = kind
            members.append((kind, template, which))
        sizes = np.array([layout.size for layout in self._layouts], np.int64)[kinds]
        ends = np.cumsum(sizes)
        data = np.empty(int(ends[-1]), np.uint8)
        for kind, template, which in members:
            for first in range(0, len(which), CHUNK):
                part = which[first : first + CHUNK]
                table = self._fill(c, self._layouts[kind], template, rows[part])
                put_rows(data, ends[part] - len(template), table)
        return ObjectRun(data, ends - sizes, kinds, self._layouts, self._targets)

    def _layout(self, c: Columns, key: tuple[Any, ...], row: int) -> tuple[int, bytes]:
        """A layout's number and an example's bytes, by what makes layouts differ."""
        if key not in self._kinds:
            vertices = np.zeros(key[0], np.float32)
            example = self._example(c, row, self._nodes.polygon(vertices, vertices))
            for shared in self._shared(example):
                self._number(shared)
            file = io.BytesIO()
            writer = StreamWriter(file)
            writer.handles = dict(self._numbers)
            writer.next_handle = 1 << 30
            writer.node(example)
            writer.flush()
            raw = file.getvalue()
            shape = self._shapes.get(key[1:])
            found = shape.match(raw, 0) if shape is not None else None
            if shape is None or found is None:
                shape = learn_shape(raw, self._targets, 1 << 30, {DETECTION})
                if shape is None:
                    raise TypeError("an example of a detection is not regular")
                self._shapes[key[1:]] = shape
                found = shape.match(raw, 0)
            if found is None:
                raise TypeError("an example of a detection is not of its own shape")
            self._kinds[key] = len(self._layouts), raw
            self._layouts.append(Layout(shape, found[1]))
        return self._kinds[key]

    def _shared(self, example: JavaObject) -> Iterator[Node]:
        """What an example shares with others: classes, lists, strings, its PathClass."""
        parts = read_parts(example, "an example")
        below = (parts.metadata, parts.measurements, parts.roi, parts.color)
        own = [example, *(part for part in below if isinstance(part, JavaObject))]
        for part in own:
            yield part.of
            for node in (*part.contents, *(v for d in part.data for v in d.values)):
                if isinstance(node, JavaArray):
                    yield node.of
        for key, value in map_items(parts.metadata):
            yield key
            if text(key) != ID_KEY:
                yield value
        if isinstance(parts.metadata, JavaObject):
            yield parts.metadata.contents[0]
        yield from self._names.values()

    def _fill(
        self, c: Columns, layout: Layout, template: bytes, rows: Indices
    ) -> NDArray[np.uint8]:
        """The template once for each row, with the row's own values."""
        table = np.tile(np.frombuffer(template, np.uint8), (len(rows), 1))
        parts = read_parts(layout.shape.example, "an example")
        roi, measurements = parts.roi, parts.measurements
        items = {text(getattr(k, "target", k)): v for k, v in map_items(parts.metadata)}
        identifier = layout.offset(items[ID_KEY])
        letters = np.ascontiguousarray(c.ids[rows]).view(np.uint8).reshape(len(rows), 36)
        table[:, identifier : identifier + 36] = letters
        if not isinstance(roi, JavaObject):
            raise TypeError("an example of a detection has no ROI")
        x, y = roi.raw("x"), roi.raw("y")
        count = layout.length(x)
        xy = shapely.get_coordinates(c.geometry[rows]).reshape(len(rows), count + 1, 2)
        for axis, array in enumerate((x, y)):
            _set(table, layout.offset(array), ">f4", xy[:, :-1, axis])
        if isinstance(measurements, JavaObject):
            array = measurements.raw("values")
            _set(table, layout.offset(array), ">f8", c.measurements[rows])
        set_column(table, layout.offset(parts.last), ">f8", c.probability[rows])
        booleans = [self._numbers[self._nodes.boolean(b)] for b in (False, True)]
        locked = np.array(booleans)[c.locked[rows].astype(int)]
        set_column(table, layout.offset(parts.locked), ">u4", locked)
        for part, values, found in (
            (parts.path_class, c.classes, self._classes),
            (items.get(RUN_KEY), c.runs, self._runs),
        ):
            if part is not None:
                numbers = [self._numbers[found[v]] for v in values[rows].tolist()]
                set_column(table, layout.offset(part), ">u4", np.array(numbers))
        return table


def _set(table: NDArray[np.uint8], offset: int, dtype: str, values: NDArray[Any]) -> None:
    raw = np.ascontiguousarray(values, dtype).view(np.uint8).reshape(len(table), -1)
    table[:, offset : offset + raw.shape[1]] = raw
