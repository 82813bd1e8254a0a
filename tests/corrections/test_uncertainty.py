"""Doubt is where a model is in doubt, and what is chosen does not look alike."""

import numpy as np
import pytest
from synthetic_nuclei import synthetic_image

from pathosam_qupath.corrections.uncertainty import (
    FieldDoubt,
    choose_fields,
    field_doubt,
    rank_fields,
)
from pathosam_qupath.model.interface import ModelInfo


class Painter:
    """A model whose maps are functions of the image: red is foreground, green the first class."""

    device = "cpu"
    info = ModelInfo("painter", "", 0.4, 128, 32, ("A", "B"), ((0, 0, 0), (1, 1, 1)), stride=1)

    def __init__(self, *, leaning=0.0, grows=False):
        self.leaning, self.grows = leaning, grows

    def predict(self, tiles):
        values = tiles.astype(np.float32) / 255
        slope = self.leaning * np.linspace(0, 1, tiles.shape[2], dtype=np.float32)
        foreground = np.clip(values[..., 0] - slope, 0, 1)
        if self.grows:  # smaller pictures look paler to it
            foreground = foreground * min(1.0, tiles.shape[1] / 64) ** 4
        first = values[..., 1]
        distance = np.ones_like(foreground)
        return np.stack([foreground, distance, distance, first, 1 - first], axis=1)


class TwoHumps(Painter):
    """One nucleus with two innermost places, and a saddle of a given depth between them."""

    def __init__(self, saddle):
        super().__init__()
        self.saddle = saddle

    def predict(self, tiles):
        maps = super().predict(tiles)
        x = np.linspace(-1, 1, tiles.shape[2], dtype=np.float32)
        distance = np.where(np.abs(x) < 0.4, np.where(np.abs(x) < 0.15, self.saddle, 0), 1)
        maps[:, 1] = 0
        maps[:, 2] = np.where(maps[:, 0] > 0.5, distance, 1)
        return maps


def painted(foreground, first):
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:48, 16:48, 0] = foreground * 255
    image[..., 1] = first * 255
    return image


def test_a_sure_field_is_in_no_doubt():
    doubt = field_doubt(Painter(), painted(1.0, 1.0))
    assert (doubt.signs["flips"], doubt.signs["margin"], doubt.signs["seeds"]) == (0, 0, 0)
    assert doubt.signs["classes"] < 1e-6


def test_each_sign_answers_to_its_own_doubt():
    assert field_doubt(Painter(), painted(0.6, 1.0)).signs["margin"] == pytest.approx(0.25)
    assert field_doubt(Painter(), painted(1.0, 0.5)).signs["classes"] == pytest.approx(
        0.25, abs=0.01
    )
    leaning = field_doubt(Painter(leaning=0.4), painted(1.0, 1.0))
    assert leaning.signs["flips"] > 0.012
    assert leaning.signs["classes"] < 1e-6


def test_what_depends_on_the_magnification_is_in_doubt():
    sure, unsure = (
        field_doubt(Painter(grows=grows), painted(0.9, 1.0)).signs["scales"]
        for grows in (False, True)
    )
    assert sure < 0.04
    assert unsure > sure + 0.05


def test_a_field_full_of_doubtful_nuclei_is_in_more_doubt_than_one_with_a_single_one():
    one, many = (np.zeros((64, 64, 3), np.uint8) for _ in range(2))
    one[8:16, 8:16, 0] = many[8:56, 8:56, 0] = 0.6 * 255
    doubts = [field_doubt(Painter(), image).signs["margin"] for image in (one, many)]
    assert doubts[1] > 10 * doubts[0]


def test_another_model_adds_a_sign():
    image = painted(1.0, 1.0)
    same = field_doubt(Painter(), image, Painter()).signs["models"]
    other = field_doubt(Painter(), image, Painter(leaning=0.8)).signs["models"]
    assert same == 0
    assert other > 0.05
    assert "models" not in field_doubt(Painter(), image).signs


def test_nuclei_that_are_one_or_two_by_a_little_are_in_doubt():
    assert field_doubt(TwoHumps(0.2), painted(1.0, 1.0)).signs["seeds"] == 0
    assert field_doubt(TwoHumps(0.45), painted(1.0, 1.0)).signs["seeds"] > 0.3


def test_an_empty_field_is_in_no_doubt():
    doubt = field_doubt(Painter(), np.zeros((64, 64, 3), np.uint8))
    assert set(doubt.signs.values()) == {0}


def test_ranks_do_not_depend_on_scales():
    look = np.zeros(1)
    fields = [FieldDoubt(signs, look) for signs in ({"a": 0.1, "b": 10}, {"a": 0.2, "b": 20})]
    assert rank_fields(fields).tolist() == [0.25, 0.75]
    assert rank_fields([FieldDoubt({"a": 1, "b": 1}, look)] * 3).tolist() == [0.5] * 3
    assert rank_fields([]).size == 0


def chosen(*words):
    return [choice.index for choice in choose_fields(*words)]


def test_what_is_chosen_stands_for_most_of_the_doubt():
    scores = np.array([0.9, 0.89, 0.88, 0.6, 0.1])
    looks = np.array([[0.0], [0.01], [0.02], [5.0], [9.0]])
    assert chosen(scores, looks, 2)[1] == 3  # the three others are one kind of field
    assert sorted(chosen(scores, looks, 9)) == [0, 1, 2, 3, 4]
    shares = [choice.share for choice in choose_fields(scores, looks, 5)]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)
    # A kind that many fields are of comes before a rare one in a little more doubt.
    common = np.array([[0.0], [0.1], [0.2], [0.3], [5.0]])
    assert chosen(np.array([0.5, 0.5, 0.5, 0.5, 0.6]), common, 1)[0] < 4


def test_what_looks_like_reviewed_fields_comes_later():
    scores = np.array([0.9, 0.89, 0.88, 0.6])
    looks = np.array([[0.0], [0.01], [0.02], [5.0]])
    assert chosen(scores, looks, 9, [1])[0] == 3
    assert 1 not in chosen(scores, looks, 9, [1])
    assert chosen(scores, looks, 9, [0, 1, 2, 3]) == []
    assert len(chosen(scores, np.zeros((4, 1)), 3)) == 3
    assert len(chosen(np.zeros(4), looks, 3)) == 3


def test_blurred_nuclei_are_more_doubtful_than_sharp_ones(bundled_model):
    import cv2

    sharp = synthetic_image(3)[0]
    faint = cv2.addWeighted(sharp, 0.35, np.full_like(sharp, 205), 0.65, 0)
    margins = [field_doubt(bundled_model, image).signs["margin"] for image in (faint, sharp)]
    assert margins[0] > margins[1]
