from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections.augmentation import (
    AugmentationConfig,
    Density,
    random_colors,
    random_optics,
)
from pathosam_qupath.corrections.copy_paste import with_pasted_nuclei
from pathosam_qupath.corrections.dataset import CropSource
from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.errors import UsageError

PLAIN = AugmentationConfig(
    scale=(1.0, 1.0),
    stretch=0.0,
    paste_probability=0.0,
    color_probability=0.0,
    elastic_probability=0.0,
    blur_probability=0.0,
    rescan_probability=0.0,
    noise_probability=0.0,
    jpeg_probability=0.0,
)


def crop_source(samples, *, augmentation=PLAIN, mpp=0.4, weights=None):
    return CropSource(
        samples,
        mpp=mpp,
        side=64,
        class_of_type={6: 0, 2: 1},
        weights=weights or {},
        assumed_diameter_um=8.0,
        augmentation=augmentation,
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return list(read_samples(write_samples(tmp_path_factory.mktemp("samples"), 3)))


def test_a_batch_is_a_function_of_seed_and_step(samples):
    augmentation = AugmentationConfig()
    first = crop_source(samples, augmentation=augmentation).batch(4, seed=7, step=12)
    again = crop_source(samples, augmentation=augmentation).batch(4, seed=7, step=12)
    other = crop_source(samples, augmentation=augmentation).batch(4, seed=7, step=13)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.maps, again.maps)
    np.testing.assert_array_equal(first.types, again.types)
    assert (first.images != other.images).any()


def test_image_maps_and_types_stay_together(samples):
    batch = crop_source(samples).batch(8, seed=0, step=0)
    assert batch.images.shape == (8, 64, 64, 3)
    assert batch.maps.shape == (8, 4, 64, 64)
    inside = batch.maps[:, 3] >= 128
    nuclei = (batch.maps[:, 0] == 255) & inside
    ground = (batch.maps[:, 0] == 0) & inside
    # Nuclei are drawn darker than 185 in red, the ground brighter than 200.
    red = batch.images[..., 0].astype(int)
    assert np.median(red[nuclei]) < 140
    assert np.median(red[ground]) > 215
    small = nuclei & (batch.types == 1)
    large = nuclei & (batch.types == 0)
    assert np.median(red[small]) < 80 < 110 < np.median(red[large])
    assert (batch.types[ground & (batch.maps[:, 1] == 255)] == 255).mean() > 0.99


def test_pixel_size_decides_how_large_nuclei_are(samples):
    fine = crop_source(samples, mpp=0.4).batch(16, seed=1, step=0)
    coarse = crop_source(samples, mpp=1.2).batch(16, seed=1, step=0)
    inside = [b.maps[:, 3] >= 128 for b in (fine, coarse)]
    assert inside[1].mean() < 0.75 * inside[0].mean()


def test_a_sample_without_pixel_size_gets_one_from_its_nuclei(samples):
    unknown = [dataclasses.replace(s, mpp=None) for s in samples]
    assert crop_source(unknown).batch(2, seed=0, step=0).images.shape == (2, 64, 64, 3)
    empty = [dataclasses.replace(samples[0], mpp=None, labels=np.zeros((128, 128), np.int32))]
    with pytest.raises(UsageError, match="no pixel size"):
        crop_source(empty)


def test_sources_are_drawn_by_weight(samples):
    black = np.zeros_like(samples[0].image)
    mixed = [*samples[:2], dataclasses.replace(samples[2], source="Black", image=black)]
    batch = crop_source(mixed, weights={"Black": 3.0, "Synthetic": 1.0}).batch(100, 3, 0)
    assert 60 < (batch.images.max(axis=(1, 2, 3)) == 0).sum() < 90


def test_stains_are_exchanged_between_images(samples):
    image = samples[0].image
    rosy, pale = Density.of(image), Density.of(image // 2 + 120)
    config = AugmentationConfig(
        exchange_probability=1.0,
        stain=0.0,
        stain_offset=0.0,
        mixing=0.0,
        gamma=(1.0, 1.0),
        brightness=0.0,
    )
    found = [
        Density.of(random_colors(np.random.default_rng(i), config, image, rosy, pale)).mean
        for i in range(20)
    ]
    assert np.all(np.max(found, axis=0) <= rosy.mean + 0.02)
    assert np.all(np.min(found, axis=0) >= pale.mean - 0.05)
    assert np.ptp([mean[1] for mean in found]) > 0.3 * abs(rosy.mean[1] - pale.mean[1])


def test_elastic_crops_keep_image_and_masks_together(samples):
    elastic = dataclasses.replace(PLAIN, elastic_probability=1.0, elastic=4.0)
    batch = crop_source(samples, augmentation=elastic).batch(8, seed=2, step=0)
    inside = batch.maps[:, 3] >= 128
    nuclei, ground = (batch.maps[:, 0] == 255) & inside, (batch.maps[:, 0] == 0) & inside
    assert np.median(batch.images[..., 0][nuclei]) < 140
    assert np.median(batch.images[..., 0][ground]) > 215
    assert ((batch.labels > 0) == (batch.maps[:, 0] > 127))[inside].mean() > 0.97
    plain = crop_source(samples).batch(8, seed=2, step=0)
    assert (plain.images != batch.images).any()


def test_pasted_nuclei_are_whole_and_labelled(samples):
    crowded = with_pasted_nuclei(samples[0], np.random.default_rng(0), share=1.0)
    before, after = samples[0].labels, crowded.labels
    assert after.max() > before.max()
    np.testing.assert_array_equal(after[before > 0], before[before > 0])
    new = (after > 0) & (before == 0)
    assert np.median(crowded.image[..., 0][new]) < 150
    assert set(np.unique(crowded.types[new])) <= {2, 6}
    np.testing.assert_array_equal(samples[0].labels, before)


def test_colours_and_optics_keep_shape_and_vary(samples):
    image = samples[0].image[:64, :64]
    config = AugmentationConfig(
        blur_probability=1.0, rescan_probability=1.0, noise_probability=1.0, jpeg_probability=1.0
    )
    own, other = Density.of(image), Density.of(255 - image)
    results = [
        random_optics(rng, config, random_colors(rng, config, image, own, other))
        for rng in map(np.random.default_rng, range(20))
    ]
    assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)
    means = np.array([r.mean() for r in results])
    assert means.std() > 5
    # Without jitter, the change of colours is the identity.
    still = AugmentationConfig(
        stain=0.0, stain_offset=0.0, mixing=0.0, gamma=(1.0, 1.0), brightness=0.0, exchange=0.0
    )
    same = random_colors(np.random.default_rng(0), still, image, own, other)
    assert np.abs(same.astype(int) - image).max() <= 1
