"""Prompts against the reference's masks, and prompts anywhere on a slide."""

import numpy as np
import pytest
import torch
from golden_pathosam import golden, reference_tiles, tiny_model

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.prompts import (
    EmbeddingCache,
    Prompt,
    PromptSegmenter,
    mask_box,
    mask_logits,
    segment_prompts,
)
from pathosam_qupath.model.sam import Embedding

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
    found = segment_prompts(model.sam, model.embed(image), [prompt])[0]
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
    found = segment_prompts(model.sam, model.embed(image[outer]), [prompt])[0]
    whole = np.zeros(image.shape[:2], bool)
    whole[outer] = found.mask
    assert np.array_equal(whole, unpacked(expected, name, whole.shape))
    check(found, expected, name)


def test_many_prompts_in_one_call(expected, image, model):
    embedding = model.embed(image)
    prompts = [prompt_of(expected["META"][f"untiled_{case}"]) for case in CASES]
    prompts += [Prompt(points=((30.0 + 9 * i, 50.0 + 7 * i),)) for i in range(9)]
    prompts += [Prompt(box=(10.0 + i, 20.0, 40.0 + i, 60.0)) for i in range(4)]
    together = segment_prompts(model.sam, embedding, prompts)
    for prompt, found in zip(prompts, together, strict=True):
        alone = segment_prompts(model.sam, embedding, [prompt])[0]
        assert np.abs(alone.logits - found.logits).max() <= 1e-4
        assert np.count_nonzero(alone.mask ^ found.mask) <= 0.001 * alone.mask.size


def test_a_mask_guides_to_its_object(image, model):
    mask = np.zeros(image.shape[:2], bool)
    mask[92:112, 110:131] = True
    embedding = model.embed(image)
    found = segment_prompts(model.sam, embedding, [Prompt(mask=mask)])[0]
    by_box = segment_prompts(model.sam, embedding, [Prompt(box=(110, 92, 131, 112))])[0]
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


class Slide:
    """An image that is read by regions, and counts them."""

    def __init__(self, pixels):
        self.pixels, self.reads = pixels, []

    def read(self, x, y, w, h):
        self.reads.append((x, y, w, h))
        return self.pixels[y : y + h, x : x + w]


@pytest.fixture
def slide(image):
    return Slide(np.tile(image, (4, 4, 1)))


def segmenter(model, slide, **options):
    return PromptSegmenter(model, slide.read, slide.pixels.shape[:2], **options)


def test_tile_lies_around_the_prompt(model, slide):
    found = segmenter(model, slide)
    for x, y in ((520.0, 600.0), (448.0, 511.0), (577.0, 480.0)):
        slide.reads.clear()
        found.segment([Prompt(points=((x, y),))])
        left, top, width, height = slide.reads[0] if slide.reads else (0, 0, 0, 0)
        assert width == height == 128
        assert 32 <= x - left <= 96
        assert 32 <= y - top <= 96


def test_neighbouring_prompts_share_an_embedding(model, slide):
    found = segmenter(model, slide)
    boxes = [Prompt(box=(512 + i, 510, 530 + i, 530)) for i in range(3)]
    first = found.segment(boxes)
    usual = [read for read in slide.reads if read[2] == 128]
    assert len(usual) == 1
    again = segmenter(model, slide).segment(boxes[::-1])[::-1]
    for one, other in zip(first, again, strict=True):
        assert np.abs(one.logits - other.logits).max() <= 1e-4


def test_result_does_not_depend_on_what_was_asked_before(model, slide):
    prompt = Prompt(points=((700.0, 333.0),))
    fresh = segmenter(model, slide).segment([prompt])[0]
    used = segmenter(model, slide, cache_bytes=1)
    for x in range(100, 900, 100):
        used.segment([Prompt(points=((float(x), 330.0),))])
    again = used.segment([prompt])[0]
    assert (fresh.x, fresh.y, fresh.score) == (again.x, again.y, again.score)
    assert np.array_equal(fresh.mask, again.mask)


def test_mask_is_cut_to_the_object_and_says_where_it_is(model, slide):
    found = segmenter(model, slide).segment([Prompt(box=(300, 300, 330, 330))])[0]
    assert found.mask.any(axis=0).all()
    assert found.mask.any(axis=1).all()
    assert 0 <= found.x <= slide.pixels.shape[1] - found.mask.shape[1]


def test_tile_grows_with_the_prompt_and_stays_on_the_slide(model, slide):
    segmenter(model, slide).segment([Prompt(box=(0, 0, 150, 90))])
    assert slide.reads[0][:2] == (0, 0)
    assert slide.reads[0][2] >= 256
    height, width = slide.pixels.shape[:2]
    slide.reads.clear()
    segmenter(model, slide).segment([Prompt(points=((width - 1.0, height - 1.0),))])
    assert slide.reads[0] == (width - 128, height - 128, 128, 128)


def test_prompts_beside_the_slide_are_refused(model, slide):
    with pytest.raises(UsageError, match="outside"):
        segmenter(model, slide).segment([Prompt(points=((-5.0, 20.0),))])


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


def test_cache_keeps_within_its_bound():
    def embedding():
        return Embedding(torch.zeros(1, 4, 8, 8), (8, 8), (8, 8))

    cache = EmbeddingCache(3 * 1024)
    made = [cache.get((i,), embedding) for i in range(5)]
    assert len(cache) == 3
    assert cache.used_bytes == 3 * 1024
    assert cache.get((4,), embedding) is made[4]
    assert cache.get((0,), embedding) is not made[0]
