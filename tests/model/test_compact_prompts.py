"""Prompts on the bundled model: the nucleus that is meant, wherever it lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.compact import CompactModel
from pathosam_qupath.model.compact_prompts import Look, Window, _looks, around, looked_at, on_tile
from pathosam_qupath.model.network import CompactNetwork, NetworkConfig
from pathosam_qupath.model.prompt_decoder import (
    PROMPT_CHANNELS,
    WINDOW,
    filled_box,
    prompt_image,
    spots,
    window,
    window_origin,
    window_scale,
)
from pathosam_qupath.model.prompts import Prompt, PromptableModel, mask_box, promptable
from pathosam_qupath.model.weights import CompactDescription


@pytest.fixture(scope="module")
def bundled():
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def tile():
    """Dark nuclei on eosin, drawn: what any model of nuclei must find."""
    rng = np.random.default_rng(0)
    image = np.full((256, 320, 3), (228, 170, 205), np.float32)
    truth = np.zeros((256, 320), np.int32)
    y, x = np.mgrid[:256, :320]
    centers = [(40, 40), (50, 130), (60, 230), (150, 60), (150, 170), (160, 280), (220, 110)]
    for label, (row, column) in enumerate(centers, start=1):
        inside = ((x - column) / 16) ** 2 + ((y - row) / 12) ** 2 < 1
        image[inside] = (95, 65, 140)
        truth[inside] = label
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), truth, centers


@pytest.fixture(scope="module")
def embedding(bundled, tile):
    return bundled.embed(tile[0])


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_it_is_a_promptable_model(bundled):
    assert isinstance(bundled, PromptableModel)
    assert promptable(bundled) is bundled


def test_a_click_and_a_box_give_the_nucleus(bundled, tile, embedding):
    _, truth, centers = tile
    clicks = [Prompt(points=((column + 0.5, row + 0.5),)) for row, column in centers]
    boxes = [Prompt(box=mask_box(truth == label)) for label in range(1, len(centers) + 1)]
    for label, answer in enumerate(bundled.prompt(embedding, clicks), start=1):
        assert answer.mask.shape == truth.shape
        assert answer.mask.dtype == bool
        assert iou(answer.mask, truth == label) > 0.7
        assert 0.3 < answer.score <= 1
    for label, answer in enumerate(bundled.prompt(embedding, boxes), start=1):
        assert iou(answer.mask, truth == label) > 0.75


def test_answers_do_not_depend_on_what_else_is_asked(bundled, tile, embedding):
    prompts = [Prompt(points=((column, row),)) for row, column in tile[2]]
    together = bundled.prompt(embedding, prompts)
    for prompt, expected in zip(prompts, together, strict=True):
        (alone,) = bundled.prompt(embedding, [prompt])
        assert iou(alone.mask, expected.mask) > 0.99
    assert bundled.prompt(embedding, []) == []


def test_what_was_found_is_looked_at_again_near_and_from_farther_away(bundled, tile, embedding):
    (row, column), *_ = tile[2]
    click = Prompt(points=((column + 0.5, row + 0.5),))
    decoder, size = bundled._prompt_decoder(), embedding.original_size
    with torch.inference_mode():
        first = looked_at(decoder, embedding, [click])
        again = replace(click, mask=on_tile(first, size))
        (near,) = looked_at(decoder, embedding, [again])
        (far,) = _looks(decoder, embedding, [(again, around(again, 2))])
    (answer,) = bundled.prompt(embedding, [click])
    assert (near.place.scale, far.place.scale) == (1, 2)
    assert np.array_equal(answer.mask, on_tile([*first, near, far], size))
    assert answer.score == near.score


def test_the_answer_is_where_looks_agree_in_the_mean():
    def look(origin, logit, scale=1):
        return Look(np.full((128, 128), logit, np.float32), Window(origin, scale), 0.5)

    mask = on_tile([look((-64, 0), 5.0), look((0, 32), -6.0)], (256, 300))
    assert not mask.any()  # and where the second sees nothing, it is sure that nothing is there
    mask = on_tile([look((-64, 0), 5.0), look((0, 32), -4.0)], (256, 300))
    assert mask[32:128, :64].all()
    assert mask.sum() == 96 * 64
    assert on_tile([look((200, 100), 1.0, 2)], (256, 300))[100:, 200:].all()
    assert not on_tile([look((400, 0), 1.0)], (256, 300)).any()


def test_an_embedding_comes_back_from_its_arrays(bundled, tile, embedding):
    arrays = embedding.to_arrays()
    assert embedding.nbytes == sum(array.nbytes for array in arrays.values())
    again = bundled.embedding_from_arrays(arrays)
    assert again.original_size == embedding.original_size == (256, 320)
    prompt = Prompt(points=((130.0, 50.0),))
    first, second = (bundled.prompt(e, [prompt])[0] for e in (embedding, again))
    np.testing.assert_array_equal(first.mask, second.mask)
    with pytest.raises(KeyError):
        bundled.embedding_from_arrays({"pixels": arrays["pixels"]})
    with pytest.raises(ValueError, match="middle"):
        bundled.embedding_from_arrays({**arrays, "middle": arrays["coarse"]})


def test_maps_and_classes_of_an_embedding_are_those_of_the_tile(bundled, tile, embedding):
    maps = bundled.predict(tile[0][None])[0]
    np.testing.assert_allclose(bundled.embedded_maps(embedding), maps[:3], atol=2e-3)
    np.testing.assert_allclose(bundled.embedded_classes(embedding), maps[3:], atol=1e-2)


def test_a_rough_mask_is_redrawn(bundled, tile, embedding):
    truth = tile[1] == 5
    rough = np.roll(truth, 4, axis=1)
    (answer,) = bundled.prompt(embedding, [Prompt(mask=rough)])
    assert iou(answer.mask, truth) > iou(rough, truth)


def test_a_network_without_prompts_says_so(tile):
    config = NetworkConfig(widths=(8, 16, 16, 24, 24), depths=(0, 1, 1, 1, 1), classes=0)
    model = CompactModel(
        CompactNetwork(config),
        CompactDescription("plain", 0.25, network=config),
        weights_hash="",
        device="cpu",
    )
    with pytest.raises(ModelError, match="without prompts"):
        model.embed(tile[0])


def test_windows_cut_and_pad_features():
    feature = torch.arange(32.0 * 32).reshape(1, 32, 32)
    part = window(feature, (-8, 16), stride=8, scale=1)
    assert part.shape == (1, WINDOW // 8, WINDOW // 8)
    assert (part[0, :, 0] == 0).all()
    torch.testing.assert_close(part[0, :, 1:], feature[0, 2:18, :15])
    halved = window(feature, (0, 0), stride=8, scale=2)
    torch.testing.assert_close(halved[0, 0, 0], feature[0, :2, :2].mean())


def test_windows_lie_on_the_grid_of_the_features_and_grow_with_the_object():
    assert window_scale(20) == window_scale(96) == 1
    assert (window_scale(97), window_scale(500)) == (2, 4)
    for scale in (1, 2, 4):
        left, top = window_origin((301.3, 77.7), scale)
        assert left % (8 * scale) == top % (8 * scale) == 0
        assert abs(left + WINDOW * scale / 2 - 301.3) <= 4 * scale


def test_prompts_are_drawn_where_they_are():
    side = WINDOW // 2
    spot = spots(torch.tensor([[31.0, 65.0]]))
    assert spot.shape == (side, side)
    assert divmod(int(spot.argmax()), side) == (32, 15)
    assert spots(torch.zeros(0, 2)).max() == 0
    box = filled_box((10.0, 20.0, 31.0, 40.0))
    assert box.sum() * 4 == pytest.approx(21 * 20)
    image = prompt_image(torch.tensor([[5.0, 5.0]]), torch.zeros(0, 2), None, None)
    assert image.shape == (PROMPT_CHANNELS, side, side)
    assert image[1:].abs().max() == 0
