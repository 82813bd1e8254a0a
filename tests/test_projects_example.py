"""The example project: complete, small, free of anybody's paths, and made again at will."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import shapely

from pathosam_qupath.qupath.project import open_project
from pathosam_qupath.slide import check, open_slide

EXAMPLE = Path(__file__).parents[1] / "projects_example"
TEXTS = ("project.qpproj", "data/1/server.json", "data/1/summary.json", "classifiers/classes.json")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_example", EXAMPLE / "make_example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere") / "example"
    folder.mkdir()
    script.main(folder)
    return folder


def whole_slide(folder: Path) -> np.ndarray:
    with open_slide(folder / "images" / "colon-ihc.tif") as slide:
        return slide.at(0.5).read(0, 0, 2048, 2048)


def test_making_it_again_gives_the_same(made: Path) -> None:
    for name in (*TEXTS, "data/1/data.qpdata"):
        assert (made / name).read_bytes() == (EXAMPLE / name).read_bytes(), name
    again, committed = whole_slide(made), whole_slide(EXAMPLE)
    difference = np.abs(again.astype(int) - committed)
    assert difference.mean() < 0.5  # decoders and encoders of JPEG may round differently


def test_the_slide_is_found_wherever_the_project_is(made: Path) -> None:
    for folder in (EXAMPLE, made):
        with open_project(folder, "embedded") as project:
            (entry,) = project.entries
            assert entry.image.path == (folder / "images" / "colon-ihc.tif").resolve()
            assert entry.image.problem is None
            assert check(entry.image.path, image_type=entry.image_type) is None


def test_the_slide_is_small_and_calibrated() -> None:
    assert (EXAMPLE / "images" / "colon-ihc.tif").stat().st_size < 2 * 2**20
    with open_slide(EXAMPLE / "images" / "colon-ihc.tif") as slide:
        assert (slide.width, slide.height, len(slide.levels)) == (2048, 2048, 3)
        assert slide.mpp == pytest.approx((0.5, 0.5))


def test_no_machines_path_is_stored() -> None:
    for name in TEXTS:
        text = (EXAMPLE / name).read_text(encoding="utf-8")
        assert str(EXAMPLE.parent) not in text
    stored = json.loads((EXAMPLE / "project.qpproj").read_text(encoding="utf-8"))
    assert stored["uri"] == "file:/projects_example/project.qpproj"
    assert str(EXAMPLE.parent).encode() not in (EXAMPLE / "data/1/data.qpdata").read_bytes()


def test_annotations_are_of_many_kinds() -> None:
    with open_project(EXAMPLE, "embedded") as project:
        (entry,) = project.entries
        annotations = {annotation.name: annotation for annotation in entry.annotations()}
        listed = set(project.classes)
    assert len(annotations) == len(entry.objects()) == 9
    assert all(annotation.geometry.is_valid for annotation in annotations.values())
    image = shapely.box(0, 0, 2048, 2048)
    assert all(image.contains(annotation.geometry) for annotation in annotations.values())
    kinds = {(a.roi, a.geometry.geom_type) for a in annotations.values()}
    assert kinds == {
        ("Geometry", "Polygon"),
        ("Geometry", "MultiPolygon"),
        ("Polygon", "Polygon"),
        ("Ellipse", "Polygon"),
        ("Rectangle", "Polygon"),
    }
    classes = {a.classification for a in annotations.values()}
    assert classes == {"Tumor", "Stroma", "Immune cells", "Region*", "Ignore*", None}
    assert classes - {None} <= listed
    assert len(annotations["Gland with lumen"].geometry.interiors) == 1
    assert [name for name, a in annotations.items() if a.locked] == ["Gland, cut across"]
    region = annotations["Region for review"]
    for name in ("Lymphocytes", "Stroma band"):
        assert annotations[name].parent == region.id
        assert region.geometry.contains(annotations[name].geometry)


def test_what_is_annotated_is_there() -> None:
    """Glands are brown (DAB), stroma is pale, the empty lumen is white."""
    pixels = whole_slide(EXAMPLE).astype(int)
    yellow = pixels[..., 0] - pixels[..., 2]  # red minus blue
    with open_project(EXAMPLE, "embedded") as project:
        annotations = project.entries[0].annotations()
    xs, ys = np.meshgrid(np.arange(2048) + 0.5, np.arange(2048) + 0.5)
    brown = {
        a.name: float(np.median(yellow[shapely.contains_xy(a.geometry, xs, ys)]))
        for a in annotations
    }
    for gland in ("Gland with lumen", "Gland, cut across", "Two glands"):
        assert brown[gland] > 40, brown
    for other in ("Stroma between glands", "Stroma band", "Lymphocytes", "Empty lumen"):
        assert brown[other] < 20, brown
