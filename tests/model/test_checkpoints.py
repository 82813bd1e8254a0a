"""Checkpoints of every layout, and what is no checkpoint."""

import collections
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from checkpoint_files import KEYS, random_state, saved
from golden_pathosam import GOLDEN

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.checkpoints import read_checkpoint
from pathosam_qupath.model.pathosam import load_pathosam
from pathosam_qupath.model.sam import SamConfig, build_sam
from pathosam_qupath.model.unetr import build_unetr


@pytest.fixture(scope="module")
def tiny():
    return read_checkpoint(GOLDEN / "tiny_ais.pt")


def test_layouts_are_recognised(tmp_path, tiny):
    for layout in ("sam", "exported", "trainer"):
        path, beside = saved(tmp_path, layout, tiny.sam, tiny.decoder)
        found = read_checkpoint(path)
        assert found.layout == layout
        assert found.sam.keys() == tiny.sam.keys()
        decoder = found.decoder if beside is None else read_checkpoint(beside).decoder
        assert all(torch.equal(decoder[key], tiny.decoder[key]) for key in tiny.decoder)
    assert read_checkpoint(GOLDEN / "tiny_semantic_decoder.pt").layout == "decoder"


@pytest.mark.parametrize("layout", ["sam", "exported", "trainer"])
def test_every_layout_loads_with_classes(tmp_path, tiny, layout):
    path, beside = saved(tmp_path, layout, tiny.sam, tiny.decoder)
    model = load_pathosam("mine", checkpoint=path, decoder=beside, device="cpu", exact=True)
    loaded = model.sam.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tiny.sam.items())


def test_old_file_format(tmp_path, tiny):
    path = tmp_path / "old.pth"
    torch.save(tiny.sam, path, _use_new_zipfile_serialization=False)
    found = read_checkpoint(path)
    assert all(torch.equal(found.sam[key], value) for key, value in tiny.sam.items())


def test_foreign_classes_need_not_be_importable(tmp_path, tiny):
    """The file is written by a process that has a package which this one does not have."""
    path = tmp_path / "trainer.pt"
    package = tmp_path / "absent_trainer.py"
    package.write_text(
        "import functools, pathlib\n"
        "def loss(x, y): return x\n"
        "class Log(list): pass\n"
        "class Settings(dict): pass\n"
        "class Trainer:\n"
        "    def __init__(self):\n"
        "        self.loss, self.where = functools.partial(loss, y=1), pathlib.Path('x')\n"
        "        self.log, self.settings = Log([1, 2]), Settings(a=1)\n"
        "        self.kind, self.method = Trainer, self.run\n"
        "    def run(self): pass\n"
    )
    script = (
        "import sys, torch, numpy; sys.path.insert(0, sys.argv[1]); import absent_trainer\n"
        "state = torch.load(sys.argv[2], weights_only=True)\n"
        "state['trainer'] = absent_trainer.Trainer(); state['best'] = numpy.float64(0.5)\n"
        "torch.save(state, sys.argv[3])\n"
    )
    arguments = [str(tmp_path), str(GOLDEN / "tiny_ais.pt"), str(path)]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    found = read_checkpoint(path)
    assert found.layout == "trainer"
    assert "absent_trainer" not in sys.modules
    assert torch.equal(found.sam["image_encoder.neck.0.weight"], tiny_neck())


def tiny_neck():
    state = torch.load(GOLDEN / "tiny_ais.pt", weights_only=True)
    return state["model_state"]["sam.image_encoder.neck.0.weight"]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "attack", ["system", "eval", "exec", "popen", "nested", "import", "open", "attribute"]
)
def test_a_pickle_that_runs_code_is_refused(tmp_path, tiny, attack, zipped):
    mark = tmp_path / "mark"
    command = f"touch {mark}"
    harm = {
        "system": Calls(os.system, command),
        "eval": Calls(eval, f"__import__('os').system({command!r})"),
        "exec": Calls(exec, f"import os; os.system({command!r})"),
        "popen": Calls(subprocess.Popen, ["touch", str(mark)]),
        "nested": [{"deep": (Calls(os.mkdir, str(mark)),)}],
        "import": Calls(__import__, "antigravity"),
        "open": Calls(open, str(mark), "w"),
        "attribute": Calls(getattr(os, "_exit"), 3),  # noqa: B009
    }[attack]
    path = tmp_path / "harmful.pt"
    state = {"model_state": tiny.sam, "decoder_state": tiny.decoder, "extra": harm}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="would run a program"):
        read_checkpoint(path)
    assert not mark.exists()


def test_functions_of_torch_and_others_are_not_called(tmp_path, tiny):
    """Neither refused nor run: they become placeholders."""
    inner = tmp_path / "inner.pt"
    mark = tmp_path / "mark"
    torch.save(Calls(os.system, f"touch {mark}"), inner)
    path = tmp_path / "indirect.pt"
    harm = [
        Calls(torch.load, str(inner)),
        Calls(torch.storage._load_from_bytes, inner.read_bytes()),
        Calls(collections.namedtuple, "x", "a b"),
    ]
    torch.save({"model_state": tiny.sam, "harm": harm}, path)
    assert read_checkpoint(path).sam.keys() == tiny.sam.keys()
    assert not mark.exists()


