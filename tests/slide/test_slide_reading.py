"""Pixels at a wanted resolution: the right ones, in the right place, always the same."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.registration import phase_cross_correlation
from written_slides import HEIGHT, WIDTH, fit, halve, write_pyramid

from pathosam_qupath.errors import UsageError
from pathosam_qupath.slide import open_slide
from pathosam_qupath.slide.cache import PixelCache

RESOLUTIONS = [0.31, 0.5, 0.5005, 0.63, 0.75, 1.0, 1.3, 2.0, 3.7]  # µm/px of a 0.5 µm/px slide


def directly(pixels: np.ndarray, scale: float, width: int, height: int) -> np.ndarray:
    """The full resolution, scaled in one go without levels, tiles or blocks."""
    right, bottom = int(width * scale) + 8, int(height * scale) + 8
    h, w = pixels.shape[:2]
    padded = np.pad(pixels, ((0, max(bottom - h, 0)), (0, max(right - w, 0)), (0, 0)), mode="edge")
    box = (0, 0, width * scale, height * scale)
    return np.array(Image.fromarray(padded).resize((width, height), Image.Resampling.BICUBIC, box))


def shifts(one: np.ndarray, two: np.ndarray) -> list[float]:
    """Distances in pixels by which the corners of two images are apart."""
    h, w = min(one.shape[0] // 2, 256), min(one.shape[1] // 2, 256)
    found = []
    for y in (0, one.shape[0] - h):
        for x in (0, one.shape[1] - w):
            a, b = (image[y : y + h, x : x + w].mean(axis=2) for image in (one, two))
            shift, _, _ = phase_cross_correlation(a - a.mean(), b - b.mean(), upsample_factor=50)
            found.append(float(np.hypot(*shift)))
    return found


@pytest.mark.parametrize("mpp", RESOLUTIONS)
@pytest.mark.parametrize("make", [halve, fit])
def test_no_shift_at_any_resolution(
    tissue: np.ndarray, tmp_path: Path, mpp: float, make: object
) -> None:
    path = write_pyramid(tmp_path / "slide.tif", tissue, levels=4, make=make)  # type: ignore[arg-type]
    with open_slide(path) as slide:
        scaled = slide.at(mpp)
        read = scaled.read(0, 0, scaled.width, scaled.height)
    expected = directly(tissue, mpp / 0.5, scaled.width, scaled.height)
    assert max(shifts(read, expected)) < 0.25
    assert np.abs(read.astype(float) - expected)[2:-2, 2:-2].mean() < 6


def test_full_resolution_is_the_file_bit_for_bit(tissue: np.ndarray, pyramid: Path) -> None:
    with open_slide(pyramid) as slide:
        assert (slide.width, slide.height, slide.mpp) == (WIDTH, HEIGHT, (0.5, 0.5))
        assert np.array_equal(slide.at(0.5).read(0, 0, WIDTH, HEIGHT), tissue)


def test_a_levels_own_resolution_is_that_level_bit_for_bit(
    tissue: np.ndarray, pyramid: Path
) -> None:
    with open_slide(pyramid) as slide:
        half = slide.at(1.0)
        read = half.read(0, 0, WIDTH // 2, HEIGHT // 2)
    assert (half.width, half.height, half.scale) == (502, 389, (2.0, 2.0))
    assert np.array_equal(read, halve(tissue))


def test_levels_that_were_resized_to_fit_are_recognised(tissue: np.ndarray, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "fit.tif", tissue, levels=4, make=fit)
    with open_slide(path) as slide:
        pyramid = slide.at(1.0)._pyramid
        found = [pyramid.downsample(number) for number in range(4)]
    assert found == [
        (WIDTH / w, HEIGHT / h) for w, h in ((WIDTH, HEIGHT), (501, 388), (250, 194), (125, 97))
    ]


@pytest.mark.parametrize("mpp", [0.3, 0.5, 0.7, 1.0, 1.9, 4.0])
def test_an_impulse_stays_where_it_was(tmp_path: Path, mpp: float) -> None:
    pixels = np.full((400, 600, 3), 200, np.uint8)
    x, y = 333, 211
    pixels[y, x] = 0
    path = write_pyramid(tmp_path / "impulse.tif", pixels, levels=1)
    with open_slide(path) as slide:
        scaled = slide.at(mpp)
        read = scaled.read(0, 0, scaled.width, scaled.height)
    response = 200.0 - read[..., 0]
    rows, columns = np.indices(response.shape)
    scale = mpp / 0.5
    found_x = ((columns + 0.5) * response).sum() / response.sum() * scale
    found_y = ((rows + 0.5) * response).sum() / response.sum() * scale
    assert found_x == pytest.approx(x + 0.5, abs=0.25 * scale)
    assert found_y == pytest.approx(y + 0.5, abs=0.25 * scale)


@pytest.mark.parametrize("mpp", [0.4, 0.5, 0.77, 1.5])
def test_a_gradient_keeps_its_values(tmp_path: Path, mpp: float) -> None:
    ramp = np.linspace(10, 240, 460)
    pixels = np.repeat(np.round(ramp)[None, :, None], 300, axis=0).repeat(3, axis=2)
    path = write_pyramid(tmp_path / "ramp.tif", pixels.astype(np.uint8), levels=1)
    with open_slide(path) as slide:
        scaled = slide.at(mpp)
        read = scaled.read(0, 50, scaled.width, 1)[0, :, 0]
    centres = (np.arange(scaled.width) + 0.5) * mpp / 0.5 - 0.5
    inside = slice(4, scaled.width - 4)
    assert np.abs(read - np.interp(centres, np.arange(460), ramp))[inside].max() <= 1.5


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_two_reads_agree_where_they_meet(pyramid: Path, data: st.DataObject) -> None:
    mpp = data.draw(st.sampled_from(RESOLUTIONS))
    rotation = data.draw(st.sampled_from([0, 90, 180, 270]))
    crop = data.draw(st.sampled_from([None, (101, 57, 640, 500)]))
    with open_slide(pyramid, rotation=rotation, crop=crop) as slide:
        one, other = slide.at(mpp), slide.at(mpp)
        x, y = (data.draw(st.integers(-20, side)) for side in (one.width, one.height))
        w, h = (data.draw(st.integers(1, 300)) for _ in "wh")
        dx, dy = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
        large = one.read(x, y, w, h)
        small = other.read(x + dx, y + dy, w - dx, h - dy)
    assert np.array_equal(large[dy:, dx:], small)


def test_outside_the_slide_is_white(pyramid: Path, tissue: np.ndarray) -> None:
    with open_slide(pyramid) as slide:
        scaled = slide.at(0.5)
        read = scaled.read(-10, -20, 60, 60)
        assert (scaled.read(WIDTH + 5, 0, 40, 40) == 255).all()
        assert (scaled.read(WIDTH - 5, HEIGHT - 5, 40, 40)[5:] == 255).all()
    assert (read[:20] == 255).all()
    assert (read[:, :10] == 255).all()
    assert np.array_equal(read[20:, 10:], tissue[:40, :50])


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mpp", [0.5, 0.75])
def test_rotation_and_crop_are_qupaths(
    pyramid: Path, tissue: np.ndarray, rotation: int, mpp: float
) -> None:
    crop = (120, 60, 403, 301)
    shown = np.rot90(tissue[60:361, 120:523], -rotation // 90)  # clockwise
    with open_slide(pyramid, rotation=rotation, crop=crop) as slide:
        assert (slide.height, slide.width) == shown.shape[:2]
        scaled = slide.at(mpp)
        read = scaled.read(0, 0, scaled.width, scaled.height)
    expected = directly(np.ascontiguousarray(shown), mpp / 0.5, scaled.width, scaled.height)
    if mpp == 0.5:
        assert np.array_equal(read, shown)
    assert max(shifts(read, expected)) < 0.1
    assert np.abs(read.astype(float) - expected)[4:-4, 4:-4].mean() < 3


def test_oblong_pixels_become_square(tissue: np.ndarray, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "oblong.tif", tissue, levels=1, mpp=None)
    with open_slide(path, mpp=(0.5, 0.25)) as slide:
        scaled = slide.at(0.5)
        assert scaled.scale == (1.0, 2.0)
        assert (scaled.width, scaled.height) == (WIDTH, (HEIGHT + 1) // 2)
        read = scaled.read(0, 0, WIDTH, HEIGHT // 2)
    with open_slide(path, mpp=(0.25, 0.5), rotation=90) as slide:  # as QuPath shows it
        turned = slide.at(0.5)
        assert turned.scale == (2.0, 1.0)
        read_turned = turned.read(0, 0, HEIGHT // 2, WIDTH)
    means = tissue[: HEIGHT // 2 * 2].reshape(-1, 2, WIDTH, 3).mean(axis=1)
    assert np.abs(read - means).mean() < 3
    shown = np.rot90(tissue, -1)[:, : HEIGHT // 2 * 2]
    means = shown.reshape(WIDTH, -1, 2, 3).mean(axis=2)
    assert np.abs(read_turned - means).mean() < 3


def test_threads_read_what_one_reader_reads(pyramid: Path) -> None:
    windows = [(x, y) for y in range(0, 480, 60) for x in range(0, 640, 80)]
    with open_slide(pyramid) as slide:
        alone = slide.at(0.6)
        expected = {at: alone.read(*at, 120, 120) for at in windows}
    wrong: list[object] = []
    with open_slide(pyramid) as slide:
        scaled = slide.at(0.6)

        def work(start: int) -> None:
            order = windows[start:] + windows[:start]
            wrong.extend(
                at for at in order if not np.array_equal(scaled.read(*at, 120, 120), expected[at])
            )

        threads = [threading.Thread(target=work, args=(9 * n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "options",
    [
        {"tile": None, "compression": None},
        {"tile": None, "compression": None, "rowsperstrip": 7},
        {"tile": None, "compression": "lzw", "rowsperstrip": 16},
        {"tile": (64, 160), "compression": "zstd", "predictor": True},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "tile": None, "compression": None},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
)
def test_every_layout_gives_the_same_pixels(
    tissue: np.ndarray, tmp_path: Path, options: dict[str, object]
) -> None:
    path = tmp_path / "layout.tif"
    pixels = np.moveaxis(tissue, 2, 0) if options.get("planarconfig") == "separate" else tissue
    file = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}
    options = {"tile": (128, 128), "compression": "deflate", **options}
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, **file, **options)
    with open_slide(path, mpp=0.5) as slide:
        assert np.array_equal(slide.at(0.5).read(0, 0, WIDTH, HEIGHT), tissue)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "webp"])
def test_lossy_tiles_keep_their_colours(
    tissue: np.ndarray, tmp_path: Path, compression: str
) -> None:
    path = write_pyramid(tmp_path / "lossy.tif", tissue, compression=compression)
    with open_slide(path) as slide:
        read = slide.at(0.5).read(0, 0, WIDTH, HEIGHT)
    assert np.abs(read.astype(int) - tissue).mean() < 4


def test_transparency_lies_on_white(tissue: np.ndarray, tmp_path: Path) -> None:
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:100] = 0
    pixels = np.concatenate([tissue, alpha], axis=2)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    tifffile.imwrite(tmp_path / "alpha.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("alpha.png", "alpha.tif"):
        with open_slide(tmp_path / name, mpp=0.5) as slide:
            read = slide.at(0.5).read(0, 0, WIDTH, HEIGHT)
        assert (read[:100] == 255).all()
        assert np.array_equal(read[100:], tissue[100:])


def test_plain_images_are_read(tissue: np.ndarray, tmp_path: Path) -> None:
    for name in ("plain.png", "plain.jpg"):
        Image.fromarray(tissue).save(tmp_path / name, quality=95)
        with open_slide(tmp_path / name, mpp=0.5) as slide:
            assert (slide.width, slide.height) == (WIDTH, HEIGHT)
            read = slide.at(0.5).read(0, 0, WIDTH, HEIGHT)
        assert np.abs(read.astype(int) - tissue).mean() < 3


def test_one_image_of_several_in_an_ome_tiff(tissue: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for pixels, size in ((tissue, 0.5), (tissue[:300, :400], 0.25)):
            writer.write(
                pixels,
                photometric="rgb",
                metadata={"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size},
            )
    with open_slide(path, series=1) as slide:
        assert (slide.width, slide.height, slide.mpp) == (400, 300, (0.25, 0.25))
        assert np.array_equal(slide.at(0.25).read(0, 0, 400, 300), tissue[:300, :400])


def test_an_ome_pyramid_has_its_levels_below_its_image(tissue: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "pyramid.ome.tif"
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(tissue, subifds=2, metadata=metadata, **options)
        writer.write(halve(tissue), subfiletype=1, **options)
        writer.write(halve(halve(tissue)), subfiletype=1, **options)
    with open_slide(path) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [
            (1003, 777),
            (501, 388),
            (250, 194),
        ]
        assert np.array_equal(slide.at(2.0).read(0, 0, 250, 194), halve(halve(tissue)))


def test_colours_on_three_pages(tissue: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "planes.ome.tif"
    planes = np.ascontiguousarray(np.moveaxis(tissue, 2, 0))
    tifffile.imwrite(path, planes, tile=(128, 128), metadata={"axes": "CYX"})
    with open_slide(path, mpp=0.5) as slide:
        assert np.array_equal(slide.at(0.5).read(0, 0, WIDTH, HEIGHT), tissue)


def test_aperios_jpeg_2000_holds_luma_and_chroma(tissue: np.ndarray, tmp_path: Path) -> None:
    coded = np.array(Image.fromarray(tissue).convert("YCbCr"))
    path = tmp_path / "aperio.tif"
    tifffile.imwrite(
        path,
        coded,
        photometric="rgb",
        tile=(128, 128),
        compression=33003,
        compressionargs={"level": 0, "mct": False},
    )
    with open_slide(path, mpp=0.5) as slide:
        read = slide.at(0.5).read(0, 0, WIDTH, HEIGHT)
    assert np.abs(read.astype(int) - tissue).max() <= 3


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:hamamatsu-format")
def test_tiles_of_a_real_ndpi(shared_slides: Path) -> None:
    """Its fluorescence is refused, its way of storing tiles is that of every NDPI."""
    from tiffslide import TiffSlide

    from pathosam_qupath.slide.tiff import TiffSource

    path = shared_slides / "fluorescence_test3-TRITC2-560.ndpi"
    source = TiffSource(path)
    assert source.mpp == pytest.approx((0.2282, 0.2282), abs=1e-4)
    with TiffSlide(path) as reference:
        for level in range(4):
            read = source.read(level, 33, 41, 300, 200)
            place = 33 * 2**level, 41 * 2**level
            expected = reference.read_region(place, level, (300, 200), as_array=True)
            assert np.array_equal(read, expected)
    source.close()


def test_a_tile_is_decoded_once_however_many_threads_ask() -> None:
    cache = PixelCache(limit=1000)
    made: list[int] = []
    gate = threading.Event()

    def make() -> np.ndarray:
        gate.wait(5)
        made.append(1)
        return np.zeros((10, 10, 3), np.uint8)

    threads = [threading.Thread(target=cache.get, args=("tile", make)) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_the_cache_stays_within_its_bound() -> None:
    cache = PixelCache(limit=1000)
    for number in range(50):
        cache.get(number, lambda: np.zeros((10, 10, 3), np.uint8))
    assert cache.size == 900


def test_resolution_must_be_a_positive_number(pyramid: Path) -> None:
    with open_slide(pyramid) as slide, pytest.raises(UsageError):
        slide.at(0.0)


@pytest.mark.shared
def test_real_slides_are_not_shifted(shared_slides: Path) -> None:
    full = tifffile.imread(shared_slides / "CMU-1-Small-Region.svs")
    for name in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region_pyramid.tif"):
        with open_slide(shared_slides / name) as slide:
            assert slide.mpp == pytest.approx((0.499, 0.499))
            for mpp in (0.998, 1.0, 2.0, 4.1):
                scaled = slide.at(mpp)
                read = scaled.read(0, 0, scaled.width, scaled.height)
                expected = directly(full, mpp / 0.499, scaled.width, scaled.height)
                assert max(shifts(read, expected)) < 0.3, (name, mpp)
