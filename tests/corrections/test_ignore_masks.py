"""Where nobody looked, nothing is taught and nothing is counted."""

import dataclasses

import numpy as np
import pytest
from skimage.io import imsave
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections.augmentation import AugmentationConfig
from pathosam_qupath.corrections.dataset import CropSource
from pathosam_qupath.corrections.evaluation import score_sample
from pathosam_qupath.corrections.samples import read_samples


@pytest.fixture
def folder(tmp_path):
    """Two samples; of the first, the left half was not reviewed."""
    folder = write_samples(tmp_path / "set", 2)
    ignore = np.zeros((128, 128), np.uint8)
    ignore[:, :64] = 255
    (folder / "ignore").mkdir()
    imsave(folder / "ignore" / "image_0.png", ignore, check_contrast=False)
    manifest = (folder / "manifest.csv").read_text().splitlines()
    lines = [manifest[0] + ",ignore", manifest[1] + ",ignore/image_0.png", manifest[2] + ","]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_masks_are_read_with_and_without_a_manifest(folder):
    for _ in range(2):
        first, second = read_samples(folder)
        assert first.ignore[:, :64].all()
        assert not first.ignore[:, 64:].any()
        assert second.ignore is None
        (folder / "manifest.csv").unlink(missing_ok=True)


def test_training_neither_learns_maps_nor_classes_there(folder):
    first = next(iter(read_samples(folder)))
    still = AugmentationConfig()
    crops = CropSource(
        [dataclasses.replace(first, ignore=np.ones_like(first.ignore))],
        mpp=0.4,
        side=64,
        class_of_type={2: 0, 6: 1},
        weights={},
        assumed_diameter_um=8,
        augmentation=still,
    )
    batch = crops.batch(4, seed=0, step=0)
    assert not batch.maps[:, 3].any()
    assert (batch.types == 255).all()
    half = CropSource(
        [first],
        mpp=0.4,
        side=64,
        class_of_type={2: 0, 6: 1},
        weights={},
        assumed_diameter_um=8,
        augmentation=still,
    )
    maps = half.batch(8, seed=0, step=0).maps
    assert 0 < (maps[:, 3] > 115).mean() < 1


def test_nuclei_found_there_do_not_count(folder, bundled_model):
    first = next(iter(read_samples(folder)))
    everything = score_sample(bundled_model, dataclasses.replace(first, ignore=None))
    reviewed = np.where(first.ignore, 0, first.labels)
    seen = score_sample(bundled_model, dataclasses.replace(first, labels=reviewed))
    assert 0 < seen.predicted < everything.predicted
    nothing = dataclasses.replace(
        first, labels=np.zeros_like(first.labels), ignore=np.ones_like(first.ignore)
    )
    assert score_sample(bundled_model, nothing).predicted == 0