def test_dotted_names_do_not_reach_behind_the_list(tmp_path):
    """Protocol 4 may name ``torch`` → ``os.system``."""
    mark = tmp_path / "mark"
    command = f"touch {mark}".encode()
    payload = (
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93"
        b"\x8c" + bytes([len(command)]) + command + b"\x85R."
    )
    path = tmp_path / "dotted.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(ModelError):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>login</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "132 bytes|108 bytes"),
        (pickle.dumps([1, 2, 3]), "damaged or cut short"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, found):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=found):
        read_checkpoint(path)


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        read_checkpoint(tmp_path / "absent.pt")
    whole = (GOLDEN / "tiny_ais.pt").read_bytes()
    path = tmp_path / "short.pt"
    for length in (10, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cut short"):
            read_checkpoint(path)


def test_zip_archives_of_something_else(tmp_path):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ModelError, match="a zip archive of something else"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/constants.pkl", b"")
    with pytest.raises(ModelError, match="a TorchScript program"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"conv.weight": torch.zeros(2)}, r"1 tensors of another network \(conv.weight"),
        ([torch.zeros(2)], "an object of type list"),
        ({"model_state": {"fc.weight": torch.zeros(2)}}, "a model_state of another network"),
        ({"epoch": 3}, r"no tensors \(epoch\)"),
        (
            {"encoder.neck.0.weight": torch.zeros(2), "out_conv.weight": torch.zeros(2)},
            "a UNETR of training",
        ),
    ],
)
def test_weights_of_something_else_are_named(tmp_path, content, found):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ModelError, match=found):
        read_checkpoint(path)


def test_missing_superfluous_and_misshapen_weights_are_named(tiny):
    wrong = dict(tiny.sam)
    del wrong["mask_decoder.iou_token.weight"]
    wrong["surplus"] = torch.zeros(1)
    wrong["image_encoder.neck.1.bias"] = torch.zeros(3)
    with pytest.raises(ModelError) as caught:
        build_sam(wrong, subject="file.pt")
    text = str(caught.value)
    assert "1 missing (mask_decoder.iou_token.weight)" in text
    assert "1 unexpected (surplus)" in text
    assert "neck.1.bias is (3,) instead of (64,)" in text
    with pytest.raises(ModelError, match=r"without 'out_conv\.weight'"):
        build_unetr({k: v for k, v in tiny.decoder.items() if k != "out_conv.weight"})
    with pytest.raises(ModelError, match="1 missing"):
        build_unetr({k: v for k, v in tiny.decoder.items() if k != "deconv4.block.1.block.bias"})
    with pytest.raises(ModelError, match="embeddings of 256 channels, found 64"):
        build_unetr(tiny.decoder, channels=256)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_b", (768, 12, 12, (2, 5, 8, 11))),
        ("vit_l", (1024, 24, 16, (5, 11, 17, 23))),
        ("vit_h", (1280, 32, 16, (7, 15, 23, 31))),
    ],
)
def test_published_keys_and_shapes_are_exactly_the_networks(name, expected):
    """All sizes, without memory for their weights."""
    with torch.device("meta"):
        state = meta_state(name)
        sam = build_sam(state)
    config = sam.config
    assert (config.architecture, config.side, config.channels) == (name, 1024, 256)
    assert (config.width, config.depth, config.heads, config.global_blocks) == expected
    assert sam.state_dict().keys() == state.keys()


def test_mobile_sam_is_told_by_its_keys():
    config = SamConfig.from_state(meta_state("vit_t"))
    assert config.architecture == "vit_t"
    pytest.importorskip("mobile_sam", reason="mobile_sam is not installed")
    assert build_sam(random_state("vit_t")).embed is not None


def meta_state(name):
    import json

    keys = json.loads(KEYS.read_text())[name]
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (shape, dtype) in keys.items()
    }


@pytest.mark.parametrize("layout", ["sam", "exported", "trainer"])
def test_full_size_loads_strictly_in_every_layout(tmp_path, layout):
    """vit_b with both decoder variants; weights are mapped from the file, not copied."""
    variant = "decoder_interpolate" if layout == "exported" else "decoder_convtranspose"
    sam, decoder = random_state("vit_b"), random_state(variant)
    path, beside = saved(tmp_path, layout, sam, decoder)
    try:
        model = load_pathosam("mine", checkpoint=path, decoder=beside, device="cpu", exact=True)
        loaded = model.sam.state_dict()
        assert loaded.keys() == sam.keys()
        assert all(torch.equal(loaded[key], sam[key]) for key in list(sam)[::20])
        assert model._instances.transposed is (layout != "exported")
        assert model._instances.state_dict().keys() == decoder.keys()
    finally:
        path.unlink()
