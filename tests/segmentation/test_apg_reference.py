"""Automatic prompts against micro-sam's own, where it is installed."""

import numpy as np
import pytest
import torch
from prompted_network import nuclei_image, small_pathosam

from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.segmentation.apg import (
    MIN_SIZE,
    SeedPrompts,
    distinct,
    pieces,
    seed_clicks,
)
from pathosam_qupath.segmentation.tiling import Box, TileGrid

reference = pytest.importorskip(
    "micro_sam.instance_segmentation", reason="micro_sam is not installed", exc_type=ImportError
)


def prompted_at_random(spread):
    """The small PathoSAM with a mask decoder whose masks differ from click to click.

    The golden one never learned from prompts: its masks fill the tile.
    """
    model = small_pathosam(semantic=False)
    torch.manual_seed(0)
    for part in (model.sam.mask_decoder, model.sam.prompt_encoder):
        for weights in part.parameters():
            weights.normal_(0 if weights.ndim > 1 else weights.mean().item(), spread)
    return model


@pytest.mark.parametrize("spread", [0.1, 0.2])
@pytest.mark.parametrize("shape", [(128, 128), (100, 128)])
@pytest.mark.parametrize("thresholds", [(0.5, 0.5, 0.5), (0.3, 0.6, 0.7)])
def test_labels_of_one_tile_are_the_references(spread, shape, thresholds, monkeypatch):
    model = prompted_at_random(spread)
    image = nuclei_image()[40 : 40 + shape[0], 90 : 90 + shape[1]]
    embedding = model.embed(image)
    maps = model.embedded_maps(embedding)
    expected = reference_labels(model, embedding, maps, thresholds, monkeypatch)

    height, width = image.shape[:2]
    parameters = Postprocessing(*thresholds)
    side = max(height, width)
    prompts = SeedPrompts(model, TileGrid(width, height, side, 0))
    masks = prompts.masks(seed_clicks(maps, parameters), lambda _: embedding)
    kept = distinct([mask for mask in masks if mask.area > MIN_SIZE])
    labels, _ = pieces(kept, Box(0, 0, width, height), MIN_SIZE)

    assert len(masks) > 5
    assert labels.max() >= 1
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel().astype(np.int64)]), axis=1)
    assert pairs.shape[1] == labels.max() + 1 == len(np.unique(expected))
    assert ((pairs[0] == 0) == (pairs[1] == 0)).all()


def reference_labels(model, embedding, maps, thresholds, monkeypatch):
    """What micro-sam makes of the same weights, embedding and maps."""
    from micro_sam import inference
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam
    from segment_anything.utils.transforms import ResizeLongestSide

    sam = model.sam
    predictor = SamPredictor(Sam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder))
    predictor.features = embedding.features
    predictor.original_size, predictor.input_size = embedding.original_size, embedding.input_size
    predictor.is_image_set = True
    # micro-sam writes SAM's usual input side down; the small one has another.
    monkeypatch.setattr(inference, "ResizeLongestSide", lambda _: ResizeLongestSide(256))
    generator = reference.AutomaticPromptGenerator(predictor, decoder=None)
    generator._foreground, generator._center_distances, generator._boundary_distances = maps
    generator._is_initialized = True
    foreground, center, boundary = thresholds
    return generator.generate(
        foreground_threshold=foreground,
        center_distance_threshold=center,
        boundary_distance_threshold=boundary,
    )
