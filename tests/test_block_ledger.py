"""Finished blocks survive whatever tears the file, and nothing else is taken for one."""

import random

import numpy as np
import pytest
import shapely

from pathosam_qupath.block_ledger import open_ledger
from pathosam_qupath.errors import RunError
from pathosam_qupath.segmentation.objects import Objects
from pathosam_qupath.segmentation.pipeline import BlockResult

IDENTITY = {"model": {"name": "compact", "weights_hash": "00ff"}, "mpp": [0.25, 0.25]}


def block(number, count=5, classes=3):
    random = np.random.default_rng(number)
    at = random.uniform(0, 1000, (count, 2))
    return BlockResult(
        number,
        Objects(
            np.floor(at).astype(np.int64),
            np.array([shapely.Point(*xy).buffer(3.3) for xy in at], object),
            random.uniform(0, 100, (count, classes)),
        ),
        {(number, 2): "blank", (3, number): "blurred"},
    )


def same(one, other):
    assert one.number == other.number
    assert one.quality == other.quality
    assert np.array_equal(one.objects.anchors, other.objects.anchors)
    assert np.array_equal(one.objects.class_sums, other.objects.class_sums)
    assert shapely.to_wkb(one.objects.polygons).tolist() == (
        shapely.to_wkb(other.objects.polygons).tolist()
    )


@pytest.mark.parametrize(("count", "classes"), [(5, 3), (0, 3), (4, 0), (0, 0)])
def test_blocks_come_back_to_the_last_bit(tmp_path, count, classes):
    path = tmp_path / "image" / "blocks"
    written = [block(number, count, classes) for number in (4, 0, 9)]
    with open_ledger(path, IDENTITY) as ledger:
        for result in written:
            ledger.append(result)
    with open_ledger(path, IDENTITY) as ledger:
        assert ledger.done == {0, 4, 9}
        assert ledger.objects == 3 * count
        assert ledger.differences == []
        by_number = sorted(written, key=lambda result: result.number)
        for one, other in zip(ledger.results(), by_number, strict=True):
            same(one, other)


def test_a_file_cut_anywhere_keeps_the_blocks_before_the_cut_and_goes_on(tmp_path):
    path = tmp_path / "blocks"
    ends = []
    with open_ledger(path, IDENTITY) as ledger:
        for number in range(4):
            ledger.append(block(number))
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    rng = random.Random(1)
    for cut in [0, 3, 8, 20, *rng.sample(range(len(whole)), 8), *ends]:
        path.write_bytes(whole[:cut])
        with open_ledger(path, IDENTITY) as ledger:
            assert ledger.done == {n for n, end in enumerate(ends) if end <= cut}
            ledger.append(block(7))
            assert [r.number for r in ledger.results()][-1] == 7
            for result in ledger.results():
                same(result, block(result.number))


def test_a_flipped_bit_costs_blocks_but_never_gives_wrong_ones(tmp_path):
    path = tmp_path / "blocks"
    with open_ledger(path, IDENTITY) as ledger:
        for number in range(3):
            ledger.append(block(number))
    whole = path.read_bytes()
    rng = random.Random(2)
    for at in rng.sample(range(len(whole)), 12):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with open_ledger(path, IDENTITY) as ledger:
            assert len(ledger.done) < 3
            for result in ledger.results():
                same(result, block(result.number))
    path.write_bytes(whole)
    with open_ledger(path, IDENTITY) as ledger:
        path.write_bytes(whole[:-1])
        with pytest.raises(RunError, match="block 2 cannot be read back"):
            list(ledger.results())


def test_blocks_of_something_else_are_not_used_and_the_difference_is_told(tmp_path):
    path = tmp_path / "blocks"
    with open_ledger(path, IDENTITY) as ledger:
        ledger.append(block(1))
    other = {**IDENTITY, "model": {"name": "compact", "weights_hash": "beef"}}
    with open_ledger(path, other) as ledger:
        assert ledger.done == set()
        assert ledger.differences == ["model weights_hash: 00ff then, beef now"]
    with open_ledger(path, other) as ledger:
        assert ledger.differences == []


def test_a_place_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        open_ledger(tmp_path / "file" / "blocks", IDENTITY)
