"""The bundled model and its file: sane nuclei, exact repetition, clear errors."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model import bundled_file, bundled_weights, choose_device, load_model
from pathosam_qupath.model.compact import CompactModel
from pathosam_qupath.model.network import CompactNetwork, NetworkConfig, fused
from pathosam_qupath.model.weights import CompactDescription, load_weights, save_weights

SMALL = NetworkConfig(widths=(8, 16, 16, 24, 24), depths=(0, 1, 1, 1, 1), classes=3)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundled():
    return load_model(device="cpu")


@pytest.fixture
def small_file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    description = CompactDescription(
        "small", 0.5, 64, 16, ("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), SMALL
    )
    save_weights(path, CompactNetwork(SMALL), description)
    return path


@pytest.fixture(scope="module")
def tiles():
    from skimage.data import immunohistochemistry

    image = immunohistochemistry()
    return np.stack([image, image[::-1], image.transpose(1, 0, 2)])


def test_the_bundled_model_describes_itself(bundled):
    info = bundled.info
    assert info.classes == ("Epithelial", "Inflammatory", "Connective")
    assert len(info.colors) == 3
    assert len(info.weights_hash) == 64
    assert 0.2 <= info.mpp <= 0.5
    assert info.tile % 32 == 0
    assert 0 < 2 * info.halo < info.tile


def test_the_bundled_file_is_small():
    name = bundled_file("SHA256SUMS").read_text().split()[1]
    assert bundled_file(name).stat().st_size <= 12_000_000


def test_the_bundled_model_finds_sane_nuclei(bundled):
    from skimage.color import rgb2hed
    from skimage.data import immunohistochemistry

    from pathosam_qupath.corrections.evaluation import segment_image

    image = immunohistochemistry()
    labels, classes = segment_image(bundled, image, 0.5)
    areas = np.bincount(labels.ravel())[1:]
    # Most nuclei of the stroma; those under brown cytoplasm are mostly missed.
    assert 100 < areas.size < 1500
    assert classes.size == areas.size
    # In µm²; the image's true pixel size is unknown, 0.5 µm/px is of its order.
    assert 12 < np.median(areas) * 0.25 < 80
    # Nuclei hold more haematoxylin than what is around them.
    haematoxylin = rgb2hed(image)[..., 0]
    inside, outside = haematoxylin[labels > 0], haematoxylin[labels == 0]
    assert np.median(inside) > np.percentile(outside, 75)


def test_the_bundled_model_finds_nothing_on_empty_glass(bundled):
    from pathosam_qupath.corrections.evaluation import segment_image

    labels, _ = segment_image(bundled, np.full((512, 512, 3), 243, np.uint8), 0.25)
    assert labels.max() == 0


def test_maps_are_probabilities(bundled, tiles):
    maps = bundled.predict(tiles[:1])
    assert maps.shape == (1, 6, 512, 512)
    assert maps.dtype == np.float32
    assert 0 <= maps.min() <= maps.max() <= 1
    np.testing.assert_allclose(maps[:, 3:].sum(1), 1, atol=1e-5)


def test_a_tile_never_depends_on_its_batch_or_the_threads(bundled, tiles, threads):
    threads(2)
    batch = bundled.predict(tiles)
    for count in (1, 2, 3, 5):
        threads(count)
        for tile, maps in zip(tiles, batch, strict=True):
            np.testing.assert_array_equal(bundled.predict(tile[None])[0], maps)


def test_without_bfloat16_a_tile_does_not_depend_on_the_threads_either(tiles, threads):
    network, description = load_weights(bundled_weights()[0])
    exact = CompactModel(network, description, weights_hash="", device="cpu", dtype=torch.float32)
    threads(1)
    alone = exact.predict(tiles[:1])
    for count in (2, 3):
        threads(count)
        np.testing.assert_array_equal(exact.predict(tiles[:1]), alone)


def test_worker_threads_get_the_same_maps(bundled, tiles, threads):
    threads(1)
    expected = bundled.predict(tiles)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda tile: bundled.predict(tile[None])[0], tiles))
    np.testing.assert_array_equal(np.stack(found), expected)


def test_no_tiles_give_no_maps(bundled):
    assert bundled.predict(np.empty((0, 512, 512, 3), np.uint8)).shape == (0, 6, 512, 512)


@pytest.mark.parametrize("shape", [(1, 500, 512, 3), (1, 512, 512, 4)])
def test_tiles_of_a_wrong_form_are_refused(bundled, shape):
    with pytest.raises(UsageError, match="multiples of 32"):
        bundled.predict(np.zeros(shape, np.uint8))
    with pytest.raises(UsageError, match="float32"):
        bundled.predict(np.zeros((1, 64, 64, 3), np.float32))


@pytest.mark.parametrize("without_1x1", [False, True])
def test_folding_the_normalisation_keeps_the_maps(without_1x1):
    torch.manual_seed(1)
    network = CompactNetwork(SMALL)
    network.train()(torch.randn(4, 3, 64, 64) * 2 + 1)
    network.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for before, after in zip(
            network(x), fused(network, without_1x1=without_1x1)(x), strict=True
        ):
            torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_a_saved_model_comes_back(small_file):
    network, description = load_weights(small_file)
    assert description.network == SMALL
    assert description.classes == ("a", "b", "c")
    model = load_model(small_file, device="cpu")
    assert (model.info.mpp, model.info.tile, model.info.halo) == (0.5, 64, 16)
    assert model.predict(np.zeros((2, 32, 64, 3), np.uint8)).shape == (2, 6, 32, 64)
    assert not network.training


def test_a_model_without_classes_has_three_maps(tmp_path):
    config = NetworkConfig(widths=(8, 16, 16, 24, 24), depths=(0, 1, 1, 1, 1), classes=0)
    path = tmp_path / "plain.safetensors"
    save_weights(path, CompactNetwork(config), CompactDescription("plain", 0.5, network=config))
    model = load_model(path, device="cpu")
    assert model.predict(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 3, 32, 32)


def test_a_truncated_file_is_named(small_file):
    content = small_file.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        small_file.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"small\.safetensors.*not a complete"):
            load_model(small_file, device="cpu")


def test_weights_of_another_program_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="another program"):
        load_model(path, device="cpu")


def test_a_wrong_description_is_refused(small_file):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(small_file, framework="pt") as file:
        ((key, text),) = file.metadata().items()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for old, new, message in [
        ('"form": 2', '"form": 3', "another version"),
        ('"mpp"', '"mpq"', "description cannot be read"),
        ('"tile": 64', '"tile": 60', "do not fit the network"),
        ("[8, 16, 16, 24, 24]", "[8, 16, 16, 32, 24]", "tensors do not fit"),
    ]:
        assert old in text
        save_file(tensors, small_file, metadata={key: text.replace(old, new)})
        with pytest.raises(ModelError, match=message):
            load_model(small_file, device="cpu")
    tensors["encoder.stem.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, small_file, metadata={key: text})
    with pytest.raises(ModelError, match="not numbers"):
        load_model(small_file, device="cpu")


def test_an_unknown_name_is_refused():
    with pytest.raises(ModelError, match="neither a model's name nor a file"):
        load_model("no-such-model")


def test_a_damaged_bundled_file_is_recognised(tmp_path, monkeypatch):
    import pathosam_qupath.model as module

    folder = tmp_path / "bundled"
    shutil.copytree(bundled_file("SHA256SUMS").parent, folder)
    weights = folder / bundled_file("SHA256SUMS").read_text().split()[1]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ModelError, match="damaged"):
        load_model(device="cpu")
    weights.unlink()
    with pytest.raises(ModelError, match="missing"):
        load_model(device="cpu")


def test_devices():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto").split(":")[0] in {"cuda", "mps", "cpu"}
    with pytest.raises(ModelError, match="this machine's PyTorch has"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="cuda"):
            choose_device("cuda:0")
