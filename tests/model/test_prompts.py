"""Prompts against the reference's masks, and prompts anywhere on a slide."""

import numpy as np
import pytest
from golden_pathosam import golden, reference_tiles, tiny_model

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.prompts import Prompt, mask_box
from pathosam_qupath.model.sam_prompts import mask_logits

CASES = ("point1", "points3", "box", "box_points")


@pytest.fixture(scope="module")
def expected():
    return golden("prompts")


@pytest.fixture(scope="module")
def image():
    return golden("ais")["image_u8"]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def prompt_of(meta, x=0, y=0):
    points = tuple((px - x, py - y) for py, px in meta.get("points_yx", ()))
    labels = tuple(label == 1 for label in meta.get("labels", [1] * len(points)))
    box = meta.get("box_y0x0y1x1")
    if box is not None:
        box = (box[1] - x, box[0] - y, box[3] - x, box[2] - y)
    return Prompt(points, labels, box)


def unpacked(expected, name, shape):
    bits = np.unpackbits(expected[f"{name}_mask"], count=shape[0] * shape[1])
    return bits.reshape(shape).astype(bool)


def check(found, expected, name):
    assert np.abs(found.scores - expected[f"{name}_scores"]).max() <= 1e-5
    assert np.abs(found.logits - expected[f"{name}_lowres_logits"]).max() <= 1e-4
    assert found.score == found.scores.max()


@pytest.mark.parametrize("case", CASES)
def test_prompts_on_a_whole_image(expected, image, model, case):
    name = f"untiled_{case}"
    prompt = prompt_of(expected["META"][name])
    found = model.prompt(model.embed(image), [prompt])[0]
    assert np.array_equal(found.mask, unpacked(expected, name, image.shape[:2]))
    check(found, expected, name)


@pytest.mark.parametrize("case", CASES)
def test_prompts_on_the_references_tiles(expected, image, model, case):
    name = f"tiled_{case}"
    meta = expected["META"][name]
    if "points_yx" in meta:
        at = np.round(np.mean(meta["points_yx"], axis=0)).astype(int)
    else:
        y0, x0, y1, x1 = meta["box_y0x0y1x1"]
        at = np.round([(y0 + y1) / 2, (x0 + x1) / 2]).astype(int)
    outer = next(
        o
        for o, inner, _ in reference_tiles(image.shape[:2])
        if all(s.start <= p < s.stop for s, p in zip(inner, at, strict=True))
    )
    prompt = prompt_of(meta, outer[1].start, outer[0].start)
    found = model.prompt(model.embed(image[outer]), [prompt])[0]
    whole = np.zeros(image.shape[:2], bool)
    whole[outer] = found.mask
    assert np.array_equal(whole, unpacked(expected, name, whole.shape))
    check(found, expected, name)


def test_many_prompts_in_one_call(expected, image, model):
    embedding = model.embed(image)
    prompts = [prompt_of(expected["META"][f"untiled_{case}"]) for case in CASES]
    prompts += [Prompt(points=((30.0 + 9 * i, 50.0 + 7 * i),)) for i in range(9)]
    prompts += [Prompt(box=(10.0 + i, 20.0, 40.0 + i, 60.0)) for i in range(4)]
    together = model.prompt(embedding, prompts)
    for prompt, found in zip(prompts, together, strict=True):
        alone = model.prompt(embedding, [prompt])[0]
        assert np.abs(alone.logits - found.logits).max() <= 1e-4
        assert np.count_nonzero(alone.mask ^ found.mask) <= 0.001 * alone.mask.size


def test_a_mask_guides_to_its_object(image, model):
    mask = np.zeros(image.shape[:2], bool)
    mask[92:112, 110:131] = True
    embedding = model.embed(image)
    found = model.prompt(embedding, [Prompt(mask=mask)])[0]
    by_box = model.prompt(embedding, [Prompt(box=(110, 92, 131, 112))])[0]
    assert found.mask.shape == mask.shape
    assert not np.array_equal(found.logits, by_box.logits)


def test_mask_logits_have_two_values_and_keep_the_place():
    mask = np.zeros((100, 200), bool)
    mask[20:60, 100:180] = True
    logits = mask_logits(mask, 256)
    assert logits.shape == (256, 256)
    assert np.allclose(np.unique(logits), [-6.9067548, 6.9067548], atol=1e-5)
    x0, y0, x1, y1 = mask_box(logits > 0)
    assert np.allclose([x0, y0, x1, y1], [128, 26, 230, 77], atol=1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"points": ((1, 1),), "labels": (True, False)},
        {"box": (5, 5, 5, 9)},
        {"mask": np.zeros((4, 4), bool)},
    ],
)
def test_prompts_that_tell_nothing_are_refused(fields):
    with pytest.raises(UsageError, match="expected points, a box or a mask"):
        Prompt(**fields)


def test_masks_and_points_move_to_the_tile():
    mask = np.ones((10, 20), bool)
    prompt = Prompt(
        points=((105.0, 55.0), (400.0, 5.0)), labels=(True, False), mask=mask, mask_origin=(95, 50)
    )
    moved = prompt.moved(100, 40, (64, 64))
    assert moved.points == ((5.0, 15.0),)
    assert moved.labels == (True,)
    assert mask_box(moved.mask) == (0, 10, 15, 20)
    assert prompt.bounds() == (95, 50, 115, 60)
