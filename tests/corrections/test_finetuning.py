"""Fine-tuning: what learns, what stays, that it can be killed, and when a model is adopted."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from skimage.io import imread, imsave
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections import finetuning
from pathosam_qupath.corrections.comparison import compare_results, own_types
from pathosam_qupath.corrections.evaluation import ImageResult
from pathosam_qupath.corrections.finetuning import FinetuneData, FinetuneOptions, finetune
from pathosam_qupath.corrections.finetuning_run import FinetuneRun
from pathosam_qupath.corrections.gate import against_adoption, finetune_and_judge
from pathosam_qupath.corrections.holding import SHARES, RegressionSet
from pathosam_qupath.corrections.learning_run import (
    CHECKPOINT,
    FinetuneProgress,
    LearningRun,
    Schedule,
)
from pathosam_qupath.corrections.metrics import Scores
from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.network import CompactNetwork, NetworkConfig
from pathosam_qupath.model.weights import (
    CompactDescription,
    file_sha256,
    load_weights,
    save_weights,
)
from pathosam_qupath.tables_corrections import finetune_line

SMALL = {"batch": 2, "side": 64}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user's folder of the test's own."""
    monkeypatch.setenv("PATHOSAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def base(tmp_path):
    """A small untrained model with two classes."""
    torch.manual_seed(1)
    config = NetworkConfig()
    config = replace(config, widths=tuple(8 for _ in config.widths), classes=2)
    description = CompactDescription(
        "tiny",
        0.4,
        tile=128,
        halo=32,
        classes=("Epithelial", "Inflammatory"),
        colors=((1, 2, 3), (4, 5, 6)),
        network=config,
    )
    path = tmp_path / "tiny.safetensors"
    save_weights(path, CompactNetwork(config), description)
    return path


@pytest.fixture
def data(tmp_path):
    """Twelve samples of ellipses, eight to learn from."""
    write_samples(tmp_path / "data" / "train", 6)
    write_samples(tmp_path / "data" / "val", 4, first_seed=50)
    return tmp_path / "data"


def learning(data, **changes):
    train, val = (list(read_samples(data / split)) for split in ("train", "val"))
    return replace(FinetuneData(train, val[:1], identity="test"), **changes)


def state(path):
    return load_weights(path)[0].state_dict()


@pytest.mark.parametrize(
    ("what", "learns"),
    [("class-head", {"types"}), ("decoder", {"types", "instances"}), ("all", None)],
)
def test_only_what_is_asked_for_learns(base, data, tmp_path, what, learns):
    options = FinetuneOptions(what, steps=4, validate_every=2, **SMALL)
    nothing_held_out = learning(data, stopping=[])
    new = state(finetune(base, nothing_held_out, tmp_path / "run", options, name="n").weights)
    old = state(base)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert not any("running" in name for name in changed)
    if learns is None:
        assert {name.split(".")[0] for name in changed} == {"encoder", "instances", "types"}
    else:
        assert {name.split(".")[0] for name in changed} == learns


@pytest.mark.parametrize("what", ["decoder", "all"])
def test_the_prompt_decoder_learns_on_the_network_as_it_came_out(base, data, tmp_path, what):
    network, description = load_weights(base)
    config = replace(description.network, prompts=True)
    torch.manual_seed(3)
    with_prompts = CompactNetwork(config)
    with_prompts.load_state_dict(network.state_dict(), strict=False)
    save_weights(base, with_prompts, replace(description, network=config))
    options = FinetuneOptions(what, steps=2, validate_every=2, prompt_steps=3, **SMALL)
    out = tmp_path / "run"
    nothing_held_out = learning(data, stopping=[])
    finished = finetune(base, nothing_held_out, out, options, name="n").weights
    assert finished.name == "model.safetensors"
    old, best, new = state(base), state(out / "best.safetensors"), state(finished)
    of_prompts = {name for name in old if name.startswith("prompts.")}
    assert all(torch.equal(old[name], best[name]) for name in of_prompts)
    changed = {name for name in best if not torch.equal(best[name], new[name])}
    assert changed
    assert changed <= of_prompts
    assert {name for name in old if not torch.equal(old[name], best[name])}
    content = finished.read_bytes()
    finished.unlink()  # as if it had been killed while the prompts learnt
    again = finetune(base, nothing_held_out, out, options, name="n").weights
    assert again.read_bytes() == content
    without = replace(options, prompt_steps=0)
    kept = finetune(base, nothing_held_out, tmp_path / "other", without, name="n")
    assert kept.weights.name == "best.safetensors"


def test_the_class_head_learns_classes(data, tmp_path, bundled_weights_file):
    swapped = tmp_path / "swapped.safetensors"
    network, description = load_weights(bundled_weights_file)
    classes = (description.classes[1], description.classes[0], *description.classes[2:])
    save_weights(swapped, network, replace(description, classes=classes))
    report = finetune_and_judge(
        swapped,
        data,
        "unswapped",
        FinetuneOptions("class-head", steps=60, validate_every=30, batch=4, side=128),
    )
    accuracy = next(f for f in report.held_out.figures if f.figure == "class_accuracy")
    assert accuracy.difference > 0.2
    assert report.held_out.verdict == "better"
    assert report.adopted
    assert load_model("unswapped", "cpu").info.classes == classes


@pytest.fixture
def bundled_weights_file():
    from pathosam_qupath.model import bundled_weights

    return bundled_weights()[0]


def test_a_new_class_gets_an_output_and_the_others_stay(base, data, tmp_path):
    samples = list(read_samples(data / "train"))
    own = {"Mitosis": 16}
    with_mitoses = [replace(s, types=np.where(s.labels == 1, 16, s.types)) for s in samples]
    changed = learning(data, train=with_mitoses, own_types=own, stopping=[])
    options = FinetuneOptions("class-head", steps=2, validate_every=2, **SMALL)
    _, description = load_weights(
        finetune(base, changed, tmp_path / "run", options, name="with mitoses").weights
    )
    assert description.classes == ("Epithelial", "Inflammatory", "Mitosis")
    assert len(description.colors) == 3
    tile = np.zeros((1, 128, 128, 3), np.uint8)
    assert load_model(tmp_path / "run" / "best.safetensors", "cpu").predict(tile).shape[1] == 6
    with pytest.raises(UsageError, match="Mitosis") as error:
        finetune(base, changed, tmp_path / "other", replace(options, what="decoder"), name="no")
    assert "class-head" in error.value.remedy


def test_a_killed_run_ends_as_if_it_had_not_been(base, data, tmp_path):
    options = FinetuneOptions("all", steps=6, validate_every=2, patience=9, **SMALL)
    whole = finetune(base, learning(data), tmp_path / "whole", options, name="n").weights

    def killed(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(base, learning(data), tmp_path / "cut", options, name="n", progress=killed)
    again = finetune(base, learning(data), tmp_path / "cut", options, name="n").weights
    assert again.read_bytes() == whole.read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "log.jsonl").open()]
    assert steps == [0, 2, 4, 6]


