"""Image files found from the URIs that projects store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pathosam_qupath.qupath.image_locations import ImageFinder, map_path, stored_path
from pathosam_qupath.qupath.project import PathMap
from pathosam_qupath.qupath.project_file import ProjectFile, read_project_file


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:/slides/a.svs", "/slides/a.svs"),
        ("file:///slides/a.svs", "/slides/a.svs"),
        ("file://localhost/slides/a.svs", "/slides/a.svs"),
        ("FILE:/slides/a.svs", "/slides/a.svs"),
        ("file:/slides/tiled%20pyramid%20%C3%BC.tif", "/slides/tiled pyramid ü.tif"),
        ("file:/slides/100%25.tif", "/slides/100%.tif"),
        ("file:/slides/a+b%23c.tif", "/slides/a+b#c.tif"),
        ("file:/C:/slides/a.svs", "C:/slides/a.svs"),
        ("file:///C:/my%20slides/a.svs", "C:/my slides/a.svs"),
        ("c:\\slides\\a.svs", "C:/slides/a.svs"),
        ("file:////server/share/a.svs", "//server/share/a.svs"),
        ("file://server/share/a.svs", "//server/share/a.svs"),
        ("\\\\server\\share\\a.svs", "//server/share/a.svs"),
        ("/slides/a.svs", "/slides/a.svs"),
        ("https://host/a.svs", None),
        ("omero:iid=3", None),
    ],
)
def test_every_spelling_of_a_path(uri: str, path: str | None) -> None:
    assert stored_path(uri) == path


@pytest.mark.parametrize(
    ("start", "stored", "mapped"),
    [
        ("/old", "/old/a/b.svs", "/new/a/b.svs"),
        ("/old/", "/old/b.svs", "/new/b.svs"),
        ("/old/b.svs", "/old/b.svs", "/new"),
        ("file:/old", "/old/b.svs", "/new/b.svs"),
        ("/old", "/older/b.svs", None),
        ("/Old", "/old/b.svs", None),
        ("c:\\Slides", "C:/slides/b.svs", "/new/b.svs"),
        ("C:/slides", "C:/slides/sub/b.svs", "/new/sub/b.svs"),
        ("C:", "C:/slides/b.svs", "/new/slides/b.svs"),
        ("\\\\SERVER\\share", "//server/share/b.svs", "/new/b.svs"),
    ],
)
def test_a_path_map_applies_to_whole_folders(start: str, stored: str, mapped: str | None) -> None:
    found = list(map_path(stored, PathMap(((start, "/new"),))))
    assert found == ([Path(mapped)] if mapped is not None else [])


def _project(folder: Path, uri: str) -> ProjectFile:
    folder.mkdir(parents=True)
    path = folder / "project.qpproj"
    path.write_text(json.dumps({"version": "0.6.0", "uri": uri, "images": []}), "utf-8")
    return read_project_file(path)


def _image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"pixels")
    return path


@pytest.mark.parametrize(
    ("project_uri", "image_uri"),
    [
        ("file:/old/study/project.qpproj", "file:/old/images/a.svs"),
        ("file:/C:/old/study/project.qpproj", "file:/C:/old/images/a.svs"),
        ("file:///C:/old/study/project.qpproj", "file:/c:/old/images/a.svs"),
        ("file:////nas/lab/study/project.qpproj", "file://nas/lab/images/a.svs"),
    ],
)
def test_images_beside_a_moved_project_are_found(
    tmp_path: Path, project_uri: str, image_uri: str
) -> None:
    image = _image(tmp_path / "images" / "a.svs")
    finder = ImageFinder(_project(tmp_path / "study", project_uri), PathMap())
    assert finder.find(image_uri) == (image, None)


def test_an_image_inside_a_moved_project_is_found_by_its_name(tmp_path: Path) -> None:
    finder = ImageFinder(_project(tmp_path / "study", "file:/old/project.qpproj"), PathMap())
    image = _image(tmp_path / "study" / "raw" / "day 1" / "a.svs")
    _image(tmp_path / "study" / ".hidden" / "b.svs")
    _image(tmp_path / "study" / "1" / "2" / "3" / "4" / "c.svs")
    assert finder.find("file:/elsewhere/a.svs") == (image, None)
    assert finder.find("file:/elsewhere/b.svs")[0] is None
    assert finder.find("file:/elsewhere/c.svs")[0] is None


def test_the_stored_place_counts_before_the_moved_one(tmp_path: Path) -> None:
    stored = _image(tmp_path / "stored" / "a.svs")
    _image(tmp_path / "new" / "a.svs")
    uri = (tmp_path / "stored" / "project.qpproj").as_uri()
    finder = ImageFinder(_project(tmp_path / "new" / "study", uri), PathMap())
    assert finder.find(stored.as_uri()) == (stored, None)


def test_a_path_map_counts_before_everything(tmp_path: Path) -> None:
    stored = _image(tmp_path / "stored" / "a.svs")
    mapped = _image(tmp_path / "mapped" / "a.svs")
    path_map = PathMap(
        ((str(tmp_path / "stored"), "/nowhere"), (str(tmp_path / "stored"), str(mapped.parent)))
    )
    finder = ImageFinder(_project(tmp_path / "study", "file:/old/project.qpproj"), path_map)
    assert finder.find(stored.as_uri()) == (mapped, None)


def test_a_missing_image_names_the_option_that_helps(tmp_path: Path) -> None:
    finder = ImageFinder(_project(tmp_path / "study", "file:/old/p.qpproj"), PathMap())
    path, problem = finder.find("file:/slides/lab%201/a.svs")
    assert path is None
    assert problem is not None
    assert "file not found: /slides/lab 1/a.svs" in problem
    assert "--path-map '/slides/lab 1=/new/folder'" in problem


def test_an_image_on_a_server_is_not_a_file(tmp_path: Path) -> None:
    finder = ImageFinder(_project(tmp_path / "study", "file:/old/p.qpproj"), PathMap())
    assert "not a file on disk (https" in (finder.find("https://host/a.svs")[1] or "")


@pytest.mark.parametrize(
    "uri",
    ["file://[broken/a.svs", "file:/a%00b.svs", "file:/" + "x" * 5000, "", ":", "file:", "file:/"],
)
def test_uris_that_are_none_are_a_problem_and_no_crash(tmp_path: Path, uri: str) -> None:
    finder = ImageFinder(_project(tmp_path / "study", "file:/old/p.qpproj"), PathMap())
    path, problem = finder.find(uri)
    assert (path is None) == (problem is not None)
