"""Who teaches, who tells when to stop, who judges."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.corrections.splitting import folder_hash, sample_folders, split_samples
from pathosam_qupath.errors import UsageError


@pytest.fixture
def samples(tmp_path):
    """Twelve samples with nuclei."""
    return list(read_samples(write_samples(tmp_path / "data", 12, side=64)))


def names(samples):
    return [sample.name for sample in samples]


def test_held_out_slides_are_halved(samples):
    split = split_samples(samples[:6], samples[6:])
    assert names(split.train) == names(samples[:6])
    assert names(split.stopping) == names(samples[6::2])
    assert names(split.judging) == names(samples[7::2])
    assert split.notes == ()


def test_of_one_slide_every_fifth_region_is_held_out(samples):
    split = split_samples(samples, [])
    assert len(split.train) == 9
    assert names(split.stopping) == names(split.judging) == names(samples[1::5])
    assert not set(names(split.train)) & set(names(split.judging))
    assert len(split.notes) == 2


def test_regions_without_nuclei_teach_but_do_not_judge(samples):
    empty = [replace(s, labels=np.zeros_like(s.labels)) for s in samples[:6]]
    split = split_samples([*empty, *samples[6:]], [])
    assert all(sample.labels.any() for sample in split.judging)
    assert set(names(empty)) <= set(names(split.train))
    nothing = split_samples(empty, [])
    assert len(nothing.judging) == 1


def test_one_region_alone_teaches(samples):
    split = split_samples(samples[:1], [])
    assert (len(split.train), len(split.judging)) == (1, 0)


def test_what_is_no_folder_of_samples_is_refused_and_others_have_a_hash(samples, tmp_path):
    with pytest.raises(UsageError, match="neither samples"):
        sample_folders(tmp_path)
    folder = tmp_path / "data"
    before = folder_hash([folder])
    assert folder_hash([folder]) == before
    (folder / "labels" / "image_0.png").write_bytes(b"changed")
    assert folder_hash([folder]) != before
