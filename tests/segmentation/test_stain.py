"""A stain that the model was not trained on is told; haematoxylin and eosin is not."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from drawn_slide import DrawnSlide
from PIL import Image

from pathosam_qupath.model.interface import ModelInfo
from pathosam_qupath.segmentation.pipeline import SegmentOptions, plan_blocks
from pathosam_qupath.segmentation.stain import (
    FEATURES,
    stain_distance,
    stain_features,
    training_stains,
)

IHC = Path(__file__).parents[1] / "data" / "fixtures" / "0.6.0" / "images" / "ihc.png"
VAL = Path(__file__).parents[3] / "shared" / "nuclei" / "val" / "images"

# Ruifrok and Johnston 2001, "Quantification of histochemical staining by color deconvolution".
HAEMATOXYLIN, EOSIN, DAB = np.array(
    [(0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776)]
)
BOTH = (HAEMATOXYLIN + EOSIN) / 2


def stained(nuclei, rest, seed=0, side=256):
    """Tissue of blobs of one stain in the haze of another, by Beer and Lambert."""
    rng = np.random.default_rng(seed)
    blobs = np.kron(rng.random((side // 16, side // 16)) < 0.25, np.ones((16, 16)))
    strong = blobs * rng.normal(0.75, 0.12, (side, side))
    haze = rng.normal(0.3, 0.08, (side, side)) * (1 - 0.6 * blobs)
    density = strong[..., None] * nuclei + haze[..., None] * rest
    return np.clip(245 * 10 ** -np.maximum(density, 0), 0, 255).astype(np.uint8)


def distance(rgb):
    return training_stains().distance(stain_features(rgb))


def test_haematoxylin_and_eosin_is_like_the_training_data_and_dab_is_not():
    assert distance(stained(HAEMATOXYLIN, BOTH)) < 1
    assert distance(stained(HAEMATOXYLIN, DAB)) > 1.2
    assert distance(stained(DAB, DAB)) > 1.2
    assert distance(np.asarray(Image.open(IHC).convert("RGB"))) > 1.2


def test_glass_says_nothing_and_does_not_count():
    glass = np.full((256, 256, 3), 243, np.uint8)
    assert stain_features(glass) is None
    tissue = stained(HAEMATOXYLIN, BOTH)
    alone, beside = stain_features(tissue), stain_features(np.concatenate([tissue, glass]))
    assert len(alone) == len(FEATURES)
    assert np.array_equal(alone, beside)


def test_a_slide_is_judged_by_the_tiles_that_will_be_segmented():
    info = ModelInfo("x", "0", mpp=0.25, tile=96, halo=16)
    rgb = np.concatenate([stained(HAEMATOXYLIN, DAB), stained(HAEMATOXYLIN, BOTH)])
    found = []
    for box in (None, (0, 0, 256, 200), (0, 300, 256, 512)):
        regions = None if box is None else [shapely.box(*box)]
        slide = DrawnSlide(rgb)
        plan = plan_blocks(slide, regions, info, SegmentOptions())
        found.append(stain_distance(plan))
    _, dab, eosin = found
    assert dab > 1.2
    assert eosin < 1


@pytest.mark.shared
def test_most_held_out_images_are_like_the_training_data():
    paths = sorted(VAL.glob("*.png"))
    if not paths:
        pytest.skip("no shared nuclei here")
    distances = [distance(np.asarray(Image.open(path).convert("RGB"))) for path in paths[::3]]
    assert np.median(distances) < 0.8
    assert np.mean(np.array(distances) > 1) < 0.2
