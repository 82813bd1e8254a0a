"""Which of two models is better, by a rule that is stated."""

import json

import numpy as np
import pytest
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections.comparison import compare_on_samples, compare_results, own_types
from pathosam_qupath.corrections.evaluation import ImageResult
from pathosam_qupath.corrections.metrics import Scores
from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.errors import UsageError

NAMES = ("old", "new")


def results(values, right=8):
    return [
        ImageResult(str(i), "s", 10, 10, Scores(v, v, v, v), 10, right)
        for i, v in enumerate(values)
    ]


def figure(comparison, name):
    return next(f for f in comparison.figures if f.figure == name)


@pytest.fixture
def base():
    return np.random.default_rng(0).uniform(0.4, 0.8, 30)


def test_a_clear_gain_is_better_and_a_clear_loss_worse(base):
    noise = np.random.default_rng(1).normal(0, 0.01, 30)
    gain = compare_results(results(base), results(base + 0.03 + noise), names=NAMES)
    assert (gain.verdict, gain.images, gain.nuclei) == ("better", 30, 300)
    pq = figure(gain, "pq")
    assert 0 < pq.low < pq.difference < pq.high
    assert pq.difference == pytest.approx(0.03 + noise.mean())
    loss = compare_results(results(base), results(base - 0.03 + noise), names=NAMES)
    assert loss.verdict == "worse"


def test_a_difference_within_the_noise_is_no_worse(base):
    noise = np.random.default_rng(2).normal(0, 0.02, 30)
    noise -= noise.mean() + 0.001
    same = compare_results(results(base), results(base + noise), names=NAMES)
    assert same.verdict == "no worse"
    assert figure(same, "f1_50").low < 0 < figure(same, "f1_50").high
    assert compare_results(results(base), results(base), names=NAMES).verdict == "no worse"


def test_more_than_a_point_lost_is_worse_however_uncertain(base):
    wild = np.random.default_rng(3).normal(0, 0.2, 30)
    wild += -0.02 - wild.mean()
    comparison = compare_results(results(base), results(base + wild), names=NAMES)
    assert figure(comparison, "pq").high > 0
    assert comparison.verdict == "worse"


def test_a_worse_class_accuracy_makes_a_model_worse(base):
    comparison = compare_results(results(base), results(base + 0.05, right=6), names=NAMES)
    assert figure(comparison, "pq").verdict == "better"
    assert figure(comparison, "class_accuracy").difference == pytest.approx(-0.2)
    assert comparison.verdict == "worse"


def test_of_few_images_only_the_margin_counts():
    one = results([0.5])
    assert compare_results(one, results([0.495]), names=NAMES).verdict == "no worse"
    assert compare_results(one, results([0.505]), names=NAMES).verdict == "no worse"
    assert compare_results(one, results([0.52]), names=NAMES).verdict == "better"
    assert compare_results(one, results([0.48]), names=NAMES).verdict == "worse"


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for seed in range(100):
        difference = np.random.default_rng(seed).normal(0.01, 0.05, 40)
        found = compare_results(
            results(np.zeros(40)), results(difference), names=NAMES, seed=seed
        ).figures[0]
        held += found.low <= 0.01 <= found.high
    assert 87 <= held <= 100


def test_without_classes_the_other_figures_decide(base):
    bare = [ImageResult(r.name, r.source, 10, 10, r.scores, 0, 0) for r in results(base)]
    comparison = compare_results(bare, bare, names=NAMES)
    assert figure(comparison, "class_accuracy").a is None
    assert comparison.verdict == "no worse"


def test_a_model_is_no_worse_than_itself(tmp_path, bundled_model):
    samples = list(read_samples(write_samples(tmp_path / "set", 2)))
    comparison = compare_on_samples(bundled_model, bundled_model, samples)
    assert comparison.verdict == "no worse"
    assert all(f.difference == 0 for f in comparison.figures)
    assert figure(comparison, "class_accuracy").a is not None


def test_the_command_compares_and_says_what_it_lacks(tmp_path, command):
    folder = write_samples(tmp_path / "data" / "val", 2)
    words = ["models", "compare", "bundled", "bundled", "--device", "cpu", "--data"]
    for data in (folder, folder.parent):
        code, out, _ = command(*words, data, "--json")
        assert code == 0
        assert json.loads(out)["verdict"] == "no worse"
    code, out, _ = command(*words, folder)
    assert code == 0
    assert "bundled is no worse than bundled" in out
    code, out, _ = command(*words, tmp_path, "--json")
    assert code == 2
    assert "two slides" in json.loads(out)["error"]["remedy"]


def test_names_of_own_classes_lie_beside_the_samples(tmp_path):
    folder = write_samples(tmp_path / "data" / "val", 1)
    assert own_types(folder) == {}
    (tmp_path / "data" / "classes.json").write_text('{"Mitosis": 16}')
    assert own_types(folder) == own_types(folder.parent) == {"Mitosis": 16}
    (tmp_path / "data" / "classes.json").write_text("[")
    with pytest.raises(UsageError, match="cannot be read"):
        own_types(folder)
