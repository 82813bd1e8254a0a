"""Leaf detections that are kept as bytes, read by columns.

Detections, cells and tiles of a big slide are runs of bytes (``java_runs``). A batch is
some of them that have the same layout, class, metadata keys and measurements; each of
its methods is a column. What is not of a form that is known here is read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar
from uuid import UUID, uuid5

import numpy as np
import shapely
from numpy.typing import NDArray

from pathosam_qupath.qupath.java_objects import (
    JavaArray,
    JavaObject,
    JavaString,
    Node,
    Reference,
    decode_utf,
)
from pathosam_qupath.qupath.java_runs import Bytes, Indices, ObjectRun, column
from pathosam_qupath.qupath.java_shapes import Layout, PlacedBytes, Shape
from pathosam_qupath.qupath.objects import ObjectType, PathObject, Plane
from pathosam_qupath.qupath.qpdata_forms import Form, read_form
from pathosam_qupath.qupath.qpdata_objects import (
    ID_KEY,
    NO_ID,
    boxed,
    classification,
    color,
    damaged,
    is_instance,
    list_items,
    read_object,
    read_parts,
    text,
)
from pathosam_qupath.qupath.qpdata_rois import PLANE, ellipses, rectangles

T = TypeVar("T")
UUID_LENGTH = 36
CORNERS = ("x", "y", "x2", "y2")


class RegularBatch:
    """Objects of one layout, with the same metadata keys and measurement names."""

    def __init__(
        self,
        indices: Indices,
        layout: Layout,
        form: Form,
        rows: Bytes,
        nodes: Mapping[int, Node],
        subject: object,
    ) -> None:
        self.indices = indices
        self._layout = layout
        self._form = form
        self._rows = rows
        self._nodes = nodes
        self._subject = subject

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def object_type(self) -> ObjectType:
        """Of all the objects."""
        return self._form.object_type

    @property
    def roi_kind(self) -> str:
        """Of all the objects' ROIs."""
        return self._form.roi_kind

    @cached_property
    def keys(self) -> list[str | None]:
        """The metadata's keys."""
        keys = [text(self._first_target(key)) for key in self._form.keys]
        if None in keys:
            raise damaged(self._subject, "a key of an object's metadata is no string")
        return keys

    @cached_property
    def measurement_names(self) -> list[str]:
        """The measurements' names, as many as have values."""
        found = [self._first_target(part) for part in self._form.names]
        if isinstance(self._form.numbers, JavaArray):
            found = list_items(found[0])
        return [text(name) or "" for name in found]

    def measurements(self) -> NDArray[np.float64]:
        """Values (objects, names)."""
        numbers = self._form.numbers
        names = self.measurement_names
        if not isinstance(numbers, JavaArray):
            values = np.empty((len(self), len(numbers)))
            for i, number in enumerate(numbers):
                dtype = ">f8" if len(number) == 8 else ">f4"
                values[:, i] = column(self._rows, self._layout.offset(number), dtype)
            return values
        count = self._layout.length(numbers)
        if count < len(names):
            raise damaged(self._subject, f"{len(names)} measurements have {count} values")
        dtype = ">f8" if numbers.of.name == "[D" else ">f4"
        values = column(self._rows, self._layout.offset(numbers), dtype, count)
        return values[:, : len(names)].astype(np.float64)

    def ids(self) -> list[str]:
        """The objects' ids."""
        return self.texts(self._form.values[self.keys.index(ID_KEY)])

    def metadata(self, key: str) -> list[str | None]:
        """The values of a key."""
        if key not in self.keys:
            return [None] * len(self)
        return self.texts(self._form.values[self.keys.index(key)])

    def names(self) -> list[str | None]:
        """The objects' names."""
        return self.texts(self._form.parts.name)

    def classifications(self) -> list[str | None]:
        """The names of their classes."""
        part = self._form.parts.path_class
        return self._targets(part, lambda node: classification(node, self._subject))

    def locked(self) -> list[bool | None]:
        """Whether each is locked."""
        return self._targets(self._form.parts.locked, self._boolean)

    def _boolean(self, node: Node) -> bool:
        if not is_instance(node, "java.lang.Boolean"):
            raise damaged(self._subject, "what says whether an object is locked is no Boolean")
        return bool(boxed(node))

    def colors(self) -> list[tuple[int, int, int] | None]:
        """Their own colours, not their classes'."""
        part = self._form.parts.color
        if isinstance(part, JavaObject):
            packed = column(self._rows, self._layout.offset(part.raw("value")), ">i4").tolist()
            return [((p >> 16) & 255, (p >> 8) & 255, p & 255) for p in packed]
        return self._targets(part, color)

    def probabilities(self) -> NDArray[np.float64]:
        """Of the class; NaN where there is none."""
        last = self._form.parts.last
        return column(self._rows, self._layout.offset(last), ">f8").astype(np.float64)

    def geometries(self) -> NDArray[Any]:
        """Their ROIs in full-resolution pixels."""
        roi = self._form.roi
        if self._form.roi_kind == "Polygon":
            return self._polygons(roi)
        if self._form.roi_kind == "Geometry":
            return self._geometries(roi.raw("wkb"))
        corners = np.stack([self._field(roi, f, ">f8") for f in CORNERS], axis=1).astype(float)
        with np.errstate(invalid="ignore"):
            return (rectangles if self._form.roi_kind == "Rectangle" else ellipses)(corners)

    def nuclei(self) -> NDArray[Any]:
        """A cell's nucleus, or None."""
        nucleus = self._form.nucleus
        if nucleus is None:
            return np.full(len(self), None, object)
        return self._polygons(nucleus)

    def planes(self) -> list[Plane]:
        """Their ROIs' planes."""
        roi = self._form.roi
        fields = [
            [default] * len(self) if roi.raw(f) is None else self._field(roi, f, ">i4").tolist()
            for f, default in PLANE
        ]
        shared: dict[tuple[int, ...], Plane] = {}
        return [shared.setdefault(p, Plane(*p)) for p in zip(*fields, strict=True)]

    def objects(self, parent: UUID | None) -> Iterator[tuple[int, PathObject]]:
        """The objects as plain values, with their indices in the run."""
        keys = [k for k in self.keys if k != ID_KEY]
        pairs = zip(*(self.metadata(k or "") for k in keys), strict=True) if keys else None
        metadata = [dict(zip(keys, row, strict=True)) for row in pairs or [()] * len(self)]
        probabilities = [None if p != p else p for p in self.probabilities().tolist()]
        columns = zip(
            self.indices.tolist(),
            self.ids(),
            self.geometries(),
            self.classifications(),
            probabilities,
            self.names(),
            self.colors(),
            self.locked(),
            self.measurements().tolist(),
            metadata,
            self.planes(),
            self.nuclei(),
            strict=True,
        )
        names = self.measurement_names
        for i, uid, geometry, cls, p, name, rgb, lock, values, pairs_, plane, nucleus in columns:
            yield (
                i,
                PathObject(
                    id=UUID(uid),
                    object_type=self.object_type,
                    geometry=geometry,
                    roi=self.roi_kind,
                    classification=cls,
                    probability=p,
                    name=name,
                    color=rgb,
                    locked=lock,
                    measurements=dict(zip(names, values, strict=True)),
                    metadata=pairs_,
                    parent=parent,
                    plane=plane,
                    nucleus=nucleus,
                ),
            )

    def texts(self, part: Node) -> list[Any]:
        """Strings, written out or referred to; None where there is none."""
        if isinstance(part, JavaString):
            count = self._layout.length(part)
            if count == 0:
                return [""] * len(self)
            raw = column(self._rows, self._layout.offset(part), f"S{count}").tolist()
            if self._rows[:, self._layout.offset(part) :][:, :count].max() < 128:
                return [r.decode() for r in raw]
            return [decode_utf(r) for r in raw]
        return self._targets(part, text)

    def _field(self, node: JavaObject, name: str, dtype: str) -> NDArray[Any]:
        raw = node.raw(name)
        if not isinstance(raw, PlacedBytes):
            raise damaged(self._subject, f"{node.of.name} lacks {name}")
        return column(self._rows, self._layout.offset(raw), dtype)

    def _polygons(self, roi: JavaObject) -> NDArray[Any]:
        x, y = roi.raw("x"), roi.raw("y")
        count = self._layout.length(x)
        if count != self._layout.length(y):
            raise damaged(self._subject, f"a polygon has {count} x and another number of y")
        if count < 3:
            empty: NDArray[Any] = np.full(len(self), shapely.Polygon(), object)
            return empty
        vertices = np.empty((len(self), count, 2))
        try:
            with np.errstate(invalid="ignore"):  # a vertex that is not a number stays one
                for axis, array in enumerate((x, y)):
                    offset = self._layout.offset(array)
                    vertices[:, :, axis] = column(self._rows, offset, ">f4", count)
                return np.asarray(shapely.polygons(shapely.linearrings(vertices)))
        except shapely.errors.ShapelyError as error:
            raise damaged(self._subject, f"a polygon cannot be read ({error})") from error

    def _geometries(self, wkb: JavaArray) -> NDArray[Any]:
        count = self._layout.length(wkb)
        raw = column(self._rows, self._layout.offset(wkb), f"V{max(count, 1)}").tolist()
        try:
            return np.asarray(shapely.from_wkb(raw))
        except shapely.errors.ShapelyError as error:
            raise damaged(self._subject, f"a Geometry ROI cannot be read ({error})") from error

    def _first_target(self, part: Reference) -> Node:
        number = column(self._rows[:1], self._layout.offset(part), ">u4")[0]
        return self._nodes[int(number)]

    def _targets(self, part: Node, read: Callable[[Node], T]) -> list[T | None]:
        if not isinstance(part, Reference):
            return [None] * len(self)
        numbers = column(self._rows, self._layout.offset(part), ">u4")
        if (numbers == numbers[0]).all():
            return [read(self._nodes[int(numbers[0])])] * len(self)
        unique, inverse = np.unique(numbers, return_inverse=True)
        values = [read(self._nodes[n]) for n in unique.tolist()]
        return [values[i] for i in inverse.tolist()]


