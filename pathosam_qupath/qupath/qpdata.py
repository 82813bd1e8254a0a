"""Read and change a ``data.qpdata`` file without Java.

The file is a Java object stream: a version, a JSON text about the image, and QuPath's
image data with its hierarchy of objects. Only the hierarchy is ever changed here;
everything else, known or not, is written as it was read.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID, uuid4

from pathosam_qupath.errors import ProjectError
from pathosam_qupath.qupath.java_objects import JavaObject, Node
from pathosam_qupath.qupath.java_serialization import read_stream, write_stream
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.qpdata_build import Color, new_stream
from pathosam_qupath.qupath.qpdata_detections import build_detections
from pathosam_qupath.qupath.qpdata_frames import objects_frame
from pathosam_qupath.qupath.qpdata_hierarchy import HIERARCHY, Hierarchy, TmaGrid
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
from pathosam_qupath.qupath.qpdata_objects import object_type, read_object

if TYPE_CHECKING:
    import geopandas as gpd

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
        return cls(read_stream(data, subject), subject)

    @classmethod
    def new(
        cls,
        server: Mapping[str, Any],
        *,
        identifier: str,
        image_type: str = "UNSET",
        properties: Mapping[str, str] | None = None,
    ) -> QpData:
        """The data of an image that has none yet.

        Parameters
        ----------
        server : the entry's server builder, as the project's JSON has it.
        identifier : where the file will be; QuPath notes it and does not look there.
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
        return self._read(None)

    def annotations(self) -> list[PathObject]:
        """The annotations alone, in the same order; cheap beside many detections."""
        return self._read({"annotation"})

    def detections(self) -> gpd.GeoDataFrame:
        """Detections, cells and tiles, a row each.

        Columns are ``FRAME_COLUMNS`` (ids and parents as text; geometry in full-resolution
        pixels, no CRS) and a float column for each measurement, NaN where there is none.
        """
        return objects_frame(self._read({"detection", "cell", "tile"}))

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
        self._hierarchy.append(build_detections(frame, class_colors or {}, self._nodes))

    def _read(self, kinds: Collection[str] | None) -> list[PathObject]:
        found = []
        for place in self._hierarchy.walk():
            node, parts = place.node, place.parts
            if not isinstance(node, JavaObject) or parts is None or node is self._hierarchy.root:
                continue
            if place.id is not None and (kinds is None or object_type(node.of) in kinds):
                value = read_object(node, parts, place.id, place.parent, self._subject)
                if value is not None:
                    found.append(value)
        return found
