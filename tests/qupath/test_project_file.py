"""The ``.qpproj`` file: found, read, written as QuPath prints it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixture_projects import FIXTURES, PROJECTS, judged_project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathosam_qupath.errors import ChangedSinceReadError, FormatError, ProjectError
from pathosam_qupath.qupath.image_locations import ImageFinder
from pathosam_qupath.qupath.image_sources import image_source
from pathosam_qupath.qupath.project import PathMap
from pathosam_qupath.qupath.project_file import (
    find_project_file,
    gson_text,
    read_project_file,
    write_project_file,
)

Copy = Callable[[str], Path]


@pytest.mark.parametrize("name", PROJECTS)
def test_a_project_file_is_written_byte_for_byte(name: str) -> None:
    path = FIXTURES / name / "project.qpproj"
    assert gson_text(read_project_file(path).document).encode() == path.read_bytes()


@pytest.mark.parametrize("name", PROJECTS)
def test_a_project_file_says_what_qupath_reads(name: str) -> None:
    file = read_project_file(FIXTURES / name / "project.qpproj")
    judged = judged_project(name)
    assert file.version == judged["version"]
    assert file.uri == judged["uri"]
    assert [image.id for image in file.images] == [entry["id"] for entry in judged["entries"]]
    assert file.last_id >= max(int(image.id) for image in file.images)


def test_the_highest_entry_counts_where_the_last_id_is_too_low(copied: Copy) -> None:
    path = copied("0.6.0/rois") / "project.qpproj"
    document = json.loads(path.read_text("utf-8"))
    document["lastID"] = 2
    path.write_text(json.dumps(document), "utf-8")
    assert read_project_file(path).last_id == 5


def test_unknown_keys_odd_numbers_and_order_are_kept(copied: Copy) -> None:
    path = copied("0.6.0/rois") / "project.qpproj"
    text = path.read_text("utf-8").replace(
        '"lastID": 5,', '"future": {"b": 1.0E-5, "a": [1.50, null, true, {}, []]},\n  "lastID": 5,'
    )
    path.write_text(text, "utf-8")
    file = read_project_file(path)
    write_project_file(path, file.document, expected=file.fingerprint)
    again = path.read_text("utf-8")
    assert json.loads(again) == json.loads(text)
    assert "1.0E-5" in again
    assert "1.50" in again
    assert list(json.loads(again)) == list(json.loads(text))
    assert path.with_name("project.qpproj.backup").read_text("utf-8") == text


def test_text_is_escaped_as_gson_does() -> None:
    assert gson_text({"a<b": "x&y='\"\\\n\u2028\x01ü"}) == (
        '{\n  "a\\u003cb": "x\\u0026y\\u003d\\u0027\\"\\\\\\n\\u2028\\u0001ü"\n}'
    )


def test_a_project_that_changed_since_is_not_overwritten(copied: Copy) -> None:
    path = copied("0.6.0/rois") / "project.qpproj"
    file = read_project_file(path)
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(ChangedSinceReadError):
        write_project_file(path, file.document, expected=file.fingerprint)


def test_a_folder_or_a_file_may_be_named(copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    assert find_project_file(folder) == folder / "project.qpproj"
    assert find_project_file(str(folder / "project.qpproj")) == folder / "project.qpproj"


def test_a_folder_with_several_projects_asks_which(copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    shutil.copy(folder / "project.qpproj", folder / "half.qpproj")
    with pytest.raises(ProjectError, match=r"half\.qpproj, project\.qpproj"):
        find_project_file(folder)
    assert find_project_file(folder / "half.qpproj").name == "half.qpproj"


def test_a_lost_project_file_points_to_its_backup(copied: Copy) -> None:
    folder = copied("0.6.0/rois")
    (folder / "project.qpproj").unlink()
    with pytest.raises(ProjectError, match=r"Copy it to project\.qpproj"):
        find_project_file(folder)


@pytest.mark.parametrize("name", ["", "nowhere", "notes.txt"])
def test_what_is_no_project_is_said_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x", "utf-8")
    with pytest.raises(ProjectError, match=r"\.qpproj"):
        find_project_file(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "neither a version"),
        ('{"version": "0.6.0", "images": 3}', "not a list"),
        ('{"version": "0.6.0", "images": [{"imageName": "a"}]}', "image 1 has no entry ID"),
        ('{"version": "0.6.0", "images": [{"entryID": 1}, {"entryID": 1}]}', "several images"),
    ],
)
def test_a_file_that_is_no_project_is_a_format_error(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "project.qpproj"
    path.write_text(text, "utf-8")
    with pytest.raises(FormatError, match=reason):
        read_project_file(path)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_project_with_any_value_replaced_is_read_or_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    document = json.loads((FIXTURES / "0.6.0" / "rois" / "project.qpproj").read_bytes())
    document["images"] = document["images"][:2]
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = document
        while True:
            key = data.draw(
                st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
            )
            inside = place[key]
            if not (isinstance(inside, dict | list) and inside and data.draw(st.booleans())):
                break
            place = inside
        place[key] = data.draw(JUNK)
        if not isinstance(document.get("images"), list | dict) or not document:
            break
    path = tmp_path / "project.qpproj"
    path.write_text(json.dumps(document), "utf-8")
    try:
        file = read_project_file(path)
    except FormatError:
        return
    finder = ImageFinder(file, PathMap((("/slides", "/nowhere"),)))
    for image in file.images:
        source = image_source(image, finder)
        assert (source.path is None) == (source.problem is not None)


def test_a_linked_project_file_has_its_data_beside_the_link(copied: Copy, tmp_path: Path) -> None:
    folder = copied("0.6.0/rois")
    link = tmp_path / "other" / "linked.qpproj"
    link.parent.mkdir()
    link.symlink_to(folder / "project.qpproj")
    assert find_project_file(link) == link


def test_an_empty_project_has_no_images(tmp_path: Path) -> None:
    path = tmp_path / "project.qpproj"
    path.write_text('{"version": "0.6.0", "lastID": 7}', "utf-8")
    assert read_project_file(path).images == ()
    assert read_project_file(path).last_id == 7
