"""PathoSAM by name and from a file: got, checked, and run through the pipeline of all models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ihc_project import SEGMENT

from pathosam_qupath.doctor import check_model, check_published_models
from pathosam_qupath.errors import ModelError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.registry import (
    CLASSES,
    COLORS,
    MODELS,
    PublishedFile,
    cache_directory,
    file_hash,
)
from pathosam_qupath.run_record import file_hash as qpdata_hash

GOLDEN = Path(__file__).parent / "data" / "golden"
FILES = {
    "vit_b_histopathology": "tiny_ais.pt",
    "vit_b_histopathology_decoder": "tiny_ais.pt",
    "vit_b_histopathology_semantic_segmentation_decoder": "tiny_semantic_decoder.pt",
}


@pytest.fixture
def published(server, monkeypatch):
    """vit_b_histopathology as a small network of its kind, on a server of this machine."""

    def served(file):
        path = GOLDEN / FILES[file.name]
        server.files[f"/{file.name}"] = path.read_bytes()
        url = server.url.replace("download", file.name)
        return PublishedFile(file.name, url, file_hash(path))

    model = MODELS["vit_b_histopathology"]
    small = replace(
        model,
        sam=served(model.sam),
        decoder=served(model.decoder),
        semantic=served(model.semantic),
    )
    monkeypatch.setitem(MODELS, model.name, small)
    return server


def test_a_checkpoint_file_segments_without_classes(ihc, command):
    before = qpdata_hash(ihc.data)
    known = {str(o.id) for o in ihc.objects()}
    code, out, _ = command(
        "segment", *ihc.words, *SEGMENT, "--model", GOLDEN / "tiny_ais.pt", "--json"
    )
    assert code == 0
    manifest = json.loads(out)
    assert manifest["model"]["name"] == "tiny_ais.pt (vit)"
    assert manifest["model"]["weights_hash"] == file_hash(GOLDEN / "tiny_ais.pt")
    nuclei = ihc.detections()
    assert len(nuclei) == manifest["entries"][0]["nuclei"] > 50
    assert nuclei["classification"].isna().all()
    assert nuclei["id"].is_unique
    assert not known & set(nuclei["id"])
    assert set(nuclei["parent"].dropna()) <= known
    assert not [name for name in nuclei.columns if name.startswith("Probability")]

    assert command("rollback", *ihc.words, "--run", "last")[0] == 0
    assert qpdata_hash(ihc.data) == before


def test_a_published_name_is_downloaded_once_and_gives_pannukes_classes(ihc, command, published):
    words = ["segment", *ihc.words, *SEGMENT, "--model", "vit_b_histopathology"]
    code, _, err = command(*words)
    assert code == 0
    assert all(f"downloading {name} (" in err for name in FILES)
    assert len(published.requests) == 3
    nuclei = ihc.detections()
    assert len(nuclei) > 50
    assert nuclei["classification"].notna().all()
    assert set(nuclei["classification"]) <= set(CLASSES)
    assert nuclei["classification"].nunique() > 1
    shares = nuclei[[f"Probability: {name}" for name in CLASSES]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1)
    with ihc.open() as project:
        colors = {name: project.classes[name] for name in set(nuclei["classification"])}
    assert colors == {name: dict(zip(CLASSES, COLORS, strict=True))[name] for name in colors}

    code, _, err = command(*words)
    assert code == 0
    assert "downloading" not in err
    assert len(published.requests) == 3
    assert len(ihc.detections()) == len(nuclei)


def test_pannukes_classes_take_the_projects_names(ihc, command, published, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("Neoplastic = Tumor\nConnective = Stroma\nDead = -\n")
    code, _, _ = command(
        "segment",
        *ihc.words,
        *SEGMENT,
        *("--model", "vit_b_histopathology", "--classes", names),
    )
    assert code == 0
    assert set(ihc.detections()["classification"]) <= {
        "Tumor",
        "Stroma",
        "Inflammatory",
        "Epithelial",
    }
    assert "Tumor" in set(ihc.detections()["classification"])


def test_an_unknown_name_lists_the_known_ones(ihc, command):
    code, _, err = command("segment", *ihc.words, *SEGMENT, "--model", "vit_x")
    assert code == 5
    said = " ".join(err.split())
    assert "vit_x: it is neither a model's name nor a file" in said
    assert "bundled, vit_b_histopathology, vit_l_histopathology, vit_h_histopathology" in said


def test_a_model_that_only_answers_prompts_is_refused_before_its_download(server):
    with pytest.raises(ModelError, match="only answers prompts"):
        load_model("vit_t", device="cpu")
    assert server.requests == []


@pytest.mark.parametrize("name", ["text.pt", "text.pth", "text"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name):
    (tmp_path / name).write_text("not weights")
    with pytest.raises(ModelError, match=f"{name}: expected a PyTorch checkpoint"):
        load_model(tmp_path / name, device="cpu")


def test_a_decoder_alone_is_refused():
    with pytest.raises(ModelError, match="expected SAM's weights, found a decoder alone"):
        load_model(GOLDEN / "tiny_semantic_decoder.pt", device="cpu")


def test_offline_names_the_way_to_import(ihc, command, published, monkeypatch):
    monkeypatch.setenv("PATHOSAM_OFFLINE", "1")
    before = qpdata_hash(ihc.data)
    code, _, err = command("segment", *ihc.words, *SEGMENT, "--model", "vit_b_histopathology")
    assert code == 5
    assert "models import FILE --as vit_b_histopathology" in " ".join(err.split())
    assert published.requests == []
    assert qpdata_hash(ihc.data) == before


def test_list_and_info_say_what_there_is(command, published):
    code, out, _ = command("models", "list")
    assert code == 0
    assert all(name in out for name in ("bundled", *MODELS))
    models = {m["name"]: m for m in json.loads(command("models", "list", "--json")[1])}
    assert models["bundled"]["cached"] == "yes"
    assert models["bundled"]["parameters"] == 5.9
    info = load_model(device="cpu").info
    assert models["bundled"]["mpp"] == info.mpp
    assert models["bundled"]["classes"] == list(info.classes)
    assert models["vit_b_histopathology"]["cached"] == "no"
    assert models["vit_b_histopathology"]["classes"] == list(CLASSES)
    assert models["vit_l_histopathology"]["classes"] == []
    assert not models["vit_t"]["segments"]
    assert all(m["licence"] and m["source"] for m in models.values())

    code, out, _ = command("models", "info", "vit_b_histopathology")
    assert code == 0
    said = "".join(out.split())
    assert "MIT" in said
    assert str(published.server_port) in said
    assert command("models", "info", "vit_x")[0] == 2
    assert published.requests == []


def test_download_verify_and_repair(command, published):
    assert command("models", "verify", "vit_b_histopathology")[0] == 5
    code, out, _ = command("models", "download", "vit_b_histopathology", "--json")
    assert code == 0
    assert json.loads(out)["cached"] == "yes"
    assert sorted(p.name for p in cache_directory().iterdir()) == sorted(FILES)
    assert command("models", "verify", "vit_b_histopathology")[0] == 0

    damaged = cache_directory() / "vit_b_histopathology_decoder"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, out, _ = command("models", "verify", "--json")
    assert code == 5
    states = {c["file"]: c["state"] for c in json.loads(out)}
    assert states.pop("vit_b_histopathology_decoder") == "damaged"
    assert set(states.values()) == {"intact"}
    assert len(states) == 3
    said = " ".join(command("models", "verify")[1].split())
    assert "models download vit_b_histopathology" in said
    assert command("models", "download", "vit_b_histopathology")[0] == 0
    assert command("models", "verify")[0] == 0
    assert len(published.requests) == 4


def test_a_failed_download_has_the_models_exit_code(command, published):
    published.limit = 1000
    code, out, _ = command("models", "download", "vit_b_histopathology", "--json")
    assert code == json.loads(out)["error"]["exit_code"] == 5
    assert "Try again" in json.loads(out)["error"]["remedy"]
    assert command("models", "download", "bundled")[0] == 2


def test_import_takes_the_published_file_and_no_other(command, published):
    wanted = "vit_b_histopathology_semantic_segmentation_decoder"
    source = GOLDEN / FILES[wanted]
    code, out, _ = command("models", "import", source, "--as", wanted, "--json")
    assert code == 0
    assert Path(json.loads(out)["path"]).read_bytes() == source.read_bytes()
    assert json.loads(command("models", "info", "vit_b_histopathology", "--json")[1])["cached"] == (
        "in part"
    )
    code, _, err = command("models", "import", source, "--as", "vit_b_histopathology_decoder")
    assert code == 5
    assert "expected vit_b_histopathology_decoder with xxh128" in " ".join(err.split())
    assert command("models", "import", source, "--as", "vit_x")[0] == 2
    assert command("models", "import", source.parent / "none", "--as", wanted)[0] == 5


def test_the_doctor_says_which_models_are_there_and_downloads_none(command, published):
    assert "not downloaded: vit_b_histopathology, vit_l" in check_published_models().found
    check = check_model("vit_b_histopathology")
    assert check.status == "fail"
    assert "models download vit_b_histopathology" in check.remedy
    assert published.requests == []
    assert command("models", "download", "vit_b_histopathology")[0] == 0
    assert "there: vit_b_histopathology; not" in check_published_models().found
    check = check_model("vit_b_histopathology")
    assert check.status == "ok"
    assert "Neoplastic" in check.found
