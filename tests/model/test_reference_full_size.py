"""PathoSAM at its published size against micro-sam, where that is installed: minutes."""

import numpy as np
import pytest
import torch
from checkpoint_files import random_state, saved

from pathosam_qupath.model.pathosam import load_pathosam

util = pytest.importorskip(
    "micro_sam.util", reason="micro_sam is not installed", exc_type=ImportError
)

CLOSE = 1e-4


@pytest.fixture(scope="module")
def states():
    sam, decoder = random_state("vit_b"), random_state("decoder_convtranspose")
    # Maps that use the whole range, not only the middle of the sigmoid.
    decoder["out_conv.weight"] *= 30
    return sam, decoder


@pytest.fixture(scope="module")
def tile():
    from skimage import data

    return np.ascontiguousarray(data.immunohistochemistry()[:, :, :3])


def reference_maps(checkpoint, decoder, tile):
    from micro_sam.instance_segmentation import InstanceSegmentationWithDecoder, get_decoder

    predictor, state = util.get_sam_model(
        "vit_b", device="cpu", checkpoint_path=str(checkpoint), return_state=True
    )
    if decoder is not None:
        state = {"decoder_state": torch.load(decoder, weights_only=True)}
    segmenter = InstanceSegmentationWithDecoder(
        predictor, get_decoder(predictor.model.image_encoder, state["decoder_state"])
    )
    embeddings = util.precompute_image_embeddings(predictor, tile, ndim=2, verbose=False)
    segmenter.initialize(tile, image_embeddings=embeddings)
    found = segmenter.get_state()
    return np.stack(
        [np.array(found[n]) for n in ("foreground", "center_distances", "boundary_distances")]
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("layout", ["sam", "exported", "trainer"])
def test_maps_of_a_full_size_model_are_the_references(layout, states, tile, tmp_path):
    checkpoint, decoder = saved(tmp_path, layout, *states)
    expected = reference_maps(checkpoint, decoder, tile)
    assert expected.std() > 0.05
    model = load_pathosam("x", checkpoint=checkpoint, decoder=decoder, device="cpu", exact=True)
    assert np.abs(model.tile_maps(tile) - expected).max() <= CLOSE
