"""`segment` with checkpoint files, decoders of their own, exact arithmetic, automatic prompts."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from ihc_project import SEGMENT

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.checkpoints import read_checkpoint
from pathosam_qupath.model.registry import CLASSES, MODELS

GOLDEN = Path(__file__).parent / "data" / "golden"
TINY, SEMANTIC = GOLDEN / "tiny_ais.pt", GOLDEN / "tiny_semantic_decoder.pt"


@pytest.fixture
def apart(tmp_path):
    """The small PathoSAM as it is published: SAM and the decoder in a file each."""
    files = read_checkpoint(TINY)
    sam, decoder = tmp_path / "small_sam", tmp_path / "small_decoder"
    torch.save(files.sam, sam)
    torch.save(files.decoder, decoder)
    return sam, decoder


@pytest.fixture
def refused(ihc, command):
    """What `segment` with these words says on stderr, having written nothing."""

    def run(*words, code=5):
        before = ihc.data.read_bytes()
        found, _, err = command("segment", *ihc.words, *SEGMENT, *words)
        assert found == code
        assert ihc.data.read_bytes() == before
        assert "Traceback" not in err
        return " ".join(err.split())

    return run


def test_checkpoint_decoder_and_classes_in_three_files(ihc, command, apart):
    sam, decoder = apart
    words = ("--checkpoint", sam, "--decoder", decoder, "--semantic", SEMANTIC, "--exact")
    code, out, err = command("segment", *ihc.words, *SEGMENT, *words, "--json")
    assert code == 0, err
    manifest = json.loads(out)
    assert manifest["model"]["name"] == "small_sam (vit)"
    assert manifest["model"]["precision"] == "float32"
    assert manifest["model"]["weights_hash"].count("+") == 2
    assert manifest["options"]["mode"] == "ais"
    nuclei = ihc.detections()
    assert len(nuclei) > 50
    assert set(nuclei["classification"]) <= set(CLASSES)


def test_automatic_prompts_from_the_command_line(ihc, command):
    words = ("--annotations", "Stroma", "--checkpoint", TINY, "--mode", "apg", "--json")
    code, out, err = command("segment", *ihc.words, *SEGMENT, *words)
    assert code == 0, err
    manifest = json.loads(out)
    assert manifest["options"]["mode"] == "apg"
    assert manifest["entries"][0]["state"] == "written"


def test_a_checkpoint_without_decoder_names_the_option(refused, apart):
    said = refused("--checkpoint", apart[0])
    assert "expected an instance decoder" in said
    assert "--decoder FILE" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--checkpoint", SEMANTIC), "expected SAM's weights, found a decoder alone"),
        (("--checkpoint", TINY, "--semantic", TINY), "expected a decoder of 6 maps"),
        (("--checkpoint", TINY, "--decoder", "none.pt"), "none.pt"),
        (("--checkpoint", "none.pt"), "none.pt: it is neither a model's name nor a file"),
        (("--checkpoint", __file__), "expected a PyTorch checkpoint"),
    ],
)
def test_wrong_files_are_refused_with_what_was_found(refused, words, expected):
    assert expected in refused(*words)


def test_truncated_and_foreign_checkpoints_are_refused(refused, tmp_path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(TINY.read_bytes()[:-1000])
    assert "cut.pt" in refused("--checkpoint", cut)
    foreign = tmp_path / "foreign.pt"
    torch.save({"fc.weight": torch.zeros(3, 3)}, foreign)
    assert "expected SAM's weights" in refused("--checkpoint", foreign)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("option", ["--checkpoint", "--decoder", "--semantic"])
@pytest.mark.parametrize("layout", ["zip", "plain"])
def test_a_malicious_pickle_runs_nothing(refused, tmp_path, option, layout):
    target, path = tmp_path / "owned", tmp_path / "evil.pt"
    state = {"model_state": Malicious(target), "decoder_state": Malicious(target)}
    if layout == "zip":
        torch.save(state, path)
        assert zipfile.is_zipfile(path)
    else:
        path.write_bytes(pickle.dumps(state))
    first = () if option == "--checkpoint" else ("--checkpoint", TINY)
    assert "evil.pt" in refused(*first, option, path)
    assert not target.exists()


def test_options_that_contradict_each_other_are_refused(refused):
    said = refused("--checkpoint", TINY, "--model", "vit_b_histopathology", code=2)
    assert "both name a model" in said
    for words in (("--exact",), ("--decoder", TINY), ("--semantic", SEMANTIC)):
        assert "this is another network" in refused(*words, code=2)
    assert "amg" in refused("--mode", "amg", code=2)


def test_classes_of_vit_b_are_refused_for_other_encoders(refused, server):
    for name in ("vit_l_histopathology", "vit_h_histopathology"):
        said = refused("--model", name, "--semantic", SEMANTIC)
        assert "trained on the embeddings of vit_b_histopathology" in said
        assert MODELS[name].architecture in said
    assert server.requests == []


def test_precision_is_the_processors_unless_exact(monkeypatch):
    from pathosam_qupath.model import pathosam

    monkeypatch.setattr(pathosam, "_cpu_has_bfloat16", lambda: True)
    assert load_model(TINY, "cpu").info.precision == "bfloat16"
    assert load_model(TINY, "cpu", exact=True).info.precision == "float32"


def test_from_python_too():
    model = load_model(TINY, "cpu", semantic=SEMANTIC)
    assert model.info.classes == CLASSES
    with pytest.raises(UsageError, match="another network"):
        load_model("bundled", "cpu", exact=True)
    with pytest.raises(ModelError, match="only answers prompts"):
        load_model("vit_t", "cpu")
