"""Downloads from a server that behaves, breaks off, and lies."""

from dataclasses import replace

import pytest
from download_server import CONTENT

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model import registry
from pathosam_qupath.model.registry import (
    MODELS,
    PublishedFile,
    cache_directory,
    fetch,
    file_hash,
    find_model,
    import_file,
    status,
    verify,
)


@pytest.fixture
def file(server, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    return PublishedFile("weights", server.url, file_hash(source))


def test_download_reports_its_progress_and_is_kept(server, file):
    seen = []
    path = fetch(file, progress=lambda *report: seen.append(report))
    assert path == cache_directory() / "weights"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("weights", len(CONTENT), len(CONTENT))
    assert fetch(file) == path
    assert len(server.requests) == 1
    assert status(file).intact


def test_a_download_that_broke_off_goes_on_where_it_stopped(server, file):
    server.limit = 3_000_000
    with pytest.raises(ModelError, match="what has arrived is kept"):
        fetch(file)
    assert not status(file).present
    server.limit = None
    assert fetch(file).read_bytes() == CONTENT
    assert server.requests[0] is None
    assert server.requests[1].startswith("bytes=")
    assert [entry.name for entry in cache_directory().iterdir()] == ["weights"]


def test_a_server_without_ranges_starts_again(server, file):
    server.limit = 3_000_000
    with pytest.raises(ModelError):
        fetch(file)
    server.limit, server.ranges = None, False
    assert fetch(file).read_bytes() == CONTENT


def test_a_part_that_does_not_fit_is_thrown_away(server, file):
    cache_directory().mkdir(parents=True)
    (cache_directory() / "weights.part").write_bytes(CONTENT + b"more")
    with pytest.raises(ModelError, match="did not fit"):
        fetch(file)
    assert fetch(file).read_bytes() == CONTENT


def test_another_file_than_published_is_refused(server, file):
    server.content = b"something else"
    with pytest.raises(ModelError, match="expected weights with xxh128:"):
        fetch(file)
    assert not status(file).present


def test_a_damaged_file_is_replaced(server, file):
    path = fetch(file)
    path.write_bytes(CONTENT[:-1])
    assert not status(file).intact
    with pytest.raises(ModelError, match="found xxh128:"):
        verify(path, file)
    assert fetch(file).read_bytes() == CONTENT


def test_offline_uses_what_is_there_and_says_what_is_missing(server, file, monkeypatch):
    monkeypatch.setenv("PATHOSAM_OFFLINE", "1")
    with pytest.raises(ModelError, match="is not there, and downloads are switched off"):
        fetch(file)
    assert server.requests == []
    path = fetch(file, offline=False)
    assert fetch(file) == path


def test_a_server_that_is_gone(file, server):
    gone = replace(file, url="http://127.0.0.1:9/download")
    with pytest.raises(ModelError, match="the download of weights failed"):
        fetch(gone)


def test_sha256_is_checked_too(server, file, tmp_path):
    sha256 = replace(file, hash=file_hash(tmp_path / "source", "sha256"))
    assert fetch(sha256).read_bytes() == CONTENT


def test_import_takes_only_the_published_file(server, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.write_bytes(b"other")
    with pytest.raises(ModelError, match="expected vit_b_histopathology_decoder with xxh128:6a66"):
        import_file(other, "vit_b_histopathology_decoder")
    with pytest.raises(UsageError, match="expected one of vit_b_histopathology,"):
        import_file(other, "vit_x")
    model = MODELS["vit_b_histopathology"]
    known = replace(model, decoder=replace(model.decoder, hash=file_hash(other)))
    monkeypatch.setitem(registry.MODELS, model.name, known)
    path = import_file(other, "vit_b_histopathology_decoder")
    assert path.read_bytes() == b"other"
    assert path.parent == cache_directory()


def test_registry_names_what_is_published():
    assert find_model("vit_b_histopathology").semantic is not None
    assert find_model("vit_l_histopathology").semantic is None
    assert len({f.url for m in MODELS.values() for f in m.files}) == 8
    with pytest.raises(UsageError, match="expected one of"):
        find_model("vit_x")
