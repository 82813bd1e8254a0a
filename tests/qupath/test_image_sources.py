"""Server builders resolved to a file, a crop of it, a rotation and a pixel size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixture_projects import FIXTURES, PROJECTS, images_map, judged_project

from pathosam_qupath.qupath.image_locations import ImageFinder
from pathosam_qupath.qupath.image_sources import image_source
from pathosam_qupath.qupath.project import ImageSource, PathMap
from pathosam_qupath.qupath.project_file import ImageRecord, read_project_file


@pytest.fixture
def finder(tmp_path: Path) -> ImageFinder:
    path = tmp_path / "project.qpproj"
    path.write_text(json.dumps({"version": "0.6.0", "images": []}), "utf-8")
    (tmp_path / "a.tif").write_bytes(b"")
    return ImageFinder(read_project_file(path), PathMap())


def record(server: dict[str, Any] | None) -> ImageRecord:
    return ImageRecord("1", "a", None, {}, (), server)


def file_builder(*args: str, size: tuple[int, int] = (40, 30), mpp: Any = None) -> dict[str, Any]:
    return {
        "builderType": "uri",
        "providerClassName": "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder",
        "uri": "file:/elsewhere/a.tif",
        "args": list(args),
        "metadata": metadata(size, mpp),
    }


def metadata(size: tuple[int, int], mpp: Any) -> dict[str, Any]:
    sides = (
        [{"value": side, "unit": "µm"} for side in mpp]
        if mpp
        else [{"value": 1.0, "unit": "px"}] * 2
    )
    return {
        "width": size[0],
        "height": size[1],
        "pixelCalibration": {"pixelWidth": sides[0], "pixelHeight": sides[1]},
    }


def rotated(builder: dict[str, Any], degrees: int) -> dict[str, Any]:
    turn = f"ROTATE_{degrees}" if degrees else "ROTATE_NONE"
    return {"builderType": "rotated", "builder": builder, "rotation": turn}


def cropped(builder: dict[str, Any], x: int, y: int, w: int, h: int) -> dict[str, Any]:
    region = {"x": x, "y": y, "width": w, "height": h, "z": 0, "t": 0}
    return {"builderType": "cropped", "builder": builder, "region": region}


def shown(source: ImageSource, pixels: np.ndarray) -> np.ndarray:
    """What a reader shows that follows an image source."""
    if source.crop is not None:
        x, y, w, h = source.crop
        pixels = pixels[y : y + h, x : x + w]
    return np.rot90(pixels, -source.rotation // 90)


def test_a_plain_file_with_series_and_pixel_size(finder: ImageFinder) -> None:
    source = image_source(record(file_builder("--series", "2", mpp=(0.25, 0.26))), finder)
    assert source.path is not None
    assert source.path.name == "a.tif"
    assert (source.series, source.rotation, source.crop) == (2, 0, None)
    assert source.mpp == (0.25, 0.26)
    assert source.problem is None
    assert image_source(record(file_builder("--series=3")), finder).series == 3
    assert image_source(record(file_builder()), finder).mpp is None


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotations_crops_and_both_in_any_order_show_the_same_pixels(
    finder: ImageFinder, degrees: int
) -> None:
    pixels = np.arange(30 * 40).reshape(30, 40)
    turned = np.rot90(pixels, -degrees // 90)

    source = image_source(record(rotated(file_builder(), degrees)), finder)
    assert np.array_equal(shown(source, pixels), turned)

    source = image_source(record(rotated(cropped(file_builder(), 5, 3, 20, 11), degrees)), finder)
    assert np.array_equal(shown(source, pixels), np.rot90(pixels[3:14, 5:25], -degrees // 90))

    source = image_source(record(cropped(rotated(file_builder(), degrees), 4, 6, 10, 12)), finder)
    assert np.array_equal(shown(source, pixels), turned[6:18, 4:14])

    deep = cropped(rotated(cropped(rotated(file_builder(), degrees), 1, 2, 20, 21), 90), 3, 4, 5, 6)
    view = np.rot90(turned[2:23, 1:21], -1)[4:10, 3:8]
    assert np.array_equal(shown(image_source(record(deep), finder), pixels), view)


def test_a_crop_of_a_crop(finder: ImageFinder) -> None:
    builder = cropped(cropped(file_builder(), 5, 3, 20, 11), 2, 1, 4, 5)
    assert image_source(record(builder), finder).crop == (7, 4, 4, 5)


def test_the_pixel_size_turns_with_the_image_and_the_outermost_one_counts(
    finder: ImageFinder,
) -> None:
    turned = rotated(file_builder(mpp=(0.25, 0.5)), 90)
    assert image_source(record(turned), finder).mpp == (0.5, 0.25)
    turned["metadata"] = metadata((30, 40), (0.1, 0.2))
    assert image_source(record(turned), finder).mpp == (0.1, 0.2)


def test_a_pyramid_made_by_qupath_shows_the_file(finder: ImageFinder) -> None:
    builder = {"builderType": "pyramidize", "builder": file_builder("--series", "1")}
    source = image_source(record(builder), finder)
    assert (source.series, source.problem) == (1, None)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("affine", "affine transform"),
        ("channels", "channels of several images"),
        ("color", "channel transform"),
        ("color_deconvolved", "colour deconvolution"),
        ("flipped", "flip"),
        ("normalized", "stain normalisation"),
        ("sliced", "z-slices"),
        ("sparse", "mosaic"),
        ("swapRedBlue", "colour channels"),
        ("typeConvert", "pixel type"),
        ("z_projected", "z-projection"),
        ("z_concatenated", "stack"),
        ("hologram", "not known here"),
    ],
)
def test_images_with_other_pixels_than_the_file_are_refused_by_name(
    finder: ImageFinder, kind: str, words: str
) -> None:
    inside = {"builderType": kind, "builder": file_builder()}
    for builder in (inside, rotated(inside, 90)):
        source = image_source(record(builder), finder)
        assert source.path is None
        assert source.uri == "file:/elsewhere/a.tif"
        assert words in (source.problem or "")


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (None, "no image"),
        ({"builderType": "uri"}, "no file"),
        (file_builder("--series", "x"), "--series"),
        (file_builder("--rotate", "ROTATE_90"), "rotation"),
        ({"builderType": "rotated"}, "holds no image"),
        (
            {"builderType": "rotated", "builder": file_builder(), "rotation": "ROTATE_45"},
            "90 degrees",
        ),
        ({"builderType": "cropped", "builder": file_builder()}, "no region"),
        ({"builderType": "cropped", "builder": file_builder(), "region": {"x": 1}}, "rectangle"),
    ],
)
def test_builders_that_lack_something_say_what(
    finder: ImageFinder, server: dict[str, Any] | None, words: str
) -> None:
    assert words in (image_source(record(server), finder).problem or "")


@pytest.mark.parametrize("name", PROJECTS)
def test_uris_are_what_qupath_reads(name: str) -> None:
    file = read_project_file(FIXTURES / name / "project.qpproj")
    finder = ImageFinder(file, images_map(name))
    for image, expected in zip(file.images, judged_project(name)["entries"], strict=True):
        assert [image_source(image, finder).uri] == expected["uris"]
