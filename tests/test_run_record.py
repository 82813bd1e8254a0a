"""The record of a run: complete, found again, and safe from odd names and torn files."""

import json
import re

import geopandas as gpd
import pytest
import shapely

from pathosam_qupath.errors import RunError
from pathosam_qupath.run_record import (
    EntryRecord,
    RunManifest,
    create_run,
    file_hash,
    new_run_id,
    open_run,
    run_ids,
    runs_folder,
    utc_now,
)


def manifest(run="20260102-030405-abcd", entries=("1", "2")):
    return RunManifest(
        run=run,
        created=utc_now(),
        project="somewhere/project.qpproj",
        backend="embedded",
        model={"name": "compact", "weights_hash": "00ff", "mpp": 0.4},
        options={"policy": "replace"},
        versions={"Python": "3.11.2", "QuPath": None},
        entries=tuple(EntryRecord(i, f"image {i}") for i in entries),
    )


def nuclei():
    return gpd.GeoDataFrame(
        {"id": ["a", "b"], "classification": ["Tumor", None], "color": [None, (1, 2, 3)]},
        geometry=[shapely.box(0, 0, 1, 1), shapely.Point(3, 3).buffer(1)],
    )


def test_a_run_comes_back_as_it_was_saved(tmp_path):
    record = create_run(tmp_path, manifest())
    record.add_class_colors({"Tumor": (200, 0, 0)})
    record.update(EntryRecord("2", "image 2", state="written", nuclei=7, hash_after="ab"))
    record.finish()
    again = open_run(tmp_path, "20260102-030405-abcd").manifest
    assert again == record.manifest
    assert again.finished is not None
    assert [e.state for e in again.entries] == ["planned", "written"]
    assert again.class_colors == {"Tumor": (200, 0, 0)}


def test_predictions_come_back_with_their_geometry(tmp_path):
    record = create_run(tmp_path, manifest())
    record.save_predictions("1", nuclei())
    again = record.load_predictions("1")
    assert again["id"].tolist() == ["a", "b"]
    assert again.geometry.geom_equals(nuclei().geometry).all()
    assert again["color"].fillna("").tolist() == ["", "#010203"]
    assert record.load_predictions("2") is None


def test_damaged_predictions_are_an_error_with_a_remedy(tmp_path):
    record = create_run(tmp_path, manifest())
    path = record.save_predictions("1", nuclei())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="cannot be read"):
        record.load_predictions("1")


def test_the_files_as_they_were_are_kept_with_their_hash(tmp_path):
    record = create_run(tmp_path, manifest())
    data = tmp_path / "data.qpdata"
    assert record.save_before("1", data) is None
    data.write_bytes(b"hours of work")
    (tmp_path / "data.qpdata.bkp").write_bytes(b"older work")
    assert record.save_before("1", data) == file_hash(data)
    assert record.before_path("1").read_bytes() == b"hours of work"
    assert (record.entry_folder("1") / "before.qpdata.bkp").read_bytes() == b"older work"


@pytest.mark.parametrize("entry", ["../../../etc", "a/b", "..", "ü 1", "C:\\x"])
def test_entry_ids_cannot_leave_the_run_folder(tmp_path, entry):
    record = create_run(tmp_path, manifest(entries=(entry,)))
    path = record.save_predictions(entry, nuclei())
    assert path.parent.parent.resolve() == record.folder.resolve()
    assert record.load_predictions(entry) is not None


def test_runs_are_found_by_id_by_beginning_and_as_the_last(tmp_path):
    assert run_ids(tmp_path) == []
    for run in ("20260102-030405-abcd", "20260102-030406-0001", "20251231-235959-ffff"):
        create_run(tmp_path, manifest(run))
    (runs_folder(tmp_path) / "notes").mkdir()
    assert run_ids(tmp_path) == sorted(run_ids(tmp_path))
    assert len(run_ids(tmp_path)) == 3
    assert open_run(tmp_path, "2025").manifest.run == "20251231-235959-ffff"
    assert open_run(tmp_path, "last").manifest.run == "20260102-030406-0001"
    with pytest.raises(RunError, match="several runs"):
        open_run(tmp_path, "20260102")
    for unknown in ("1999", "", "../.."):
        with pytest.raises(RunError):
            open_run(tmp_path, unknown)


def test_run_ids_have_the_agreed_form_and_sort_by_age(tmp_path):
    ids = []
    for _ in range(3):
        ids.append(new_run_id(tmp_path))
        create_run(tmp_path, manifest(ids[-1]))
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run) for run in ids)


def test_a_torn_or_foreign_manifest_is_an_error_with_a_remedy(tmp_path):
    record = create_run(tmp_path, manifest())
    path = record.folder / "manifest.json"
    stored = json.loads(path.read_text())
    for text in ("", "{", json.dumps({**stored, "format": 99}), json.dumps({"format": 1})):
        path.write_text(text)
        with pytest.raises(RunError, match="cannot be read"):
            open_run(tmp_path, record.manifest.run)


def test_a_project_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "pathosam").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="cannot be written"):
        create_run(tmp_path, manifest())
