"""Read and change a ``data.qpdata`` file without Java.

The file is a Java object stream: a version, a JSON text about the image, and QuPath's
image data with its hierarchy of objects. Only the hierarchy is ever changed here;
everything else, known or not, is written as it was read.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID, uuid4

from pathosam_qupath.errors import ProjectError
from pathosam_qupath.qupath.java_objects import JavaObject, Node
from pathosam_qupath.qupath.java_runs import ObjectRun, RunFinder
from pathosam_qupath.qupath.java_serialization import read_stream, write_stream
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.qpdata_batches import read_batches
from pathosam_qupath.qupath.qpdata_build import Color, Nodes, new_stream, walk_nodes
from pathosam_qupath.qupath.qpdata_detections import (
    DetectionBuilder,
    StreamedRun,
    build_detections,
)
from pathosam_qupath.qupath.qpdata_frames import FrameBuilder
from pathosam_qupath.qupath.qpdata_hierarchy import HIERARCHY, Hierarchy, Place, TmaGrid
from pathosam_qupath.qupath.qpdata_image import (
    WorkflowStep,
    find,
    read_image_type,
    read_properties,
    read_server,
    read_stains,
    read_version,
    read_workflow,
)
from pathosam_qupath.qupath.qpdata_objects import DETECTION, object_type, read_object

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.qupath.project import DetectionBatches

DETECTIONS = ("detection", "cell", "tile")

__all__ = ["QpData", "TmaGrid", "WorkflowStep"]


class QpData:
    """The contents of a ``data.qpdata`` file.

    Examples
    --------
    >>> data = QpData.read("project/data/1/data.qpdata")  # doctest: +SKIP
    >>> nuclei = data.detections()  # doctest: +SKIP
    """

    def __init__(self, nodes: list[Node], subject: object = "image data") -> None:
        self._nodes = nodes
        self._subject = subject
        self.version = read_version(nodes, subject)
        """The data file version that the file states; 0 where that is no number."""
        self._hierarchy = Hierarchy(find(nodes, HIERARCHY), subject)

    @classmethod
    def read(cls, source: str | Path | bytes) -> QpData:
        """Read a file, or its bytes.

        Raises
        ------
        FormatError : no QuPath data, or damaged (with the offset and what was expected).
        ProjectError : the file cannot be read.
        """
        if isinstance(source, bytes):
            data, subject = source, "image data"
        else:
            subject = str(source)
            try:
                data = Path(source).read_bytes()
            except OSError as error:
                raise ProjectError(
                    source, f"cannot be read: {error.strerror}", "Check the path and its rights."
                ) from error
        nodes = read_stream(data, subject, lambda reader: RunFinder(reader, {DETECTION}))
        if not Hierarchy(find(nodes, HIERARCHY), subject).has_ids():
            nodes = read_stream(data, subject)
        return cls(nodes, subject)

    @classmethod
    def new(
        cls,
        server: Mapping[str, Any],
        *,
        identifier: str | None = None,
        image_type: str = "UNSET",
        properties: Mapping[str, str] | None = None,
    ) -> QpData:
        """The data of an image that has none yet.

        Parameters
        ----------
        server : the entry's server builder, as the project's JSON has it.
        identifier : what QuPath notes as the image's id, often the file's path; it does
            not look there.
        image_type : QuPath's constant: "BRIGHTFIELD_H_E", "BRIGHTFIELD_H_DAB",
            "FLUORESCENCE", "OTHER", "UNSET" …
        properties : for instance ``{"PROJECT_ENTRY_ID": "<project file>::<entry id>"}``.
        """
        return cls(new_stream(server, image_type, identifier, uuid4(), properties or {}))

    def write(self, file: BinaryIO) -> None:
        """Write the stream; byte for byte what was read where nothing was changed."""
        write_stream(self._nodes, file)

    def to_bytes(self) -> bytes:
        """The stream in memory."""
        file = io.BytesIO()
        self.write(file)
        return file.getvalue()

    @property
    def server(self) -> dict[str, Any] | None:
        """The JSON about the image: ``dataVersion``, ``qupathVersion``, ``server``, ``id``."""
        return read_server(self._nodes)

    @property
    def image_type(self) -> str | None:
        """QuPath's constant, for instance "BRIGHTFIELD_H_E"; None where there is none."""
        return read_image_type(self._nodes)

    @property
    def stains(self) -> dict[str, str] | None:
        """Names, vectors and background of the stains, as QuPath's script line has them."""
        return read_stains(self._nodes, self._subject)

    @property
    def workflow(self) -> list[WorkflowStep]:
        """The image's history; steps of an unknown kind have an empty script."""
        return read_workflow(self._nodes)

    @property
    def properties(self) -> dict[str, Any]:
        """The image's properties; a value of an unknown class is "<its class>"."""
        return read_properties(self._nodes)

    @property
    def tma_grid(self) -> TmaGrid | None:
        """The grid of a tissue microarray, or None."""
        return self._hierarchy.tma_grid()

    def objects(self) -> list[PathObject]:
        """Every object but the root, parents before children, in QuPath's order."""
        found: list[PathObject] = []
        for place in self._hierarchy.walk():
            if isinstance(place.node, ObjectRun):
                batches = read_batches(place.node, place.parent, self._subject)
                rows = [pair for batch in batches for pair in batch.objects(place.parent)]
                rows.sort(key=lambda pair: pair[0])
                found.extend(value for _, value in rows)
            elif (value := self._object(place)) is not None:
                found.append(value)
        return found

    def annotations(self) -> list[PathObject]:
        """The annotations alone, in the same order; cheap beside many detections."""
        places = self._hierarchy.walk(runs=False)
        found = (self._object(p, ("annotation",)) for p in places)
        return [value for value in found if value is not None]

    def detections(self) -> gpd.GeoDataFrame:
        """Detections, cells and tiles, a row each.

        Columns are ``FRAME_COLUMNS`` (ids and parents as text; geometry in full-resolution
        pixels, no CRS) and a float column for each measurement, NaN where there is none.
        """
        places = [
            p
            for p in self._hierarchy.walk()
            if isinstance(p.node, ObjectRun) or object_type(p.node.of) in DETECTIONS
        ]
        sizes = [len(p.node) if isinstance(p.node, ObjectRun) else 1 for p in places]
        builder = FrameBuilder(sum(sizes))
        for place, end, size in zip(places, accumulate(sizes), sizes, strict=True):
            if isinstance(place.node, ObjectRun):
                batches = read_batches(place.node, place.parent, self._subject)
                builder.put_batches(end - size, batches, place.parent)
            elif (value := self._object(place)) is not None:
                builder.put_object(end - size, value)
        return builder.frame()

    def remove(self, ids: Collection[UUID]) -> int:
        """Take objects out by id; their children move to the end of their parent's list.

        Returns
        -------
        int : how many of them there were.
        """
        return self._hierarchy.remove(ids)

    def add_detections(
        self, frame: gpd.GeoDataFrame, class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append detections to their parents' children.

        Parameters
        ----------
        frame : columns ``FRAME_COLUMNS`` (``geometry`` in full-resolution pixels; all but
            that optional); every further float column is a measurement.
        class_colors : of classes that the file lacks; one that it has keeps its colour.
        """
        nodes = Nodes(walk_nodes(self._nodes))
        self._hierarchy.append(build_detections(frame, class_colors or {}, nodes))

    def add_batches(
        self, batches: DetectionBatches, class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append detections that come when the stream is written, some at a time.

        They are not there for any other method than :meth:`write`.

        Parameters
        ----------
        class_colors : as for :meth:`add_detections`.
        """
        builder = DetectionBuilder(class_colors or {}, Nodes(walk_nodes(self._nodes)))
        self._hierarchy.append(
            {
                None if parent is None else UUID(parent): [
                    StreamedRun(count, partial(batches.under, parent), builder)
                ]
                for parent, count in batches.counts.items()
            }
        )

    def add_annotations(
        self, annotations: Sequence[PathObject], class_colors: Mapping[str, Color] | None = None
    ) -> None:
        """Append annotations, see :func:`~.qpdata_annotations.add_annotations`."""
        from pathosam_qupath.qupath.qpdata_annotations import add_annotations

        add_annotations(self, annotations, class_colors)

    def _object(self, place: Place, kinds: Collection[str] = ()) -> PathObject | None:
        if not isinstance(place.node, JavaObject) or place.parts is None or place.id is None:
            return None
        if kinds and object_type(place.node.of) not in kinds:
            return None
        return read_object(place.node, place.parts, place.id, place.parent, self._subject)
