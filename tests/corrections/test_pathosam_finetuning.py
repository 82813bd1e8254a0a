"""PathoSAM learns: through its decoder, through low-rank paths, or as a whole; on tiny ones."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from synthetic_nuclei import write_samples

from pathosam_qupath.corrections.finetuning import FinetuneData
from pathosam_qupath.corrections.holding import SHARES, RegressionSet
from pathosam_qupath.corrections.low_rank import add_low_rank, merge_low_rank
from pathosam_qupath.corrections.pathosam_finetuning import (
    PathosamFinetuneOptions,
    finetune_pathosam,
)
from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.corrections.unetr_learning import decoder_logits
from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.checkpoints import read_checkpoint
from pathosam_qupath.model.pathosam import load_pathosam
from pathosam_qupath.model.sam import build_sam
from pathosam_qupath.model.unetr import build_unetr

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY = GOLDEN / "tiny_ais.pt"
SMALL = PathosamFinetuneOptions(steps=2, batch=1, tile=128, halo=16, validate_every=1, rank=2)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user's folder of the test's own."""
    monkeypatch.setenv("PATHOSAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def samples(tmp_path):
    """Three pictures of ellipses."""
    return list(read_samples(write_samples(tmp_path / "data", 3)))


def learning(samples, **changes):
    return replace(FinetuneData(samples, [], identity="test"), **changes)


def states(path):
    """SAM's weights and the decoder's."""
    files = read_checkpoint(path)
    return files.sam, files.decoder


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("file", ["tiny_ais.pt", "tiny_decoder_interp.pt"])
def test_the_learning_decoder_gives_the_maps_of_the_one_that_segments(file):
    state = read_checkpoint(GOLDEN / file).decoder
    plain, fused = build_unetr(state), build_unetr(state)
    fused.prepare()
    torch.manual_seed(0)
    channels = plain.base.block["1"].in_channels
    embedding = torch.randn(2, channels, 8, 8)
    with torch.no_grad():
        together = decoder_logits(plain, embedding).sigmoid()
        for number in range(2):
            alone = fused(embedding[number : number + 1])
            torch.testing.assert_close(together[number : number + 1], alone, atol=1e-4, rtol=0)


def test_low_rank_paths_begin_at_nothing_and_merge_into_what_they_are():
    sam = build_sam(read_checkpoint(TINY).sam)
    keys = sam.state_dict().keys()
    pixels = torch.randn(1, 3, sam.config.side, sam.config.side)
    with torch.no_grad():
        before = sam.encode(pixels)
        added = add_low_rank(sam.image_encoder, 2)
        torch.testing.assert_close(sam.image_encoder(pixels), before, atol=1e-4, rtol=1e-3)
        for parameter in added:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        beside = sam.image_encoder(pixels)
        assert not torch.allclose(beside, before, atol=1e-2)
        merge_low_rank(sam.image_encoder)
        torch.testing.assert_close(sam.encode(pixels), beside, atol=1e-4, rtol=1e-3)
    assert sam.state_dict().keys() == keys


@pytest.mark.parametrize("what", ["decoder", "lora", "all"])
def test_only_what_is_asked_for_learns_and_the_result_is_a_checkpoint(samples, tmp_path, what):
    options = replace(SMALL, what=what)
    new = finetune_pathosam(TINY, learning(samples), tmp_path / "run", options).weights
    sam, decoder = (changed(a, b) for a, b in zip(states(TINY), states(new), strict=True))
    assert decoder
    assert not any("running" in key for key in decoder)
    if what == "decoder":
        assert not sam
    elif what == "lora":
        assert sam
        assert all(key.endswith("attn.qkv.weight") for key in sam)
    else:
        assert {key.split(".")[0] for key in sam} == {"image_encoder"}
        assert any("mlp" in key for key in sam)
    model = load_pathosam("checkpoint", checkpoint=new, device="cpu", exact=True)
    assert model.tile_maps(samples[0].image).shape == (3, 128, 128)


def test_blocks_learn_the_slower_the_farther_they_are_from_the_decoder(samples, tmp_path):
    options = replace(SMALL, what="all", steps=1)
    new = finetune_pathosam(TINY, learning(samples), tmp_path / "run", options).weights
    before, after = states(TINY)[0], states(new)[0]
    moved: dict[int, float] = {}
    for key in changed(before, after):
        if key.startswith("image_encoder.blocks."):
            block = int(key.split(".")[2])
            by = float((after[key] - before[key]).abs().max())
            moved[block] = max(by, moved.get(block, 0.0))
    steps = [moved[block] for block in sorted(moved)]  # of AdamW's first step: the rates
    assert len(steps) > 1
    assert [a / b for a, b in pairwise(steps)] == pytest.approx([0.8] * (len(steps) - 1), rel=0.05)


def test_the_loss_falls(samples, tmp_path):
    options = replace(SMALL, what="lora", steps=24, validate_every=12, learning_rate=3e-3)
    finetune_pathosam(TINY, learning(samples), tmp_path / "run", options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 12, 24]
    assert lines[2]["loss"] < lines[1]["loss"]


def test_a_killed_run_ends_as_if_it_had_not_been(samples, tmp_path):
    options = replace(SMALL, what="lora", steps=4, validate_every=2)
    whole = finetune_pathosam(TINY, learning(samples), tmp_path / "whole", options).weights

    def killed(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_pathosam(TINY, learning(samples), tmp_path / "cut", options, progress=killed)
    again = finetune_pathosam(TINY, learning(samples), tmp_path / "cut", options).weights
    for a, b in zip(states(whole), states(again), strict=True):
        assert not changed(a, b)
    with pytest.raises(UsageError, match="other options"):
        finetune_pathosam(TINY, learning(samples), tmp_path / "cut", replace(options, seed=1))


def test_a_checkpoint_without_a_decoder_needs_its_file(samples, tmp_path):
    files = read_checkpoint(TINY)
    alone, beside = tmp_path / "sam.pt", tmp_path / "decoder.pt"
    torch.save(files.sam, alone)
    torch.save(files.decoder, beside)
    with pytest.raises(ModelError, match="instance decoder"):
        finetune_pathosam(alone, learning(samples), tmp_path / "run", SMALL)
    options = replace(SMALL, steps=1)
    new = finetune_pathosam(
        alone, learning(samples), tmp_path / "run", options, decoder=beside
    ).weights
    assert read_checkpoint(new).layout == "exported"


def test_the_command_adopts_it_under_its_name(tmp_path, command, home):
    data = write_samples(tmp_path / "one" / "train", 1).parent
    words = ["finetune", "--data", data, "--base", TINY, "--name", "tuned"]
    words += ["--device", "cpu", "--steps", 1, "--json"]
    code, out, _ = command(*words, "--what", "class-head")
    assert code == 2
    assert "lora" in json.loads(out)["error"]["remedy"]
    code, out, _ = command(*words, "--what", "lora", "--force")
    assert code == 0, out
    report = json.loads(out)
    assert report["adopted"]
    assert Path(report["weights"]) == home / "models" / "tuned" / "tuned.pt"
    model = load_model("tuned", "cpu")
    assert model.info.classes == ()
    code, _, _ = command("models", "verify", "tuned", "--json")
    assert code == 0
    (home / "models" / "tuned" / "tuned.pt").write_bytes(TINY.read_bytes())
    with pytest.raises(ModelError, match="damaged"):
        load_model("tuned", "cpu")


def test_low_rank_paths_are_not_for_compact_models(tmp_path, command):
    data = write_samples(tmp_path / "one" / "train", 1).parent
    code, out, _ = command(
        *["finetune", "--data", data, "--name", "n", "--what", "lora", "--device", "cpu", "--json"]
    )
    assert code == 2
    assert "PathoSAM" in json.loads(out)["error"]["remedy"]


def test_what_loses_elsewhere_goes_back_towards_its_base(samples, tmp_path):
    options = replace(SMALL, what="lora", steps=1, learning_rate=10.0)
    elsewhere = RegressionSet(samples[:1], identity="one")
    out = tmp_path / "run"
    done = finetune_pathosam(TINY, learning(samples, regression=elsewhere), out, options)
    tried = json.loads((out / "held.json").read_text())["tried"]
    assert done.way == done.share
    assert list(tried) == [str(share) for share in SHARES if share >= done.share]
    for before, best, after in zip(
        states(TINY), states(out / "best.pt"), states(done.weights), strict=True
    ):
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            between = torch.lerp(tensor.float(), best[name].float(), done.share)
            torch.testing.assert_close(after[name].float(), between, atol=1e-4, rtol=1e-4)
