"""Simulated prompts mean the nucleus that they were drawn for."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_nuclei import synthetic_image

from pathosam_qupath.corrections.simulated_prompts import Question, corrected, questions
from pathosam_qupath.model.prompts import Prompt, mask_box


@pytest.fixture(scope="module")
def asked():
    labels = np.stack([synthetic_image(seed, side=128)[1] for seed in range(4)])
    return questions(np.random.default_rng(0), labels, 8), labels


def test_every_question_is_about_one_whole_nucleus(asked):
    found, labels = asked
    assert len(found) > 15
    for question in found:
        (label,) = np.unique(labels[question.crop][question.target])
        assert label > 0
        np.testing.assert_array_equal(question.target, labels[question.crop] == label)
        x0, y0, x1, y1 = mask_box(question.target)
        assert min(x0, y0) > 0
        assert max(x1, y1) < 128


def test_clicks_lie_in_the_nucleus_and_others_do_not(asked):
    kinds = set()
    for question in asked[0]:
        prompt = question.prompt
        kinds.add((bool(prompt.points), prompt.box is not None, prompt.mask is not None))
        labels = prompt.labels or (True,) * len(prompt.points)
        for (x, y), inside in zip(prompt.points, labels, strict=True):
            assert question.target[int(y), int(x)] == inside
        if prompt.box is not None and prompt.mask is None:
            x0, y0, x1, y1 = mask_box(question.target)
            assert np.abs(np.array(prompt.box) - (x0, y0, x1, y1)).max() < 8
        if prompt.mask is not None:
            assert (prompt.mask & question.target).any()
    assert len(kinds) >= 4


def test_a_correction_clicks_where_the_answer_is_wrong():
    target = np.zeros((64, 64), bool)
    target[20:40, 20:40] = True
    question = Question(0, Prompt(points=((30.0, 30.0),)), target)
    half = target.copy()
    half[:, 30:] = False
    second = corrected(np.random.default_rng(0), question, half)
    assert second is not None
    (x, y), positive = second.prompt.points[-1], second.prompt.labels[-1]
    assert positive
    assert target[int(y), int(x)]
    assert not half[int(y), int(x)]
    too_much = target.copy()
    too_much[20:40, 40:60] = True
    second = corrected(np.random.default_rng(0), question, too_much)
    assert second is not None
    assert second.prompt.labels == (True, False)
    assert second.prompt.mask is too_much
    assert corrected(np.random.default_rng(0), question, target) is None
