"""The prompt decoder's training: stopped anywhere, it goes on with the same result."""

from __future__ import annotations

import copy

import pytest
import torch
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections import prompt_training
from pathosam_qupath.corrections.augmentation import AugmentationConfig
from pathosam_qupath.corrections.dataset import Batch, CropSource
from pathosam_qupath.corrections.prompt_training import train_prompts
from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.corrections.training_config import PromptTraining
from pathosam_qupath.model.network import CompactNetwork, NetworkConfig

CONFIG = PromptTraining(steps=5, crops=2, prompts=3)


class Stopping(CropSource):
    """Crops until a step at which the process is stopped."""

    stop_at = 1_000

    def batch(self, size: int, seed: int, step: int) -> Batch:
        if step == self.stop_at:
            raise KeyboardInterrupt
        return super().batch(size, seed, step)


@pytest.fixture
def crops(tmp_path):
    folder = write_samples(tmp_path / "data", 2, side=96)
    return Stopping(
        list(read_samples(folder)),
        mpp=0.4,
        side=64,
        class_of_type={},
        weights={},
        assumed_diameter_um=8.0,
        augmentation=AugmentationConfig(),
    )


@pytest.fixture
def network():
    torch.manual_seed(2)
    config = NetworkConfig(widths=(8, 16, 16, 16, 16), depths=(0, 1, 1, 1, 1), prompts=True)
    return CompactNetwork(config)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.prompts.state_dict().values()])


def test_a_stopped_training_goes_on_from_its_checkpoint(crops, network, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_training, "_KEEP_EVERY", 2)
    whole, stopped = copy.deepcopy(network), copy.deepcopy(network)
    train_prompts(whole, crops, CONFIG, seed=4)
    crops.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        train_prompts(stopped, crops, CONFIG, seed=4, checkpoint=tmp_path / "prompts.pt")
    assert torch.load(tmp_path / "prompts.pt", weights_only=True)["step"] == 2
    crops.stop_at = 1_000
    train_prompts(stopped, crops, CONFIG, seed=4, checkpoint=tmp_path / "prompts.pt")
    assert torch.equal(weights(stopped), weights(whole))
    assert not torch.equal(weights(whole), weights(network))


def test_the_checkpoint_of_another_network_is_not_taken(crops, network, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_training, "_KEEP_EVERY", 2)
    checkpoint = tmp_path / "prompts.pt"
    train_prompts(copy.deepcopy(network), crops, CONFIG, seed=4, checkpoint=checkpoint)
    with torch.no_grad():
        network.encoder.stem[0].weight.mul_(2)
    fresh, beside = copy.deepcopy(network), copy.deepcopy(network)
    train_prompts(fresh, crops, CONFIG, seed=4)
    train_prompts(beside, crops, CONFIG, seed=4, checkpoint=checkpoint)
    assert torch.equal(weights(fresh), weights(beside))