class SingleBatch:
    """One object that is of no known form, read through nodes."""

    def __init__(self, index: int, value: PathObject) -> None:
        self.indices: Indices = np.array([index])
        self.value = value

    def __len__(self) -> int:
        return 1

    def objects(self, parent: UUID | None) -> Iterator[tuple[int, PathObject]]:
        """The object, with its index in the run."""
        yield int(self.indices[0]), self.value


def read_batches(
    run: ObjectRun, parent: UUID | None, subject: object
) -> Iterator[RegularBatch | SingleBatch]:
    """All objects of a run in which none is expanded; ``indices`` are into the run."""
    forms: dict[Shape, Form | None] = {}
    for layout, indices, rows in run.tables():
        shape = layout.shape
        if shape not in forms:
            forms[shape] = read_form(shape)
        form = forms[shape]
        single = indices
        if form is not None:
            structure = [*form.keys, *form.names]
            numbers = np.stack(
                [column(rows, layout.offset(part), ">u4") for part in structure], axis=1
            )
            left = [indices[:0]]
            for which in _alike(numbers):
                part = rows[which]
                batch = RegularBatch(indices[which], layout, form, part, run.nodes, subject)
                if _has_ids(batch, form, layout, part):
                    yield batch
                else:
                    left.append(indices[which])
            single = np.concatenate(left)
        for index in single.tolist():
            node = run.node(index)
            parts = read_parts(node, subject)
            given = uuid5(NO_ID, str(int(run.starts[index])))
            value = read_object(node, parts, given, parent, subject)
            if value is not None:
                yield SingleBatch(index, value)


