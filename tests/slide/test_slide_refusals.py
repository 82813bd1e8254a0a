"""Images that cannot be segmented are refused with the reason and the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from written_slides import write_pyramid

from pathosam_qupath.errors import ImageError, PixelSizeError, UsageError
from pathosam_qupath.slide import check, open_slide
from pathosam_qupath.slide import plain as plain_module


def refused(path: Path, *words: str, **options: object) -> ImageError:
    """Assert that opening fails with all of ``words`` and that check agrees."""
    with pytest.raises(ImageError) as caught:
        open_slide(path, **options)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    found = check(path, **options)  # type: ignore[arg-type]
    assert found is not None
    assert str(found) == str(caught.value)
    return caught.value


@pytest.fixture
def red_on_black() -> np.ndarray:
    """An RGB picture as scanners store one fluorescence channel."""
    rows, columns = np.indices((300, 300))
    pixels = np.zeros((300, 300, 3), np.uint8)
    pixels[..., 0] = 12
    for x in range(40, 300, 60):
        for y in range(40, 300, 60):
            pixels[np.hypot(columns - x, rows - y) < 8] = (230, 20, 10)
    return pixels


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "gone.svs", "does not exist", "--path-map")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "folder")


def test_an_empty_file_and_an_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    refused(tmp_path / "empty.tif", "empty")
    (tmp_path / "text.svs").write_text("not a slide at all")
    refused(tmp_path / "text.svs", "not a format", "OME-TIFF")


def test_no_pixel_size_names_the_option(tissue: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    Image.fromarray(tissue).save(path)
    assert isinstance(refused(path, "--mpp"), PixelSizeError)
    assert check(path, mpp=0.5) is None


def test_fluorescence_stored_as_rgb(red_on_black: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(red_on_black).save(tmp_path / "red.png")
    refused(tmp_path / "red.png", "fluorescence", mpp=0.25)
    refused(write_pyramid(tmp_path / "red.tif", red_on_black), "fluorescence")


def test_fluorescence_by_qupaths_image_type(pyramid: Path) -> None:
    assert check(pyramid) is None
    assert check(pyramid, image_type="BRIGHTFIELD_H_E") is None
    found = check(pyramid, image_type="FLUORESCENCE")
    assert found is not None
    assert "fluorescence" in str(found)


@pytest.mark.shared
def test_fluorescence_of_a_real_scanner(shared_slides: Path) -> None:
    refused(shared_slides / "fluorescence_test3-TRITC2-560.ndpi", "fluorescence", "TRITC")


@pytest.mark.parametrize("filled", [0.5, 0.95, 0.9995])
def test_brightfield_within_black_filling_is_not_fluorescence(
    tissue: np.ndarray, tmp_path: Path, filled: float
) -> None:
    pixels = np.zeros((900, 1100, 3), np.uint8)
    side = int(np.sqrt((1 - filled) * pixels[..., 0].size))
    pixels[50 : 50 + side, 70 : 70 + side] = np.resize(tissue[:side, :side], (side, side, 3))
    assert check(write_pyramid(tmp_path / "filled.tif", pixels, levels=1)) is None


@pytest.mark.parametrize("value", [0, 128, 244, 255])
def test_blank_slides_are_not_refused(tmp_path: Path, value: int) -> None:
    pixels = np.full((300, 400, 3), value, np.uint8)
    assert check(write_pyramid(tmp_path / "blank.tif", pixels, levels=1)) is None


def test_dense_dark_tissue_is_not_fluorescence(tissue: np.ndarray, tmp_path: Path) -> None:
    dark = (tissue[200:400, 200:400] * 0.55).astype(np.uint8)
    assert check(write_pyramid(tmp_path / "dark.tif", dark, levels=1)) is None


def test_single_channels(tissue: np.ndarray, tmp_path: Path) -> None:
    grey = tissue.mean(axis=2).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    refused(tmp_path / "grey.png", "single channel", mpp=0.5)
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    refused(tmp_path / "grey.tif", "single channel", mpp=0.5)


def test_sixteen_bits(tissue: np.ndarray, tmp_path: Path) -> None:
    deep = tissue.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    refused(tmp_path / "deep.tif", "16 bits", "8-bit", mpp=0.5)
    from imagecodecs import png_encode

    (tmp_path / "deep.png").write_bytes(png_encode(deep))
    refused(tmp_path / "deep.png", "16 bits", mpp=0.5)


def test_many_channels_and_fluorescence_channels(tissue: np.ndarray, tmp_path: Path) -> None:
    five = np.stack([tissue[..., 0]] * 5)
    tifffile.imwrite(tmp_path / "five.ome.tif", five, metadata={"axes": "CYX"})
    refused(tmp_path / "five.ome.tif", "5 separate", mpp=0.5)
    three = np.moveaxis(tissue, 2, 0).astype(np.uint16)
    tifffile.imwrite(tmp_path / "fl.ome.tif", three, metadata={"axes": "CYX"})
    refused(tmp_path / "fl.ome.tif", "3 separate uint16", mpp=0.5)


@pytest.mark.parametrize(("axes", "word"), [("ZYXS", "focal planes"), ("TYXS", "time points")])
def test_stacks(tissue: np.ndarray, tmp_path: Path, axes: str, word: str) -> None:
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, np.stack([tissue] * 3), photometric="rgb", metadata={"axes": axes})
    refused(path, f"3 {word}", "Export", mpp=0.5)


def test_a_file_cut_off(pyramid: Path, tissue: np.ndarray, tmp_path: Path) -> None:
    whole = pyramid.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.999):
        path = tmp_path / f"cut{part}.tif"
        path.write_bytes(whole[: int(part * len(whole))])
        refused(path, "copy it again")
    Image.fromarray(tissue).save(tmp_path / "whole.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "whole.png").read_bytes()[:20_000])
    refused(cut, "cannot be decoded", "copy it again", mpp=0.5)


def test_a_damaged_tile_is_named_when_it_is_read(tissue: np.ndarray, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "damaged.tif", tissue, levels=3)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[9]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 64)
    with open_slide(path) as slide:
        scaled = slide.at(0.5)
        with pytest.raises(ImageError, match=r"tile \(1, 1\) of level 0"):
            scaled.read(0, 0, 400, 400)
        assert scaled.read(600, 0, 100, 100).shape == (100, 100, 3)


def test_a_missing_decoder_is_named(
    tissue: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pyramid(tmp_path / "jp2.tif", tissue, compression="jpeg2000")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {1: None})
    refused(path, "JPEG2000", "imagecodecs")


def test_a_plain_image_too_large_to_decode(
    tissue: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(tissue).save(path)
    monkeypatch.setattr(plain_module.Image, "MAX_IMAGE_PIXELS", 1000)
    refused(path, "too large", "pyramidal OME-TIFF", mpp=0.5)


def test_a_series_that_is_not_there(pyramid: Path) -> None:
    refused(pyramid, "number 3", series=3)


def test_a_crop_or_rotation_that_cannot_be(pyramid: Path) -> None:
    for options in ({"crop": (0, 0, 5000, 10)}, {"rotation": 45}, {"mpp": -1.0}):
        with pytest.raises(UsageError):
            open_slide(pyramid, **options)  # type: ignore[arg-type]


def test_bytes_changed_at_random_never_raise_anything_else(
    tissue: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "slide.tif"
    whole = write_pyramid(path, tissue[:300, :400], levels=2).read_bytes()
    with tifffile.TiffFile(path) as file:
        headers = [page.offset for page in file.pages]
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(int(random.integers(1, 6))):
            at = int(random.choice(headers)) + int(random.integers(0, 300))
            damaged[min(at, len(damaged) - 1)] = int(random.integers(0, 256))
        path.write_bytes(damaged)
        try:
            with open_slide(path, mpp=0.5) as slide:
                pixels = slide.at(0.7).read(0, 0, 200, 200)
        except ImageError as error:
            assert error.remedy
        else:
            assert pixels.shape == (200, 200, 3)