LEARN = """
import sys
from pathlib import Path
from pathosam_qupath.corrections.finetuning import FinetuneData, FinetuneOptions, finetune
from pathosam_qupath.corrections.samples import read_samples
base, data, out = map(Path, sys.argv[1:])
samples = list(read_samples(data / "train"))
options = FinetuneOptions("all", steps=24, validate_every=4, patience=99, batch=2, side=64)
finetune(base, FinetuneData(samples, [], identity="test"), out, options, name="n")
"""


def test_a_process_that_is_killed_without_warning_is_gone_on_with(base, data, tmp_path):
    def learn(out):
        words = [sys.executable, "-c", LEARN, str(base), str(data), str(out)]
        return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def lines(out):
        log = out / "log.jsonl"
        return log.read_text().splitlines() if log.exists() else []

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert learn(whole).wait() == 0
    process = learn(cut)
    while process.poll() is None and len(lines(cut)) < 3:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(lines(cut)) < 7
    assert learn(cut).wait() == 0
    best = "best.safetensors"
    assert (cut / best).read_bytes() == (whole / best).read_bytes()
    steps = [json.loads(line)["step"] for line in lines(cut)]
    assert sorted(set(steps)) == list(range(0, 25, 4))


def test_a_name_is_used_again_in_the_next_round_of_the_loop(base, data, command, home):
    words = ["finetune", "--data", data, "--base", base, "--name", "mine", "--steps", 1]
    words += ["--device", "cpu", "--force", "--json"]
    code, first, _ = command(*words)
    assert code == 0
    more = write_samples(data / "train", 7)
    assert len(list(read_samples(more))) == 7
    code, second, _ = command(*words)
    assert code == 0
    assert json.loads(second)["regions"]["train"] == json.loads(first)["regions"]["train"] + 1
    assert len(list((home / "finetuning" / "mine").iterdir())) == 1


