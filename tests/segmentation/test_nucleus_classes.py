"""Classes by summed probabilities, and files that give them a project's names."""

import numpy as np
import pytest

from pathosam_qupath.errors import UsageError
from pathosam_qupath.segmentation.classes import (
    ClassMap,
    class_colors,
    classify,
    read_class_map,
)

CLASSES = ("neoplastic", "inflammatory", "connective", "dead")


def test_the_largest_sum_wins_and_shares_add_up():
    found = classify(np.array([[3.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 9]]), CLASSES)
    assert found.classification.tolist() == ["neoplastic", "inflammatory", "dead"]
    assert found.probability.tolist() == [0.75, 0.5, 0.9]
    assert list(found.measurements) == [f"Probability: {name}" for name in CLASSES]
    assert np.allclose(sum(found.measurements.values()), 1)
    assert found.kept.all()


def test_mapped_names_unclassified_and_left_out():
    class_map = ClassMap({"neoplastic": "Tumor", "connective": None}, dropped=frozenset({"dead"}))
    found = classify(np.eye(4), CLASSES, class_map)
    assert found.classification.tolist() == ["Tumor", "inflammatory", None, "dead"]
    assert found.kept.tolist() == [True, True, True, False]
    assert list(found.measurements) == [
        "Probability: Tumor",
        "Probability: inflammatory",
        "Probability: connective",
        "Probability: dead",
    ]


def test_classes_with_the_same_name_are_one():
    class_map = ClassMap({"neoplastic": "Cell", "dead": "Cell"})
    found = classify(np.array([[0.3, 0.4, 0.0, 0.3]]), CLASSES, class_map)
    assert found.classification.tolist() == ["Cell"]
    assert found.probability[0] == pytest.approx(0.6)
    assert found.measurements["Probability: Cell"][0] == pytest.approx(0.6)


def test_a_model_without_classes_leaves_all_unclassified():
    found = classify(np.zeros((3, 0)), ())
    assert found.classification.tolist() == [None] * 3
    assert np.isnan(found.probability).all()
    assert found.measurements == {}


def test_colours_follow_the_names():
    colors = ((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0))
    class_map = ClassMap(
        {"neoplastic": "A", "inflammatory": "A", "connective": None}, frozenset({"dead"})
    )
    assert class_colors(CLASSES, colors, class_map) == {"A": (1, 0, 0)}
    assert class_colors(CLASSES, colors)["dead"] == (4, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        '{"neoplastic": "Tumor: Positive", "connective": null, "dead": false}',
        "# names\nneoplastic = Tumor: Positive\nconnective =\n\ndead = -  # debris\n",
        "neoplastic,Tumor: Positive\r\nconnective,\r\ndead,-\r\n",
        '"neoplastic": "Tumor: Positive"\nconnective: ""\ndead: -',
        '\ufeff{"neoplastic": "Tumor: Positive", "connective": "", "dead": false}',
    ],
)
def test_files_in_every_form(tmp_path, text):
    file = tmp_path / "classes.txt"
    file.write_text(text, encoding="utf-8")
    assert read_class_map(file, CLASSES) == ClassMap(
        {"neoplastic": "Tumor: Positive", "connective": None}, frozenset({"dead"})
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"tumour": "Tumor"}', "no class tumour.*neoplastic, inflammatory"),
        ('{"neoplastic": 3}', "neoplastic is mapped to 3"),
        ('{"neoplastic": true}', "neoplastic is mapped to true"),
        ('{"neoplastic": ', "not valid JSON"),
        ("neoplastic Tumor", "line 1 is not a pair"),
        ("dead = A\ndead = B", "dead named twice"),
        ('["neoplastic"]', "line 1 is not a pair"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, text, says):
    file = tmp_path / "classes.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        read_class_map(file, CLASSES)


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read.*Give a JSON or text file"):
        read_class_map(tmp_path / "none.json", CLASSES)
