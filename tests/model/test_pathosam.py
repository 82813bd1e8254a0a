"""PathoSAM's networks against the reference's results on a small model of its kind."""

import numpy as np
import pytest
import torch
from golden_pathosam import GOLDEN, golden, matched_share, same_up_to_ids, stitched, tiny_model

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model.checkpoints import read_checkpoint
from pathosam_qupath.model.pathosam import CLASSES, load_pathosam, semantic_labels
from pathosam_qupath.model.unetr import build_unetr
from pathosam_qupath.segmentation.watershed import instances

CLOSE = 1e-5


@pytest.fixture(scope="module")
def tile():
    return golden("tile")


@pytest.fixture(scope="module")
def ais():
    return golden("ais")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def semantic_model():
    return tiny_model(semantic=True)


def test_embedding(tile, model):
    found = model.embed(tile["tile_u8"]).features.numpy()
    assert np.abs(found - tile["embedding"]).max() <= CLOSE
    odd = model.embed(tile["odd_u8"]).features.numpy()[0, ::2, ::2, ::2]
    assert np.abs(odd - tile["odd_embedding_every2"]).max() <= CLOSE


@pytest.mark.parametrize(
    ("file", "bn", "key", "step"),
    [
        ("tiny_ais.pt", "tile", "raw_convT_bntrain", 1),
        ("tiny_ais.pt", "running", "raw_convT_bneval_every4", 4),
        ("tiny_decoder_interp.pt", "tile", "raw_interp_bntrain_every4", 4),
        ("tiny_decoder_interp.pt", "running", "raw_interp_bneval_every4", 4),
    ],
)
def test_decoder_in_all_variants(tile, file, bn, key, step):
    decoder = build_unetr(read_checkpoint(GOLDEN / file).decoder)
    with torch.inference_mode():
        found = decoder(torch.from_numpy(tile["embedding"]), bn=bn)[0].numpy()
    assert np.abs(found[:, ::step, ::step] - tile[key]).max() <= CLOSE


def test_decoding_a_window_gives_the_window_of_the_whole(tile, model):
    embedding = torch.from_numpy(tile["embedding"])
    decoder = build_unetr(read_checkpoint(GOLDEN / "tiny_ais.pt").decoder)
    with torch.inference_mode():
        whole = decoder(embedding)
        for top, left, bottom, right in ((32, 48, 200, 224), (0, 0, 128, 256), (7, 200, 256, 256)):
            part = decoder(embedding, (top, left, bottom, right))
            assert torch.allclose(part, whole[:, :, top:bottom, left:right], atol=1e-6)


def test_maps_of_tiles(tile, model):
    found = model.tile_maps(tile["tile_u8"])
    assert np.abs(found - tile["maps_convT_bntrain"]).max() <= CLOSE
    assert np.abs(model.tile_maps(tile["odd_u8"]) - tile["odd_maps"]).max() <= CLOSE


def test_predict_gives_the_maps_inside_and_background_in_the_halo(tile, model):
    batch = np.stack([tile["tile_u8"], tile["tile_u8"][::-1]])
    found = model.predict(batch)
    inner = found[0, :, 16:-16, 16:-16]
    assert np.abs(inner - tile["maps_convT_bntrain"][:, 16:-16, 16:-16]).max() <= CLOSE
    assert not found[:, 0, :16].any()
    assert (found[:, 1:3, :, :16] == 1).all()


def test_maps_of_an_image_by_tiles(ais, model):
    found = stitched(ais["image_u8"], model.tile_maps)
    assert np.abs(found - ais["maps_tiled_bntrain_b1"]).max() <= CLOSE
    running = stitched(ais["image_u8"], tiny_model(bn="running").tile_maps)
    assert np.abs(running - ais["maps_tiled_bneval"]).max() <= CLOSE
    untiled = model.tile_maps(ais["image_u8"])
    assert np.abs(untiled - ais["maps_untiled_bntrain"]).max() <= CLOSE


def test_labels_are_the_references(ais, model):
    labels = instances(stitched(ais["image_u8"], model.tile_maps))
    assert same_up_to_ids(labels, ais["labels_untiled_post_of_tiled_maps_bntrain_b1"])
    assert same_up_to_ids(labels, ais["labels_tiled_clean_bntrain_b1"])
    untiled = instances(model.tile_maps(ais["image_u8"]))
    assert same_up_to_ids(untiled, ais["labels_untiled_bntrain"])


def test_bfloat16_finds_the_same_nuclei(ais, model):
    quick = tiny_model(exact=False)
    if quick.dtype != torch.bfloat16:
        pytest.skip("this processor does not compute in bfloat16")
    rows = np.concatenate([ais["image_u8"], ais["image_u8"][::-1]])
    image = np.concatenate([rows, rows[:, ::-1]], axis=1)
    found, exact = (instances(stitched(image, m.tile_maps)) for m in (quick, model))
    assert exact.max() > 150
    assert matched_share(found, exact) >= 0.99


