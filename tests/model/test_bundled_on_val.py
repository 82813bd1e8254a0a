"""The bundled model on nuclei that it was not trained on; the images are not in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathosam_qupath.corrections.evaluation import evaluate
from pathosam_qupath.model import load_model

VAL = Path(__file__).parents[3] / "shared" / "nuclei" / "val"


@pytest.mark.shared
@pytest.mark.skipif(not VAL.is_dir(), reason="no ../shared/nuclei/val beside the repository")
def test_the_bundled_model_is_worth_using():
    report = evaluate(load_model(device="cpu"), VAL)
    assert report["sources"].keys() == {"NuInsSeg", "TNBC", "PUMA"}
    assert report["mean"]["images"] == 22
    assert report["mean"]["nuclei"] == 2095
    assert report["mean"]["f1_50"] >= 0.60
    assert report["mean"]["class_accuracy"] is not None
