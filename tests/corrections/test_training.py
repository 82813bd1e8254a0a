"""A tiny run: it learns, resumes as if never stopped, and its file is a model."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections.augmentation import AugmentationConfig
from pathosam_qupath.corrections.evaluation import evaluate
from pathosam_qupath.corrections.training import read_training_data, train
from pathosam_qupath.corrections.training_config import (
    NucleusClass,
    PromptTraining,
    TrainingConfig,
    read_training_config,
)
from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.network import NetworkConfig
from pathosam_qupath.model.weights import load_weights

CONFIG = TrainingConfig(
    name="tiny",
    seed=3,
    classes=(
        NucleusClass("Epithelial", (200, 0, 0), (6,)),
        NucleusClass("Inflammatory", (160, 90, 160), (2,)),
    ),
    steps=4,
    batch=2,
    side=64,
    tile=64,
    halo=16,
    warmup=1,
    checkpoint_every=2,
    validate_every=2,
    ema=0.5,
    bfloat16=False,
    network=NetworkConfig(widths=(8, 16, 16, 16, 16), depths=(0, 1, 1, 1, 1), classes=2),
)


@pytest.fixture(autouse=True)
def one_thread():
    # Small tensors: a second thread costs more than it gives, most of all on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_samples(folder / "train", 3, side=96)
    write_samples(folder / "val", 1, first_seed=50, side=96)
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one(data, tmp_path):
    lines = []
    whole = train(CONFIG, [data], tmp_path / "whole", progress=lines.append)
    assert [line.step for line in lines] == [2, 4]
    assert lines[-1].validation["mean"]["images"] == 1

    # Without a decay, a shorter run is a prefix of a longer one.
    short = dataclasses.replace(CONFIG, steps=2, decay=0.0)
    full = dataclasses.replace(CONFIG, decay=0.0)
    train(short, [data], tmp_path / "halves")
    train(full, [data], tmp_path / "halves")
    train(full, [data], tmp_path / "once")
    halves, _ = load_weights(tmp_path / "halves" / "last.safetensors")
    once, _ = load_weights(tmp_path / "once" / "last.safetensors")
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, halves.state_dict()[name]), name
    assert whole.name == "best.safetensors"
    log = (tmp_path / "halves" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 4]


def test_what_was_trained_is_a_model(data, tmp_path):
    path = train(CONFIG, [data], tmp_path)
    model = load_model(path, device="cpu")
    assert model.info.name == "tiny"
    assert model.info.classes == ("Epithelial", "Inflammatory")
    assert model.info.mpp == 0.4
    report = evaluate(model, data / "val")
    assert report["sources"].keys() == {"Synthetic"}


def test_training_learns_nuclei_and_classes(data, tmp_path):
    config = dataclasses.replace(
        CONFIG, steps=100, checkpoint_every=100, ema=0.9, learning_rate=5e-3, batch=4
    )
    lines = []
    train(config, [data], tmp_path, progress=lines.append)
    mean = lines[-1].validation["mean"]
    assert mean["f1_50"] > 0.6
    assert mean["class_accuracy"] > 0.8


def test_shards_of_a_batch_learn_together(data, tmp_path):
    sharded = dataclasses.replace(CONFIG, steps=2, batch=4, shards=2)
    first = train(sharded, [data / "train"], tmp_path / "first")
    again = train(sharded, [data / "train"], tmp_path / "again")
    for name, tensor in load_weights(first)[0].named_parameters():
        assert torch.equal(tensor, load_weights(again)[0].get_parameter(name)), name


def test_a_prompt_decoder_is_trained_on_the_finished_network(data, tmp_path):
    config = dataclasses.replace(CONFIG, prompts=PromptTraining(steps=3, crops=2, prompts=4))
    path = train(config, [data], tmp_path)
    assert path.name == "model.safetensors"
    before, after = load_weights(tmp_path / "best.safetensors")[0], load_weights(path)[0]
    assert before.prompts is None
    assert after.prompts is not None
    for name, tensor in before.named_parameters():
        assert torch.equal(tensor, after.get_parameter(name)), name
    written = path.stat().st_mtime_ns
    assert train(config, [data], tmp_path) == path
    assert path.stat().st_mtime_ns == written


def test_a_run_is_not_mixed_with_another(data, tmp_path):
    train(dataclasses.replace(CONFIG, steps=1), [data], tmp_path)
    with pytest.raises(UsageError, match="another seed or network"):
        train(dataclasses.replace(CONFIG, seed=4), [data], tmp_path)


def test_fine_tuning_starts_from_weights_of_the_same_network(data, tmp_path):
    path = train(CONFIG, [data], tmp_path / "first")
    nothing = dataclasses.replace(CONFIG, steps=1, learning_rate=0.0, ema=0.0)
    tuned = train(nothing, [data / "train"], tmp_path / "second", initial=path)
    before, after = load_weights(path)[0], load_weights(tuned)[0]
    for name, tensor in before.named_parameters():
        assert torch.equal(tensor, after.get_parameter(name)), name
    wider = dataclasses.replace(
        CONFIG, network=NetworkConfig(widths=(16, 16, 16, 16, 16), classes=2)
    )
    with pytest.raises(ModelError, match="is not the configuration's"):
        train(wider, [data], tmp_path / "third", initial=path)


def test_every_nth_sample_is_held_out(data):
    config = dataclasses.replace(CONFIG, hold_out={"train": 3})
    split = read_training_data(config, [data])
    assert [s.name for s in split.train] == ["image_0", "image_1"]
    assert [s.name for s in split.validation] == ["image_2", "image_0"]


def test_a_folder_without_samples_is_refused(tmp_path):
    with pytest.raises(UsageError, match="neither samples nor"):
        train(CONFIG, [tmp_path], tmp_path / "out")


@pytest.mark.parametrize("name", ["training.json", "continuation.json"])
def test_the_bundled_configurations_are_readable(name):
    from pathosam_qupath.model import bundled_file

    config = read_training_config(bundled_file(name))
    assert [c.name for c in config.classes] == ["Epithelial", "Inflammatory", "Connective"]
    assert config.network.classes == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ('{"stepz": 3}', "stepz"),
        ('{"classes": [{"name": "A"}]}', "color"),
        ('{"side": 100}', "multiples of 32"),
        ('{"classes": [{"name": "A", "color": [1, 2, 3], "types": [9]}]}', "unknown type ids"),
        ("[1]", "no training configuration"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_training_config(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_training_config(tmp_path / "absent.json")


def test_the_last_steps_have_an_augmentation_of_their_own(data, tmp_path):
    still = AugmentationConfig(
        scale_sigma=0.0, stretch=0.0, color_probability=0.0, elastic_probability=0.0,
        blur_probability=0.0, rescan_probability=0.0, noise_probability=0.0,
        jpeg_probability=0.0, paste_probability=0.0,
    )  # fmt: skip
    config = dataclasses.replace(CONFIG, decay=0.5)
    same = dataclasses.replace(config, final_augmentation=config.augmentation)
    other = dataclasses.replace(config, final_augmentation=still)
    ends = {}
    for name, variant in (("plain", config), ("same", same), ("other", other)):
        train(dataclasses.replace(variant, steps=2, decay=0.0), [data / "train"], tmp_path / name)
        halfway = load_weights(tmp_path / name / "last.safetensors")[0]
        train(variant, [data / "train"], tmp_path / name)
        end = load_weights(tmp_path / name / "last.safetensors")[0]
        ends[name] = [torch.cat([p.flatten() for p in n.parameters()]) for n in (halfway, end)]
    assert torch.equal(ends["plain"][1], ends["same"][1])
    assert torch.equal(ends["plain"][0], ends["other"][0])
    assert not torch.equal(ends["plain"][1], ends["other"][1])