def test_the_same_seed_gives_the_same_model_and_another_another(base, data, tmp_path):
    options = FinetuneOptions("all", steps=2, validate_every=2, **SMALL)
    nothing_held_out = learning(data, stopping=[])
    one, two, other = (
        finetune(
            base, nothing_held_out, tmp_path / name, replace(options, seed=seed), name="n"
        ).weights
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


def test_what_is_kept_lies_on_the_way_from_the_base(base, data, tmp_path):
    options = FinetuneOptions("decoder", steps=4, validate_every=2, learning_rate=0.02, **SMALL)
    nothing_held_out = learning(data, stopping=[])
    half, whole = (
        state(finetune(base, nothing_held_out, tmp_path / str(way), one, name="n").weights)
        for way, one in ((0.5, options), (1.0, replace(options, way=1.0)))
    )
    old = state(base)
    assert max(float((whole[name] - old[name]).abs().max()) for name in old) > 0.01
    for name in old:
        between = (old[name].double() + whole[name].double()) / 2
        # Files hold half precision.
        torch.testing.assert_close(half[name].double(), between, atol=1e-3, rtol=1e-3)


def test_more_nuclei_take_a_decoder_further_from_its_base():
    options = FinetuneOptions("decoder")
    counts = (0, 400, 600, 1200, 5000)
    assert [options.way_with(n) for n in counts] == pytest.approx([0.5, 0.5, 0.6, 0.75, 0.75])
    assert replace(options, way=0.8).way_with(5000) == 0.8
    assert {FinetuneOptions("all").way_with(n) for n in counts} == {1.0}


def test_replayed_nuclei_do_not_take_it_further(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "BASE_WORTH", 10)
    few = learning(data).train[:1]
    nuclei = sum(len(set(sample.labels.flat) - {0}) for sample in few)
    learnt = learning(data, train=few, replay=learning(data).train)
    assert learnt.nuclei == nuclei
    assert 10 < nuclei < 30
    network, description = load_weights(base)
    options = FinetuneOptions("decoder", **SMALL)
    run = FinetuneRun(network, description, learnt, tmp_path, options, "cpu")
    assert run.way == pytest.approx(nuclei / (nuclei + 10))


class Scored(LearningRun):
    """Learns nothing, and is as good as it is told."""

    about = 0.03

    def __init__(self, out, scores):
        self.scores, self.kept = scores, []
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1}]
        super().__init__(groups, Schedule(len(scores) - 1, 1, 2), out, "", "cpu")

    def prepared(self, step):
        return None

    def learn(self, batch):
        return 0.0

    def score(self):
        return self.scores[self.step]

    def keep(self):
        self.kept.append(self.step)


@pytest.mark.parametrize(
    ("scores", "kept", "ended"),
    [
        ([1.0, 1.2, 1.2, 1.18], [0, 1, 2, 3], 3),  # as good, and about as good: the later one
        ([1.0, 1.2, 1.18, 1.16], [0, 1, 2], 3),  # about as good as the one before is not enough
        ([1.0, 1.02, 1.0, 1.0], [0, 1], 3),  # no better than the base
        ([1.0, 0.9, 0.99, 1.2], [0], 2),  # no progress: it ends
    ],
)
def test_the_last_of_the_good_states_is_kept(tmp_path, scores, kept, ended):
    run = Scored(tmp_path, scores)
    run.go_on(None)
    assert (run.kept, run.best_step, run.step) == (kept, kept[-1], ended)
    assert (run.first, run.best) == (1.0, max(scores[: ended + 1]))
    again = Scored(tmp_path, scores)
    again.resume()
    assert (again.first, again.best, again.best_step) == (run.first, run.best, run.best_step)


def smaller(samples):
    """The samples with outlines that are two pixels too small."""
    return [
        replace(s, labels=np.where(binary_erosion(s.labels > 0, iterations=2), s.labels, 0))
        for s in samples
    ]


