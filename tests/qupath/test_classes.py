"""Class lists and colours as QuPath keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixture_projects import FIXTURES, PROJECTS, judged_project

from pathosam_qupath.errors import FormatError
from pathosam_qupath.qupath.classes import (
    DEFAULT_CLASSES,
    default_color,
    extend_classes,
    normal_name,
    pack_rgb,
    read_classes,
    unpack_rgb,
)


def write_list(folder: Path, text: str) -> Path:
    (folder / "classifiers").mkdir(exist_ok=True)
    path = folder / "classifiers" / "classes.json"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("name", PROJECTS)
def test_lists_are_what_qupath_reads(name: str) -> None:
    classes = read_classes(FIXTURES / name)
    assert [[k, pack_rgb(v)] for k, v in classes.items()] == judged_project(name)["path_classes"]


def test_extending_writes_the_list_as_qupath_prints_it(tmp_path: Path) -> None:
    source = (FIXTURES / "0.6.0" / "rois" / "classifiers" / "classes.json").read_text("utf-8")
    path = write_list(tmp_path, source)
    extend_classes(tmp_path, {"Lymphocyte": (10, 20, 30)})
    added = ',\n    {\n      "name": "Lymphocyte",\n      "color": -16116706\n    }'
    before, after = source[: source.rindex("\n  ]")], source[source.rindex("\n  ]") :]
    assert path.read_text("utf-8") == before + added + after
    assert path.with_name("classes.json.backup").read_text("utf-8") == source


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    path = write_list(tmp_path, '{"pathClasses": [{"name": "A: B", "color": -1}]}')
    extend_classes(tmp_path, {"A:B": (0, 0, 0)})
    assert path.read_text("utf-8") == '{"pathClasses": [{"name": "A: B", "color": -1}]}'
    assert [p.name for p in path.parent.iterdir()] == ["classes.json"]


def test_what_is_not_understood_in_a_list_is_kept(tmp_path: Path) -> None:
    path = write_list(
        tmp_path, '{"future": 1, "pathClasses": [7, {"name": "A", "color": -1, "note": "x"}]}'
    )
    assert extend_classes(tmp_path, {"B": (1, 2, 3)}) == {"A": (255, 255, 255), "B": (1, 2, 3)}
    document = json.loads(path.read_text("utf-8"))
    assert document["future"] == 1
    assert document["pathClasses"][:2] == [7, {"name": "A", "color": -1, "note": "x"}]


def test_a_class_without_colour_gets_qupaths_and_unclassified_is_no_class(tmp_path: Path) -> None:
    write_list(
        tmp_path,
        '{"pathClasses": [{"name": "Unclassified"}, {"name": "Tumor", "color": null}]}',
    )
    assert read_classes(tmp_path) == {"Tumor": (200, 0, 0)}


def test_a_first_list_begins_with_the_classes_that_qupath_offers(tmp_path: Path) -> None:
    classes = extend_classes(tmp_path, {"Lymphocyte": (1, 2, 3), "Tumor": (9, 9, 9)})
    assert list(classes) == [*DEFAULT_CLASSES, "Lymphocyte"]
    assert classes["Lymphocyte"] == (1, 2, 3)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"pathClasses": 3}', '{"pathClasses": [{"name": "A", "color": "red"}]}']
)
def test_a_broken_list_is_an_error_and_stays(tmp_path: Path, text: str) -> None:
    path = write_list(tmp_path, text)
    with pytest.raises(FormatError, match=r"classes\.json"):
        read_classes(tmp_path)
    with pytest.raises(FormatError):
        extend_classes(tmp_path, {"A": (1, 2, 3)})
    assert path.read_text("utf-8") == text


def test_colours_are_packed_as_signed_argb() -> None:
    assert pack_rgb((200, 0, 0)) == -3670016
    assert unpack_rgb(-3670016) == (200, 0, 0)
    assert unpack_rgb(0x80C80000) == (200, 0, 0)
    assert pack_rgb((255, 255, 255)) == -1


@pytest.mark.parametrize(
    ("name", "normal"),
    [("Tumor:Positive", "Tumor: Positive"), (" A :  B: C ", "A: B: C"), ("A", "A"), ("", "")],
)
def test_names_are_written_as_qupath_writes_them(name: str, normal: str) -> None:
    assert normal_name(name) == normal


@pytest.mark.parametrize(
    ("name", "color"),
    [
        ("Tumor", (200, 0, 0)),
        ("Positive", (250, 62, 62)),
        ("1+", (255, 255, 0)),
        ("Tumor: Positive", (200, 50, 50)),
        ("Tumor: Negative", (90, 90, 180)),
        ("Stroma: Positive", (112, 150, 112)),
        ("Stroma: Negative", (187, 250, 187)),
        ("Tumor: Other: 3+", None),
    ],
)
def test_standard_classes_have_qupaths_colours(
    name: str, color: tuple[int, int, int] | None
) -> None:
    if color is None:
        parent = default_color("Tumor: Other")
        color = tuple(int(channel * 0.4) for channel in parent)
    assert default_color(name) == color


def test_other_colours_are_a_function_of_the_name_and_never_very_dark() -> None:
    colors = {name: default_color(name) for name in ("Lymphocyte", "Größe", "𝛼", "A: B", "AB")}
    assert colors == {name: default_color(name) for name in colors}
    assert len(set(colors.values())) == len(colors)
    assert all(max(color) >= 40 for color in colors.values())