def test_semantic_labels_are_the_references(tile, ais, semantic_model):
    expected = golden("semantic")
    step = tile["tile_u8"].shape[0] // expected["tile_maps"].shape[1]
    maps = semantic_model.semantic_maps(tile["tile_u8"])[:, ::step, ::step]
    assert np.abs(maps - expected["tile_maps"]).max() <= CLOSE
    image = ais["image_u8"]
    tiled = semantic_labels(stitched(image, semantic_model.semantic_maps))
    assert np.array_equal(tiled, expected["labels_tiled"])
    untiled = semantic_labels(semantic_model.semantic_maps(image))
    assert np.array_equal(untiled, expected["labels_untiled"])


def test_votes_follow_the_semantic_labels(tile, semantic_model):
    maps = semantic_model.tile_maps(tile["tile_u8"])
    assert semantic_model.info.classes == CLASSES
    votes = maps[3:]
    assert np.allclose(votes.sum(axis=0), 1)
    labels = semantic_labels(semantic_model.semantic_maps(tile["tile_u8"]))
    nuclei = labels > 0
    assert nuclei.any()
    assert np.array_equal(votes.argmax(axis=0)[nuclei] + 1, labels[nuclei])


def test_maps_are_the_same_bits_in_every_batch(ais, semantic_model):
    image = ais["image_u8"]
    tiles = np.stack([image[y : y + 128, x : x + 128] for y in (0, 90, 170) for x in (0, 130)])
    together = semantic_model.predict(tiles)
    order = [4, 1, 5, 0, 3, 2]
    assert np.array_equal(semantic_model.predict(tiles[order]), together[order])
    alone = np.concatenate([semantic_model.predict(tiles[i : i + 1]) for i in range(len(tiles))])
    assert np.array_equal(alone, together)


def test_labels_are_the_same_for_any_number_of_threads(ais, model):
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(instances(stitched(ais["image_u8"], model.tile_maps)))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found)


def test_model_loads_from_files_and_names_their_hashes():
    model = load_pathosam(
        "mine",
        checkpoint=GOLDEN / "tiny_ais.pt",
        semantic=GOLDEN / "tiny_semantic_decoder.pt",
        device="cpu",
    )
    assert model.info.weights_hash.count("xxh128:") == 2
    assert model.info.classes == CLASSES
    assert (model.info.mpp, model.info.tile, model.info.halo) == (0.25, 512, 64)


def test_tiles_of_another_size_are_refused(model):
    with pytest.raises(UsageError, match=r"\(n, 128, 128, 3\)"):
        model.predict(np.zeros((1, 64, 64, 3), np.uint8))


def test_files_that_do_not_go_together_are_refused():
    with pytest.raises(ModelError, match="a decoder alone"):
        load_pathosam("mine", checkpoint=GOLDEN / "tiny_decoder_interp.pt", device="cpu")
    with pytest.raises(ModelError, match="found 3"):
        load_pathosam(
            "mine",
            checkpoint=GOLDEN / "tiny_ais.pt",
            semantic=GOLDEN / "tiny_decoder_interp.pt",
            device="cpu",
        )
    with pytest.raises(ModelError, match="SAM's weights alone"):
        load_pathosam(
            "mine", checkpoint=GOLDEN / "tiny_ais.pt", decoder=_without_decoder(), device="cpu"
        )


def _without_decoder():
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "sam.pt"
    torch.save(read_checkpoint(GOLDEN / "tiny_ais.pt").sam, path)
    return path


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The small model's files in the cache, as if they were the published ones."""
    from dataclasses import replace

    from pathosam_qupath.model import registry

    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    monkeypatch.setenv("PATHOSAM_OFFLINE", "1")
    cache = registry.cache_directory()
    cache.mkdir()
    whole = read_checkpoint(GOLDEN / "tiny_ais.pt")
    semantic = torch.load(GOLDEN / "tiny_semantic_decoder.pt", weights_only=True)
    model = registry.MODELS["vit_b_histopathology"]
    roles = {"sam": whole.sam, "decoder": whole.decoder, "semantic": semantic}
    files = {}
    for role, state in roles.items():
        file = getattr(model, role)
        torch.save(state, cache / file.name)
        files[role] = replace(file, hash=registry.file_hash(cache / file.name))
    monkeypatch.setitem(registry.MODELS, model.name, replace(model, **files))
    return cache


def test_published_model_by_its_name(published, tile):
    model = load_pathosam("vit_b_histopathology", device="cpu", exact=True)
    assert model.info.name == "vit_b_histopathology"
    assert model.info.classes == CLASSES
    assert np.abs(model.tile_maps(tile["tile_u8"])[:3] - tile["maps_convT_bntrain"]).max() <= CLOSE
    without = load_pathosam("vit_b_histopathology", device="cpu", semantic=False)
    assert without.info.classes == ()


def test_damaged_published_file_is_not_loaded(published):
    path = published / "vit_b_histopathology"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is damaged, and downloads are switched off"):
        load_pathosam("vit_b_histopathology", device="cpu")


def test_classes_of_another_encoder_are_refused():
    from pathosam_qupath.model.pathosam import _semantic_decoder
    from pathosam_qupath.model.sam import SamConfig

    with pytest.raises(ModelError, match="on those of a vit_l its classes mean nothing"):
        _semantic_decoder(GOLDEN / "tiny_semantic_decoder.pt", SamConfig(architecture="vit_l"))
