from __future__ import annotations

import numpy as np
import pytest
from skimage.io import imsave
from synthetic_nuclei import synthetic_image, write_samples

from pathosam_qupath.corrections.samples import median_diameter, parse_mpp, read_samples
from pathosam_qupath.errors import ImageError, UsageError


def test_samples_come_with_source_types_and_pixel_size(tmp_path):
    samples = list(read_samples(write_samples(tmp_path, 2)))
    image, labels, types = synthetic_image(0)
    assert [s.name for s in samples] == ["image_0", "image_1"]
    assert samples[0].source == "Synthetic"
    assert samples[0].mpp == 0.4
    np.testing.assert_array_equal(samples[0].image, image)
    np.testing.assert_array_equal(samples[0].labels, labels)
    np.testing.assert_array_equal(samples[0].types, types)


def test_without_a_manifest_files_are_paired_by_name(tmp_path):
    folder = write_samples(tmp_path / "mine", 2)
    (folder / "manifest.csv").unlink()
    (folder / "types" / "image_1.png").unlink()
    first, second = read_samples(folder)
    assert (first.source, first.mpp) == ("mine", None)
    assert first.types is not None
    assert second.types is None


@pytest.mark.parametrize(
    ("text", "mpp"),
    [
        ("0.275", 0.275),
        ("~0.25 (as InstanSeg loader; not in file)", 0.25),
        ("", None),
        (None, None),
        ("unknown", None),
        ("0", None),
    ],
)
def test_an_inexact_pixel_size_is_read_as_its_number(text, mpp):
    assert parse_mpp(text) == mpp


def test_median_diameter_of_a_disc():
    rows, columns = np.mgrid[:41, :41] - 20
    disc = (rows**2 + columns**2 <= 15**2).astype(np.int32)
    assert median_diameter(disc * 3) == pytest.approx(30, rel=0.02)
    assert median_diameter(np.zeros((4, 4), np.int32)) is None


def test_a_folder_without_samples_is_refused(tmp_path):
    with pytest.raises(UsageError, match="`images` and `labels`"):
        next(read_samples(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(UsageError, match="no image"):
        next(read_samples(tmp_path))


def test_a_missing_or_wrong_mask_is_named(tmp_path):
    folder = write_samples(tmp_path, 1)
    (folder / "labels" / "image_0.png").unlink()
    with pytest.raises(ImageError, match=r"image_0\.png: the file does not exist"):
        next(read_samples(folder))
    imsave(folder / "labels" / "image_0.png", np.zeros((5, 5), np.uint8), check_contrast=False)
    with pytest.raises(ImageError, match="its size"):
        next(read_samples(folder))
    (folder / "manifest.csv").unlink()
    (folder / "labels" / "image_0.png").unlink()
    with pytest.raises(ImageError, match="no mask of that name"):
        next(read_samples(folder))


def test_a_file_that_is_no_image_is_named(tmp_path):
    folder = write_samples(tmp_path, 1)
    (folder / "images" / "image_0.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="cannot be read"):
        next(read_samples(folder))


def test_a_manifest_without_the_needed_columns_is_refused(tmp_path):
    folder = write_samples(tmp_path, 1)
    (folder / "manifest.csv").write_text("name\nimage_0\n")
    with pytest.raises(UsageError, match="columns `file` and `label`"):
        next(read_samples(folder))
