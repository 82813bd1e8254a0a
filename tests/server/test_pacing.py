import threading

import numpy as np
import pytest
import torch
from torch import nn

from pathosam_qupath.model.interrupting import watch_layers
from pathosam_qupath.server.job import CancelledError
from pathosam_qupath.server.pacing import Device, PacedModel


class Layer(nn.Module):
    """Counts its calls; the third one cancels, as a request in another thread would."""

    def __init__(self, calls, cancelled, last):
        super().__init__()
        self.calls, self.cancelled, self.last = calls, cancelled, last

    def forward(self, x):
        self.calls.append(self)
        if len(self.calls) == self.last:
            self.cancelled.set()
        return x


class Model:
    """A network of ten layers behind the interface that segmentation asks for."""

    info, device = None, "cpu"

    def __init__(self, cancelled, last=3):
        self.calls = []
        self.network = nn.Sequential(*(Layer(self.calls, cancelled, last) for _ in range(10)))

    def predict(self, tiles):
        return self.network(torch.from_numpy(tiles)).numpy()


@pytest.fixture(autouse=True)
def watched():
    handle = watch_layers()
    yield
    handle.remove()
    watch_layers.cache_clear()


def test_a_cancelled_job_ends_between_two_layers_of_one_tile():
    cancelled = threading.Event()
    model = Model(cancelled)
    with pytest.raises(CancelledError):
        PacedModel(model, Device(), cancelled).predict(np.zeros((1, 8, 8, 3), np.uint8))
    assert len(model.calls) == 3


def test_other_work_with_the_same_network_goes_on():
    cancelled = threading.Event()
    cancelled.set()
    model = Model(cancelled)
    tiles = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(CancelledError):
        PacedModel(model, Device(), cancelled).predict(tiles)
    assert model.calls == []
    assert model.predict(tiles).shape == tiles.shape
    other = PacedModel(model, Device(), threading.Event())
    assert other.predict(tiles).shape == tiles.shape
    assert len(model.calls) == 20


def test_a_tile_waits_for_a_prompt():
    device, order = Device(), []

    def tile():
        device.let_prompts_pass(threading.Event())
        order.append("tile")

    with device.prompting():
        thread = threading.Thread(target=tile)
        thread.start()
        thread.join(0.3)
        order.append("prompt")
    thread.join(10)
    assert order == ["prompt", "tile"]