def _alike(numbers: NDArray[Any]) -> Iterator[slice | Indices]:
    """Which rows are the same, group by group."""
    if (numbers == numbers[0]).all():
        yield slice(None)
        return
    inverse = np.unique(numbers, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(inverse, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)


def has_uuids(letters: NDArray[np.uint8]) -> bool:
    """Whether every row (objects, 36) of letters is a UUID as Java and Python write it."""
    dash = letters == ord("-")
    digit = ((letters >= 48) & (letters <= 57)) | ((letters >= 97) & (letters <= 102))
    wanted = np.zeros(UUID_LENGTH, bool)
    wanted[[8, 13, 18, 23]] = True
    return bool((np.where(wanted, dash, digit)).all())


def _has_ids(batch: RegularBatch, form: Form, layout: Layout, rows: Bytes) -> bool:
    """Whether every id is there and written as UUIDs are."""
    if ID_KEY not in batch.keys:
        return False
    part = form.values[batch.keys.index(ID_KEY)]
    if not isinstance(part, JavaString) or layout.length(part) != UUID_LENGTH:
        return False
    offset = layout.offset(part)
    return has_uuids(rows[:, offset : offset + UUID_LENGTH])


def indices_of(run: ObjectRun, ids: Collection[UUID], subject: object) -> list[int]:
    """Where in a run the objects of these ids are."""
    wanted = {str(i) for i in ids}
    found: list[int] = []
    for batch in read_batches(run, None, subject):
        if isinstance(batch, RegularBatch):
            pairs = zip(batch.indices.tolist(), batch.ids(), strict=True)
            found.extend(index for index, text_ in pairs if text_ in wanted)
        elif batch.value.id in ids:
            found.append(int(batch.indices[0]))
    return found


def without_ids(run: ObjectRun, ids: Collection[UUID], subject: object) -> ObjectRun:
    """The run without some of its objects; the same run where it has none of them."""
    keep = np.ones(len(run), bool)
    keep[indices_of(run, ids, subject)] = False
    return run if keep.all() else run.take(keep)
