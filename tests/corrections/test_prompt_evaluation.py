"""Scores of prompts: a model that answers rightly scores high, one that is blind nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections.prompt_evaluation import (
    KINDS,
    evaluate_prompts,
    prompted_ious,
    with_prompts,
)
from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.interface import ModelInfo
from pathosam_qupath.model.prompts import PromptedMask


@dataclass(frozen=True, eq=False)
class Pieces:
    """The embedding of :class:`Oracle`: labels of what is dark."""

    labels: np.ndarray

    @property
    def original_size(self):
        return self.labels.shape

    @property
    def nbytes(self):
        return self.labels.nbytes

    def to_arrays(self):
        return {"labels": self.labels}


class Oracle:
    """Answers with the dark piece under a click, or with the one that fills a box best."""

    device = "cpu"

    def __init__(self, mpp=0.4, stride=32, blind=False):
        self.info = ModelInfo("oracle", "", mpp, 64, 16, stride=stride)
        self.blind = blind

    def embed(self, tile):
        from scipy import ndimage

        assert tile.shape[0] % 32 == tile.shape[1] % 32 == 0
        dark = ndimage.median_filter(tile[..., 0].astype(float), 3) < 170
        return Pieces(ndimage.label(dark)[0])

    def embedding_from_arrays(self, arrays):
        return Pieces(arrays["labels"])

    def embedded_maps(self, embedding):
        return np.zeros((3, *embedding.original_size), np.float32)

    def embedded_classes(self, embedding):
        return None

    def prompt(self, embedding, prompts):
        answers = []
        for prompt in prompts:
            labels = embedding.labels
            if prompt.box is None:
                x, y = prompt.points[0]
                label = labels[int(y), int(x)]
            else:
                x0, y0, x1, y1 = (round(v) for v in prompt.box)
                label = np.bincount(labels[y0:y1, x0:x1].ravel(), minlength=2)[1:].argmax() + 1
            mask = (labels == label) & (label > 0) & (not self.blind)
            answers.append(PromptedMask(mask, float(mask.any())))
        return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("samples"), 2)


@pytest.mark.parametrize("oracle", [Oracle(), Oracle(stride=0), Oracle(mpp=0.3)])
def test_right_answers_score_high_at_any_resolution(folder, oracle):
    report = evaluate_prompts(oracle, read_samples(folder))
    assert list(report["sources"]) == ["Synthetic"]
    assert list(report["mean"]) == list(KINDS)
    assert report["mean"] == report["sources"]["Synthetic"]
    assert report["mean"]["point"] > 0.75
    assert report["mean"]["box"] > 0.75


def test_a_nucleus_that_is_not_found_counts_nothing(folder):
    sample = next(read_samples(folder))
    ious = prompted_ious(Oracle(blind=True), sample)
    assert ious.shape == (sample.labels.max(), len(KINDS))
    assert ious.max() == 0


def test_the_report_of_evaluate_keeps_its_form(folder):
    report = {"sources": {}, "mean": {}}
    extended = with_prompts(report, Oracle(), folder)
    assert list(extended) == ["sources", "mean", "prompts"]
    with pytest.raises(ModelError, match="answers no prompts"):
        with_prompts(report, object(), folder)


def test_the_command_tells_both(folder, command):
    code, said, _ = command("evaluate", "--data", folder, "--prompts", "--json")
    assert code == 0
    report = json.loads(said)
    assert report["prompts"]["mean"].keys() == set(KINDS)
    code, said, _ = command("evaluate", "--data", folder, "--json")
    assert json.loads(said).keys() == {"sources", "mean"}
