"""The demo leaves a segmented project, pictures and a table; again and again."""

import json

import pandas as pd
import pytest
from PIL import Image

from pathosam_qupath.cli import main
from pathosam_qupath.demo import find_example
from pathosam_qupath.qupath.project import open_project
from pathosam_qupath.run_record import file_hash


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the command left, and what it said as JSON."""
    out = tmp_path_factory.mktemp("demo") / "work"
    example = find_example().parent
    before = {p: file_hash(p) for p in example.rglob("*") if p.is_file()}
    code = _run(["demo", "--out", str(out), "--device", "cpu"])
    assert code == 0
    assert {p: file_hash(p) for p in example.rglob("*") if p.is_file()} == before
    return out


def _run(words):
    with pytest.raises(SystemExit) as leaving:
        main(words)
    return leaving.value.code or 0


def test_the_copy_has_classified_nuclei_under_its_annotations(demo):
    with open_project(demo, "embedded") as project:
        [entry] = project.entries
        nuclei, annotations = entry.detections(), entry.annotations()
    assert len(nuclei) > 10
    assert nuclei["classification"].notna().all()
    treated = {str(a.id) for a in annotations if a.classification != "Ignore*"}
    assert set(nuclei["parent"]) <= treated
    assert set(nuclei["classification"]) <= set(project.classes)


def test_the_table_counts_every_nucleus_once(demo):
    table = pd.read_csv(demo / "nuclei.csv")
    with open_project(demo, "embedded") as project:
        nuclei = project.entries[0].detections()
    assert table["nuclei"].sum() == len(nuclei)
    assert (table["per mm²"] > 0).all()
    assert table["mean area µm²"].between(3, 300).all()


def test_the_pictures_show_the_slide_whole_and_close_by(demo):
    whole, near = sorted(demo.glob("*.png"), key=lambda path: len(path.name))
    assert Image.open(whole).width == 1200
    assert Image.open(near).width > 1200


def test_a_second_demo_replaces_the_first(demo, capsys):
    with open_project(demo, "embedded") as project:
        first = len(project.entries[0].detections())
    assert _run(["demo", "--out", str(demo), "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["manifest"]["entries"][0]["removed"] == first
    assert said["manifest"]["entries"][0]["nuclei"] == first
    assert sum(row["nuclei"] for row in said["table"]) == first
    assert len(said["pictures"]) == 2


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert _run(["demo", "--out", str(tmp_path)]) == 2
    assert "something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_the_repository_the_demo_says_where_to_get_it(tmp_path, monkeypatch, capsys):
    import pathosam_qupath.demo as demo_module

    monkeypatch.setattr(demo_module, "__file__", str(tmp_path / "pathosam_qupath" / "demo.py"))
    assert _run(["demo", "--out", str(tmp_path / "out")]) == 3
    assert "Clone the repository" in capsys.readouterr().err