def test_what_loses_elsewhere_goes_back_towards_its_base(bundled_weights_file, data, tmp_path):
    taught = smaller(learning(data).train)
    elsewhere = RegressionSet(list(read_samples(data / "val")), identity="one")
    learnt = learning(data, train=taught, stopping=[], regression=elsewhere)
    options = FinetuneOptions(
        "decoder", steps=6, validate_every=6, learning_rate=0.01, way=1.0, prompt_steps=2, **SMALL
    )
    out = tmp_path / "run"
    done = finetune(bundled_weights_file, learnt, out, options, name="n")
    assert 0.0 < done.share < 1.0
    assert done.way == done.share
    old, best, new = map(state, (bundled_weights_file, out / "best.safetensors", done.weights))
    for name in old:
        if not name.startswith("prompts."):
            between = torch.lerp(old[name].double(), best[name].double(), done.share)
            torch.testing.assert_close(new[name].double(), between, atol=2e-3, rtol=2e-3)
    assert not all(torch.equal(new[n], old[n]) for n in old if n.startswith("prompts."))

    tried = {float(k): v for k, v in json.loads((out / "held.json").read_text())["tried"].items()}
    assert list(tried) == [share for share in SHARES if share >= done.share]
    for share, figures in tried.items():
        lost = [f for f in figures if f["difference"] < -0.01]
        assert bool(lost) == (share != done.share)

    seen = []
    again = finetune(bundled_weights_file, learnt, out, options, name="n", progress=seen.append)
    assert (again, seen) == (done, [])
    other = replace(learnt, regression=replace(elsewhere, identity="two"))
    finetune(bundled_weights_file, other, out, options, name="n", progress=seen.append)
    each = len(elsewhere.samples)
    models = range(1, 2 + len(tried))
    assert {each * n for n in models} <= {p.step for p in seen}
    assert max(p.step for p in seen) == each * models[-1]
    assert {p.stage for p in seen} == {"holding"}


def test_a_model_that_loses_too_much_elsewhere_is_its_base_again(
    bundled_weights_file, data, tmp_path
):
    one = write_samples(tmp_path / "one" / "train", 1)
    for file in (one / "labels").iterdir():
        labels = imread(file)
        small = np.where(binary_erosion(labels > 0, iterations=2), labels, 0)
        imsave(file, small.astype(labels.dtype), check_contrast=False)
    options = FinetuneOptions(
        "decoder", steps=10, validate_every=10, learning_rate=0.02, way=1.0, **SMALL
    )
    report = finetune_and_judge(
        bundled_weights_file, one.parent, "small", options, regression=data, force=True
    )
    assert report.way == 0.0
    assert "It is its base again" in report.notes[0]
    assert {f.difference for f in report.regression.figures} == {0.0}
    old, new = state(bundled_weights_file), state(Path(report.weights))
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_sets_beside_the_models_are_used_unless_others_are_given(base, data, home, command):
    write_samples(home / "replay", 3, first_seed=80)
    write_samples(home / "regression", 2, first_seed=90)
    words = ["finetune", "--data", data, "--base", base, "--name", "mine", "--steps", 1]
    words += ["--device", "cpu", "--force", "--json"]
    code, found, _ = command(*words)
    assert code == 0
    assert json.loads(found)["regions"]["replay"] == 3
    assert json.loads(found)["regression"]["images"] == 2
    code, given, _ = command(*words, "--regression", data / "val", "--replay", data / "val")
    assert code == 0
    assert json.loads(given)["regions"]["replay"] == 4
    assert json.loads(given)["regression"]["images"] == 4


def test_progress_of_the_regression_set_is_told():
    progress = FinetuneProgress(3, 20, None, 0.5, False, 4.0, "holding")
    assert finetune_line(progress) == "regression set, image 3 of 20 at most · 4 s"


def test_another_run_in_the_folder_is_refused(base, data, tmp_path):
    options = FinetuneOptions("decoder", steps=2, validate_every=2, **SMALL)
    finetune(base, learning(data), tmp_path / "run", options, name="n")
    with pytest.raises(UsageError, match="another model, other data or other options"):
        finetune(base, learning(data, identity="else"), tmp_path / "run", options, name="n")


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    Scored(tmp_path, [1.0, 1.2, 1.2, 1.2]).go_on(None)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state["layout"], state["first"]
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(UsageError, match="another version"):
        Scored(tmp_path, [1.0]).resume()


def test_it_stops_early_and_keeps_the_best(base, data, tmp_path):
    seen = []
    options = FinetuneOptions(
        "all", steps=40, validate_every=1, patience=2, learning_rate=1e-12, **SMALL
    )
    finetune(base, learning(data), tmp_path / "run", options, name="n", progress=seen.append)
    assert [p.step for p in seen] == [0, 1, 2]
    assert [p.best for p in seen] == [True, False, False]


