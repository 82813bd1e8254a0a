"""Make the example project: a slide of real tissue with annotations, as QuPath saves one.

    python projects_example/make_example.py [FOLDER]

The tissue is scikit-image's ``immunohistochemistry`` image (ihc.png): colonic glands,
FHL2 in brown (DAB), nuclei in blue (hematoxylin), from the Center for Microscopy and
Molecular Imaging (CMMI), with no known copyright restrictions. Its 512 x 512 pixels are
mirrored at their borders to 2048 x 2048, so glands that the picture cuts are whole again.

The picture comes without a pixel size. Lymphocyte nuclei in it are about 12 pixels wide,
and such nuclei measure 6 to 7 µm, so a pixel is about 0.5 µm (a 20x objective).

Everything is fixed (ids, times, compression): the same versions of the libraries give
the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np
import shapely
import tifffile
from PIL import Image
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry
from skimage.data import immunohistochemistry

from pathosam_qupath.qupath.classes import DEFAULT_CLASSES, extend_classes
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.project_file import gson_text
from pathosam_qupath.qupath.qpdata import QpData
from pathosam_qupath.qupath.qpdata_annotations import add_annotations
from pathosam_qupath.qupath.qpdata_build import new_stream

SIDE = 2048
MPP = 0.5
LEVELS = 3
QUALITY = 80
SLIDE = "images/colon-ihc.tif"
IMAGE_NAME = "colon-ihc.tif"
IMAGE_TYPE = "BRIGHTFIELD_H_DAB"
QUPATH_VERSION = "0.6.0"
SAVED_AT = 1_767_225_600_000
"""2026-01-01, in milliseconds since 1970."""
STORED_FOLDER = "file:/projects_example/"
"""Where the project says that it is. It is nobody's folder: QuPath and this package find
the slide by its place relative to the project."""

Points = list[tuple[float, float]]


def main(folder: Path) -> None:
    """Write the project into ``folder``."""
    pixels = tissue()
    write_slide(folder / SLIDE, pixels)
    annotations = make_annotations()
    server = server_builder()
    entry = folder / "data" / "1"
    entry.mkdir(parents=True, exist_ok=True)
    data = QpData(
        new_stream(
            server,
            IMAGE_TYPE,
            "/projects_example/data/1/data.qpdata",
            _id("root"),
            {"PROJECT_ENTRY_ID": "/projects_example/project.qpproj::1"},
        )
    )
    add_annotations(data, annotations, DEFAULT_CLASSES)
    with (entry / "data.qpdata").open("wb") as file:
        data.write(file)
    (entry / "server.json").write_text(gson_text(server), encoding="utf-8")
    (entry / "summary.json").write_text(json.dumps(summary(annotations)), encoding="utf-8")
    Image.fromarray(pixels).resize((600, 600), Image.Resampling.BICUBIC).save(
        entry / "thumbnail.jpg", quality=70
    )
    (folder / "project.qpproj").write_text(gson_text(project(server)), encoding="utf-8")
    if not (folder / "classifiers" / "classes.json").exists():
        extend_classes(folder, {})


def tissue() -> np.ndarray:
    """(2048, 2048, 3) uint8: the picture and its mirror images."""
    picture = immunohistochemistry()
    more = SIDE - picture.shape[0]
    return np.pad(picture, ((0, more), (0, more), (0, 0)), mode="symmetric")


def write_slide(path: Path, pixels: np.ndarray) -> None:
    """Write a tiled JPEG pyramid, as OpenSlide and this package read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for level in range(LEVELS):
            if level:
                height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
                means = pixels.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
                pixels = np.round(means).astype(np.uint8)
            writer.write(
                pixels,
                photometric="rgb",
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": QUALITY},
                subfiletype=int(level > 0),
                resolution=(10_000 / MPP / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
                software=None
                if level
                else "pathosam-qupath example (tissue: scikit-image ihc.png)",
            )


def make_annotations() -> list[PathObject]:
    """Annotations of several classes and shapes, drawn on the glands and the stroma."""
    region = _annotation(
        "Region for review", shapely.box(1100, 60, 1930, 640), "Rectangle", "Region*"
    )
    stroma_band = _mirror_x(
        [(445, 70), (462, 130), (468, 200), (450, 262), (428, 300), (440, 420), (450, 500)], 1536
    )
    immune = _on_tile(
        [
            (221, 268),
            (244, 255),
            (281, 244),
            (305, 248),
            (314, 272),
            (300, 300),
            (262, 305),
            (230, 320),
        ],
        2,
        0,
    )
    gland = shapely.Polygon(
        _mirror_y(
            [
                (246, 0),
                (256, 47),
                (270, 94),
                (276, 141),
                (293, 188),
                (310, 225),
                (338, 258),
                (375, 281),
                (417, 295),
                (436, 263),
                (452, 220),
                (460, 169),
                (456, 117),
                (445, 61),
                (424, 0),
            ],
            1024,
        ),
        [
            _mirror_y(
                [
                    (279, 0),
                    (305, 75),
                    (328, 131),
                    (356, 183),
                    (377, 197),
                    (382, 185),
                    (370, 155),
                    (349, 112),
                    (323, 89),
                    (300, 28),
                    (287, 0),
                ],
                1024,
            )
        ],
    )
    left_gland = _on_tile(
        [
            (4, 162),
            (30, 174),
            (61, 216),
            (84, 244),
            (117, 300),
            (140, 338),
            (156, 390),
            (156, 508),
            (42, 508),
            (46, 450),
            (50, 400),
            (50, 330),
            (22, 298),
            (4, 276),
        ],
        2,
        2,
    )
    upper_gland = _on_tile(
        [
            (4, 6),
            (4, 134),
            (30, 162),
            (66, 210),
            (108, 230),
            (150, 244),
            (168, 257),
            (206, 257),
            (243, 234),
            (264, 200),
            (270, 141),
            (252, 75),
            (232, 4),
            (160, 4),
            (166, 44),
            (178, 100),
            (160, 92),
            (145, 26),
            (108, 8),
            (70, 18),
        ],
        2,
        2,
    )
    lumen = _mirror_x(
        [(0, 1653), (36, 1662), (47, 1700), (45, 1730), (22, 1750), (0, 1762)], 1024, 0
    )
    return [
        _annotation("Gland with lumen", gland, "Geometry", "Tumor"),
        _annotation(
            "Gland, cut across", _ellipse(251, 303, 380, 508), "Ellipse", "Tumor", locked=True
        ),
        _annotation(
            "Stroma between glands", shapely.box(169, 300, 244, 724), "Rectangle", "Stroma"
        ),
        region,
        _annotation(
            "Lymphocytes", shapely.Polygon(immune), "Polygon", "Immune cells", parent=region
        ),
        _annotation(
            "Stroma band", shapely.Polygon(stroma_band), "Polygon", "Stroma", parent=region
        ),
        _annotation(
            "Two glands",
            shapely.MultiPolygon([shapely.Polygon(left_gland), shapely.Polygon(upper_gland)]),
            "Geometry",
            "Tumor",
        ),
        _annotation("Test field", shapely.box(1640, 1560, 1940, 1860), "Rectangle", None),
        _annotation("Empty lumen", shapely.Polygon(lumen), "Polygon", "Ignore*"),
    ]


def server_builder() -> dict[str, Any]:
    """The JSON with which QuPath opens the slide through OpenSlide."""
    side = {"value": MPP, "unit": "µm"}
    return {
        "builderType": "uri",
        "providerClassName": "qupath.lib.images.servers.openslide.OpenslideServerBuilder",
        "uri": STORED_FOLDER + SLIDE,
        "args": [],
        "metadata": {
            "name": IMAGE_NAME,
            "width": SIDE,
            "height": SIDE,
            "sizeZ": 1,
            "sizeT": 1,
            "channelType": "DEFAULT",
            "isRGB": True,
            "pixelType": "UINT8",
            "levels": [
                {"downsample": 2.0**level, "width": SIDE >> level, "height": SIDE >> level}
                for level in range(LEVELS)
            ],
            "channels": [
                {"name": "Red", "color": -65536},
                {"name": "Green", "color": -16711936},
                {"name": "Blue", "color": -16776961},
            ],
            "pixelCalibration": {
                "pixelWidth": side,
                "pixelHeight": side,
                "zSpacing": {"value": 1.0, "unit": "z-slice"},
                "timeUnit": "SECONDS",
                "timepoints": [],
            },
            "preferredTileWidth": 256,
            "preferredTileHeight": 256,
        },
    }


def project(server: dict[str, Any]) -> dict[str, Any]:
    """The JSON of the project file."""
    return {
        "version": QUPATH_VERSION,
        "createTimestamp": SAVED_AT,
        "modifyTimestamp": SAVED_AT,
        "uri": STORED_FOLDER + "project.qpproj",
        "lastID": 1,
        "images": [
            {
                "serverBuilder": server,
                "entryID": 1,
                "randomizedName": str(_id("name")),
                "imageName": IMAGE_NAME,
                "description": "Colonic glands, FHL2 (DAB) and hematoxylin. The image ihc.png of "
                "scikit-image (CMMI, no known copyright restrictions), mirrored to 2048 x 2048.",
                "metadata": {"Stain": "H-DAB", "Organ": "colon"},
                "tags": [],
            }
        ],
    }


def summary(annotations: list[PathObject]) -> dict[str, Any]:
    """What QuPath shows of an entry before it opens it."""
    classes = Counter(annotation.classification or "Unclassified" for annotation in annotations)
    return {
        "timestamp": SAVED_AT,
        "imageType": IMAGE_TYPE,
        "server": {"width": SIDE, "height": SIDE, "sizeC": 3, "sizeZ": 1, "sizeT": 1},
        "hierarchy": {
            "nObjects": len(annotations) + 1,
            "objectTypeCounts": {"Root objects": 1, "Annotations": len(annotations)},
            "annotationClassificationCounts": dict(classes),
            "detectionClassificationCounts": {},
        },
    }


def _annotation(
    name: str,
    geometry: BaseGeometry,
    roi: str,
    classification: str | None,
    *,
    locked: bool = False,
    parent: PathObject | None = None,
) -> PathObject:
    return PathObject(
        id=_id(name),
        object_type="annotation",
        geometry=geometry,
        roi=roi,
        classification=classification,
        name=name,
        locked=locked,
        parent=parent.id if parent is not None else None,
    )


def _id(name: str) -> UUID:
    return uuid5(NAMESPACE_URL, f"pathosam-qupath/projects_example/{name}")


def _on_tile(points: Points, column: int, row: int) -> Points:
    """Points of the picture on one of its unmirrored copies (even column and row)."""
    return [(x + 512 * column, y + 512 * row) for x, y in points]


def _mirror_y(points: Points, axis: float) -> Points:
    """A ring from its half below a horizontal axis, measured from there downwards."""
    return [(x, axis + y) for x, y in points] + [(x, axis - y) for x, y in points[-2:0:-1]]


def _mirror_x(points: Points, axis: float, origin: float = 512) -> Points:
    """A ring from its half beside a vertical axis; ``origin`` is the axis in the picture."""
    offsets = [(abs(x - origin), y) for x, y in points]
    left = [(axis - dx, y) for dx, y in offsets]
    right = [(axis + dx, y) for dx, y in reversed(offsets) if dx]
    return left + right


def _ellipse(x0: float, y0: float, x1: float, y1: float) -> BaseGeometry:
    circle = shapely.Point(0, 0).buffer(1, quad_segs=25)
    scale = [(x1 - x0) / 2, 0, 0, (y1 - y0) / 2, (x0 + x1) / 2, (y0 + y1) / 2]
    return affine_transform(circle, scale)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
