"""What SAM sees of a tile is, value for value, what the reference shows it."""

import numpy as np
import pytest
from golden_pathosam import SIDE, golden

from pathosam_qupath.errors import ImageError
from pathosam_qupath.model.preprocessing import (
    normalize,
    prepare,
    resize_longest_side,
    resized_shape,
    stretch_contrast,
)


@pytest.fixture(scope="module")
def tile():
    return golden("tile")


def test_stretch_and_resize_equal_the_reference(tile):
    stretched = stretch_contrast(tile["tile_u8"])
    assert np.array_equal(stretched, tile["to_image_u8"])
    assert np.array_equal(resize_longest_side(stretched, SIDE), tile["resized_u8"])


def test_normalised_values_equal_the_reference(tile):
    values = normalize(prepare(tile["tile_u8"], SIDE), SIDE).numpy()[0]
    assert np.array_equal(values[:, :8, :8], tile["preprocessed_corner"])
    assert np.allclose([values.mean(), values.std()], tile["preprocessed_mean_std"], atol=1e-6)


def test_longer_side_becomes_the_input_and_the_rest_is_zero(tile):
    prepared = prepare(tile["odd_u8"], SIDE)
    assert prepared.pixels.shape == tuple(tile["odd_resized_shape"])
    assert prepared.original_size == tile["odd_u8"].shape[:2]
    values = normalize(prepared, SIDE)
    assert values.shape == (1, 3, SIDE, SIDE)
    assert not values[:, :, prepared.input_size[0] :].any()


def test_table_of_8_bit_values_gives_what_floats_give():
    image = np.random.default_rng(0).integers(3, 250, (40, 50, 3), dtype=np.uint8)
    assert np.array_equal(stretch_contrast(image), stretch_contrast(image.astype(np.float32)))


def test_other_numbers_of_channels():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (stretch_contrast(grey) == stretch_contrast(grey)[..., :1]).all()
    two = np.stack([grey, grey[::-1]], axis=-1)
    assert not stretch_contrast(two)[..., 2].any()
    four = np.stack([grey] * 4, axis=-1)
    assert stretch_contrast(four).shape == (16, 16, 3)
    assert not stretch_contrast(np.full((4, 4, 3), 7, np.uint8)).any()


def test_no_image_is_refused():
    with pytest.raises(ImageError, match=r"found \(2, 3, 4, 5\)"):
        stretch_contrast(np.zeros((2, 3, 4, 5)))


def test_shapes_after_resizing():
    assert resized_shape((448, 512), 1024) == (896, 1024)
    assert resized_shape((96, 96), 1024) == (1024, 1024)