def test_replayed_samples_are_half_of_the_crops(base, data, tmp_path):
    from pathosam_qupath.corrections.finetuning_crops import crop_source

    replay = list(read_samples(write_samples(tmp_path / "replay", 1, first_seed=90)))
    crops = crop_source(learning(data, replay=replay), {2: 1}, mpp=0.4, side=64)
    assert crops.sources == ["corrections", "replay"]
    assert crops._chances.tolist() == [0.5, 0.5]


def test_a_model_that_nothing_speaks_for_is_not_adopted_unless_forced(
    base, tmp_path, command, home
):
    write_samples(tmp_path / "one" / "train", 1)
    words = ["finetune", "--data", tmp_path / "one", "--base", base, "--name", "mine"]
    words += ["--steps", 1, "--device", "cpu", "--json"]
    code, out, _ = command(*words)
    report = json.loads(out)
    assert code == 5
    assert not report["adopted"]
    assert "Nothing is held out" in " ".join(report["notes"])
    with pytest.raises(ModelError, match="neither a model's name nor a file"):
        load_model("mine", "cpu")
    code, out, _ = command(*words, "--force")
    assert code == 0
    assert json.loads(out)["forced"]
    card = json.loads((home / "models" / "mine" / "card.json").read_text())
    assert card["forced"]
    assert card["parent"] == str(base)
    assert card["parent_sha256"] == file_sha256(base)
    assert len(card["data_sha256"]) == 64
    assert card["regions"] == {"train": 1, "stopping": 0, "judging": 0, "replay": 0}
    assert load_model("mine", "cpu").info.name == "mine"
    _, out, _ = command("models", "list", "--json")
    assert "worse" in {m["name"]: m for m in json.loads(out)}["mine"]["description"]
    code, _, _ = command("models", "verify", "mine", "--json")
    assert code == 0


def test_worse_on_held_out_regions_or_a_point_lost_elsewhere_speaks_against_a_model():
    old = scored([0.5] * 8)
    same, little, lost = (
        compare_results(old, scored([0.5 - loss] * 8), names=("old", "new"))
        for loss in (0.0, 0.004, 0.02)
    )
    assert against_adoption(same, None) == []
    assert against_adoption(same, same) == []
    assert "held-out" in against_adoption(little, None)[0]  # little, but certain
    assert against_adoption(same, little) == []
    assert "regression" in against_adoption(same, lost)[0]
    assert "Nothing is held out" in against_adoption(None, same)[0]
    assert against_adoption(same, None, {"point": (0.70, 0.695), "box": (0.8, 0.9)}) == []
    assert "IoU: box" in against_adoption(same, None, {"point": (0.7, 0.7), "box": (0.8, 0.7)})[0]


def scored(values):
    return [ImageResult("i", "s", 9, 9, Scores(v, v, v, v), 0, 0) for v in values]


def test_names_that_are_taken_or_no_names_are_refused(data, command):
    for name in ("bundled", "vit_b_histopathology", "../there", ""):
        code, out, _ = command("finetune", "--data", data, "--name", name, "--json")
        assert code == 2, name
        assert "--name" in json.loads(out)["error"]["subject"]


def test_what_cannot_be_learnt_from_is_an_error(base, data, tmp_path, command):
    empty = write_samples(tmp_path / "empty" / "train", 2)
    for file in (empty / "labels").iterdir():
        imsave(file, np.zeros((128, 128), np.uint16), check_contrast=False)
    words = ["--name", "n", "--device", "cpu", "--json"]
    code, out, _ = command("finetune", "--data", empty.parent, "--base", base, *words)
    assert code == 2
    assert "no nucleus" in json.loads(out)["error"]["cause"]
    code, out, _ = command("finetune", "--data", tmp_path, "--base", base, *words)
    assert code == 2
    assert "corrections export" in json.loads(out)["error"]["remedy"]
    code, out, _ = command("finetune", "--data", data, "--base", "vit_b", *words)
    assert code == 5
    assert "fine-tuned" in json.loads(out)["error"]["cause"]


def test_own_types_are_read_from_the_export(data):
    (data / "classes.json").write_text('{"Mitosis": 16}')
    assert own_types(data) == {"Mitosis": 16}
