"""The bundled model on nuclei that it was not trained on; the images are not in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathosam_qupath.corrections.evaluation import evaluate
from pathosam_qupath.corrections.prompt_evaluation import evaluate_prompts
from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.model import load_model
from pathosam_qupath.model.prompts import promptable

VAL = Path(__file__).parents[3] / "shared" / "nuclei" / "val"


HERE = pytest.mark.skipif(not VAL.is_dir(), reason="no ../shared/nuclei/val beside the repository")


@pytest.mark.shared
@HERE
def test_the_bundled_model_is_worth_using():
    report = evaluate(load_model(device="cpu"), VAL)
    assert report["sources"].keys() == {"NuInsSeg", "TNBC", "PUMA"}
    assert report["mean"]["images"] == 22
    assert report["mean"]["nuclei"] == 2095
    assert report["mean"]["f1_50"] >= 0.81
    assert report["mean"]["msa"] >= 0.40
    assert report["sources"]["NuInsSeg"]["msa"] >= 0.32
    assert report["sources"]["TNBC"]["msa"] >= 0.41
    assert report["mean"]["class_accuracy"] is not None


@pytest.mark.shared
@HERE
def test_one_click_or_one_box_finds_a_nucleus():
    some = [s for s in read_samples(VAL) if s.source != "PUMA"][::4]
    answers = evaluate_prompts(promptable(load_model(device="cpu")), some)
    assert answers["mean"]["point"] >= 0.70
    assert answers["mean"]["box"] >= 0.80
