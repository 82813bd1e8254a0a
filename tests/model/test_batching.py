"""Batches that fit into memory, and tiles prepared ahead of them."""

import numpy as np
import pytest
import torch
from golden_pathosam import golden, tiny_model

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.batching import BatchSize, is_out_of_memory, prepared_ahead, upload
from pathosam_qupath.model.preprocessing import normalize, prepare


class Crowded(torch.nn.Module):
    """A network on a device that holds so many tiles and no more."""

    def __init__(self, most, error):
        super().__init__()
        self.most = most
        self.error = error
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.most:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return x * 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_batches_are_halved_until_they_fit(error):
    network = Crowded(2, error)
    batch = BatchSize(8, "crowded")
    items = [torch.tensor([float(i)]) for i in range(7)]
    found = batch.run(items, lambda part: list(network(torch.cat(list(part)))))
    assert [value.item() for value in found] == [0, 2, 4, 6, 8, 10, 12]
    assert network.seen == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert batch.size == 1


def test_what_has_worked_is_kept():
    network = Crowded(4, torch.OutOfMemoryError)
    batch = BatchSize(8, "crowded")
    items = [torch.tensor([float(i)]) for i in range(16)]
    for _ in range(2):
        batch.run(items, lambda part: list(network(torch.cat(list(part)))))
    assert network.seen == [8] + 8 * [4]


def test_one_tile_too_many_is_an_error():
    network = Crowded(0, torch.OutOfMemoryError)
    with pytest.raises(ModelError, match="not enough memory for a single tile"):
        BatchSize(4, "crowded").run([torch.zeros(1)], lambda part: list(network(part[0])))


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as failure:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(failure.value)


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes"):
        BatchSize(4, "any").run([1, 2], lambda _: _raise(RuntimeError("shapes do not fit")))


def _raise(error):
    raise error


def test_tiles_are_prepared_in_order():
    tiles = [np.random.default_rng(i).integers(0, 255, (20, 20, 3), np.uint8) for i in range(5)]
    found = list(prepared_ahead(tiles, 40, 2))
    assert len(found) == 5
    for tile, prepared in zip(tiles, found, strict=True):
        assert np.array_equal(prepared.pixels, prepare(tile, 40).pixels)
    batch = upload(found, 40, "cpu")
    assert torch.equal(batch[3:4], normalize(found[3], 40))


def test_a_model_out_of_memory_goes_on_with_smaller_batches(monkeypatch):
    tile = golden("tile")["tile_u8"]
    tiles = np.stack([np.roll(tile, 9 * i, axis=0) for i in range(4)])
    expected = tiny_model().predict(tiles)
    model = tiny_model()
    model._batch.size = 4
    encode, seen = model.sam.encode, []

    def crowded(pixels):
        seen.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    monkeypatch.setattr(model.sam, "encode", crowded)
    found = model.predict(tiles)
    assert seen == [4, 2, 2]
    assert np.abs(found - expected).max() <= 1e-5
