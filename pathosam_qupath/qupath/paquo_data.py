"""The contents of a ``data.qpdata`` file as QuPath's own Java objects.

QuPath's ``PathIO`` reads a file into an ``ImageData``, and on the way opens the image,
adds steps to the workflow and forgets the Locale. So here the stream's objects are read
one by one with QuPath's classes, only the hierarchy is changed, and all are written
again in the same order: what was not changed is what it was, and a missing image is no
obstacle. What QuPath itself does to objects when it reads them remains: a GeometryROI's
vertices are rounded to 0.01 px (from 0.6), and in one process a class name has one
colour, that of the project's list or else the one that was read first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from uuid import UUID

import numpy as np
import pandas as pd
from jpype import JArray, JByte, JClass, JException, JInt
from numpy.typing import NDArray

from pathosam_qupath.errors import BackendError, FormatError, ProjectError
from pathosam_qupath.qupath import java_columns as columns
from pathosam_qupath.qupath.java_columns import Java
from pathosam_qupath.qupath.jvm import MEMORY_VARIABLE
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.paquo_detections import Color, make_annotation, make_detections
from pathosam_qupath.qupath.paquo_objects import (
    OBJECT,
    detections_frame,
    id_keys,
    path_object_method,
    path_objects,
    uuid_keys,
)

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.qupath.project import DetectionBatches

_HIERARCHY = "qupath.lib.objects.hierarchy.PathObjectHierarchy"
_BUFFER = 1 << 16
_REMEDY = "Restore data.qpdata.bkp, or try the embedded backend (--backend embedded)."


class PaquoData:
    """What is in a ``data.qpdata`` file; QuPath must have been started.

    The interface is that of :class:`~pathosam_qupath.qupath.qpdata.QpData`.
    """

    def __init__(self, version_line: Java, parts: list[Java], subject: object) -> None:
        self._version_line = version_line
        self._parts = parts
        self._subject = subject
        hierarchy = _first(parts, _HIERARCHY)
        if hierarchy is None:
            raise FormatError(subject, "holds no hierarchy of objects", _REMEDY)
        self._root = hierarchy.getRootObject()

    @classmethod
    def read(cls, source: Path | bytes) -> PaquoData:
        """Read a file, or its bytes.

        Raises
        ------
        FormatError : not QuPath's data, damaged, or with classes that this QuPath lacks.
        BackendError : Java's memory does not suffice.
        """
        subject = "image data" if isinstance(source, bytes) else source
        with _java_errors(subject, "QuPath cannot read it"):
            if isinstance(source, bytes):
                stream = JClass("java.io.ByteArrayInputStream")(JArray(JByte)(source))
            else:
                stream = JClass("java.io.FileInputStream")(str(source))
            try:
                return cls(*_read_stream(stream, subject), subject)
            finally:
                stream.close()

    def write(self, file: BinaryIO) -> None:
        """Write the stream to an open file on disk, whose ``name`` is its path."""
        with _java_errors(self._subject, "QuPath cannot write it"):
            stream = JClass("java.io.FileOutputStream")(str(file.name))
            try:
                buffered = JClass("java.io.BufferedOutputStream")(stream, JInt(_BUFFER))
                writer = JClass("java.io.ObjectOutputStream")(buffered)
                writer.writeUTF(self._version_line)
                for part in self._parts:
                    writer.writeObject(part)
                writer.flush()
            finally:
                stream.close()

    @property
    def image_type(self) -> str | None:
        """QuPath's constant, for instance "BRIGHTFIELD_H_E"; None where there is none."""
        found = _first(self._parts, "qupath.lib.images.ImageData$ImageType")
        return None if found is None else str(found.name())

    def objects(self) -> list[PathObject]:
        """Every object but the root, parents before children, in QuPath's order."""
        with _java_errors(self._subject, "QuPath cannot read its objects"):
            return path_objects(self._flattened())

    def annotations(self) -> list[PathObject]:
        """The annotations alone, in the same order."""
        with _java_errors(self._subject, "QuPath cannot read its objects"):
            return path_objects(self._those("isAnnotation"))

    def detections(self) -> gpd.GeoDataFrame:
        """Detections, cells and tiles, a row each.

        Columns are ``FRAME_COLUMNS`` (ids and parents as text; geometry in full-resolution
        pixels, no CRS) and a float column for each measurement, NaN where there is none.
        """
        with _java_errors(self._subject, "QuPath cannot read its objects"):
            return detections_frame(self._those("isDetection"))

    def remove(self, ids: Collection[UUID]) -> int:
        """Take objects out by id; their children move to the end of their parent's list.

        Returns
        -------
        int : how many of them there were.

        Raises
        ------
        ProjectError : one of them is a TMA core, which the grid needs.
        """
        if not ids:
            return 0
        objects = self._flattened()
        removed = columns.take(objects, np.flatnonzero(np.isin(id_keys(objects), uuid_keys(ids))))
        cores = columns.flags(removed, path_object_method("isTMACore", "boolean"))
        if cores.any():
            core = removed.get(int(np.flatnonzero(cores)[0])).getID()
            raise ProjectError(
                self._subject,
                f"TMA core {core} cannot be removed, the TMA grid refers to it",
                "Remove the TMA grid in QuPath.",
            )
        gone = JClass("java.util.HashSet")(removed)
        owners, parents = columns.codes(removed, path_object_method("getParent", OBJECT))
        for code, parent in enumerate(parents):
            if gone.contains(parent):
                continue
            some = columns.take(removed, np.flatnonzero(owners == code))
            moved = [child for top in _with_children(some) for child in _survivors(top, gone)]
            parent.removeChildObjects(some)
            if moved:
                parent.addChildObjects(JClass("java.util.ArrayList")(moved))
        return int(removed.size())

    def add_detections(
        self, frame: gpd.GeoDataFrame, class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append detections to their parents' children.

        Parameters
        ----------
        frame : columns ``FRAME_COLUMNS`` (``geometry`` in full-resolution pixels; all but
            that optional); every further column is a measurement.
        class_colors : of classes that QuPath does not know yet.

        Raises
        ------
        ProjectError : a parent is not in the hierarchy; nothing is changed then.
        """
        with _java_errors(self._subject, "QuPath cannot add the detections"):
            parents, parent_of = self._parents(frame)
            order = np.argsort(parent_of, kind="stable")
            new = make_detections(frame.iloc[order], class_colors or {})
            start = 0
            for code, parent in enumerate(parents):
                end = start + int((parent_of == code).sum())
                parent.addChildObjects(new.subList(start, end))
                start = end

    def add_batches(
        self, batches: DetectionBatches, class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append detections that come some at a time.

        QuPath's objects of all of them are in Java's memory when this returns; outside of
        it there is one frame at a time.
        """
        with _java_errors(self._subject, "QuPath cannot add the detections"):
            ids = list(batches.counts)
            parents, _ = self._parents(pd.DataFrame({"parent": ids}, dtype=object))
            for name, parent in zip(ids, parents, strict=True):
                for frame in batches.under(name):
                    parent.addChildObjects(make_detections(frame, class_colors or {}))

    def add_annotations(
        self, annotations: Sequence[PathObject], class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append annotations to their parents' children, in their order.

        Measurements are not written. Rectangles and ellipses are written as such.

        Raises
        ------
        ProjectError : a parent is not in the hierarchy.
        """
        with _java_errors(self._subject, "QuPath cannot add the annotations"):
            for annotation in annotations:
                new = make_annotation(annotation, class_colors or {})
                parent = None if annotation.parent is None else str(annotation.parent)
                [under], _ = self._parents(pd.DataFrame({"parent": [parent]}))
                under.addChildObject(new)

    def _flattened(self) -> Java:
        tools = JClass("qupath.lib.objects.PathObjectTools")
        return tools.getFlattenedObjectList(self._root, None, False)

    def _those(self, question: str) -> Java:
        objects = self._flattened()
        chosen = columns.flags(objects, path_object_method(question, "boolean"))
        return columns.take(objects, np.flatnonzero(chosen))

    def _parents(self, frame: pd.DataFrame) -> tuple[list[Java], NDArray[np.int64]]:
        """Return the distinct parents, and which of them each row has."""
        places: dict[str | None, int] = {}
        texts = frame["parent"] if "parent" in frame else [None] * len(frame)
        names = [text if isinstance(text, str) else None for text in texts]
        parent_of = np.array([places.setdefault(name, len(places)) for name in names], np.int64)
        objects = self._flattened() if any(places) else None
        keys = None if objects is None else id_keys(objects)
        parents = []
        for name in places:
            if name is None or objects is None:
                parents.append(self._root)
                continue
            at = np.flatnonzero(keys == uuid_keys([UUID(name)])[0])
            if not len(at):
                raise ProjectError(
                    self._subject,
                    f"there is no object {name} to put detections under",
                    "Read the image's annotations again: it may have changed.",
                )
            parents.append(objects.get(int(at[0])))
        return parents, parent_of


@contextmanager
def _java_errors(subject: object, what: str) -> Iterator[None]:
    """Turn Java's exceptions into this package's errors."""
    try:
        yield
    except JException as error:
        cause = error
        while isinstance(cause, JClass("java.lang.reflect.UndeclaredThrowableException")):
            cause = cause.getCause()
        if isinstance(cause, JClass("java.lang.OutOfMemoryError")):
            limit = int(JClass("java.lang.Runtime").getRuntime().maxMemory()) >> 20
            raise BackendError(
                subject,
                f"QuPath needs more than the {limit} MB that its Java machine may use",
                f"Set {MEMORY_VARIABLE} to more, for instance {2 * limit}m, "
                "or use the embedded backend (--backend embedded).",
            ) from error
        raise FormatError(subject, f"{what} ({cause})", _REMEDY) from error


def _read_stream(stream: Java, subject: object) -> tuple[Java, list[Java]]:
    """Return the version text of a stream and the objects that follow it."""
    buffered = JClass("java.io.BufferedInputStream")(stream, JInt(_BUFFER))
    reader = JClass("qupath.lib.io.PathIO").createObjectInputStream(buffered)
    version_line = reader.readUTF()
    if not str(version_line).startswith("Data file version"):
        raise FormatError(subject, "it does not begin with QuPath's 'Data file version'", _REMEDY)
    # Java looks classes up with the loader of whoever called; called from Python that is
    # not the one that has QuPath's classes. A proxy of an interface from QuPath's own
    # folder is made by that loader, and so the call comes from there.
    read = columns.method("java.io.ObjectInputStream", "readObject", "java.lang.Object")
    next_object = columns.proxy("com.google.common.base.Supplier", read.bindTo(reader))
    parts: list[Java] = []
    while not (parts and _is_end(parts[-1])):
        parts.append(next_object.get())
    return version_line, parts


def _first(parts: list[Java], class_name: str) -> Java | None:
    kind = JClass(class_name)
    return next((part for part in parts if isinstance(part, kind)), None)


def _is_end(part: Java) -> bool:
    return isinstance(part, JClass("java.lang.String")) and str(part) == "EOF"


def _with_children(objects: Java) -> list[Java]:
    """Return those of the objects that have children."""
    counts = columns.longs(objects, path_object_method("nChildObjects", "int"))
    return [objects.get(int(at)) for at in np.flatnonzero(counts)]


def _survivors(removed: Java, gone: Java) -> list[Java]:
    """Return what is left below a removed object: its own children, then deeper ones."""
    children = list(removed.getChildObjectsAsArray())
    kept = [child for child in children if not gone.contains(child)]
    deeper = [c for child in children if gone.contains(child) for c in _survivors(child, gone)]
    return kept + deeper
