"""A run that was stopped or killed goes on where it was, to the same end."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import shapely
from cheap_model import CheapModel, treat
from geopandas.testing import assert_geodataframe_equal
from ihc_project import IhcProject

from pathosam_qupath import batch
from pathosam_qupath.errors import RunError
from pathosam_qupath.estimates import earlier_rate
from pathosam_qupath.qupath.jvm import find_installation
from pathosam_qupath.rollback import roll_back
from pathosam_qupath.run_lock import locked
from pathosam_qupath.run_record import file_hash, open_run, run_ids

SCRIPT = Path(__file__).parent / "cheap_model.py"


class StopAfter:
    """Ask a run to stop after some blocks."""

    def __init__(self, blocks):
        self.left = blocks

    def __call__(self):
        self.left -= 1
        return self.left < 0


@pytest.fixture
def again(tmp_path, monkeypatch):
    """What an undisturbed run of the same id writes into a fresh copy of the project."""

    def undisturbed(run_id):
        monkeypatch.setattr(batch, "new_run_id", lambda folder: run_id)
        ihc = IhcProject(tmp_path / "undisturbed")
        treat(ihc.path, ihc.moved)
        monkeypatch.undo()
        return ihc

    return undisturbed


def test_a_stopped_run_goes_on_with_the_blocks_that_are_left(ihc, again):
    model = CheapModel()
    before = file_hash(ihc.data)
    record = treat(ihc.path, ihc.moved, model=model, stop=StopAfter(20))
    [entry] = record.manifest.entries
    assert record.manifest.finished is None
    assert entry.state == "planned"
    assert entry.message.startswith("stopped; 20 of ")
    assert file_hash(ihc.data) == before
    first = sum(model.tiles)
    finished = treat(ihc.path, ihc.moved, model=model, resume="auto")
    assert run_ids(ihc.path) == [record.manifest.run]
    assert finished.manifest.finished is not None
    assert finished.manifest.entries[0].state == "written"
    assert finished.manifest.entries[0].message is None or "stopped" not in (
        finished.manifest.entries[0].message
    )
    other = again(record.manifest.run)
    assert_geodataframe_equal(ihc.detections(), other.detections())
    whole = CheapModel()
    treat(ihc.path, ihc.moved, model=whole)
    assert sum(model.tiles) - first < sum(whole.tiles)
    assert not finished.blocks_path("1").exists()


def test_progress_of_a_resumed_run_starts_where_it_was(ihc):
    treat(ihc.path, ihc.moved, stop=StopAfter(6))
    seen = []
    treat(ihc.path, ihc.moved, resume="auto", report=seen.append)
    counted = [p for p in seen if p.tiles_total]
    assert counted[0].fraction > 0.2
    fractions = [p.fraction for p in counted]
    assert fractions == sorted(fractions)
    assert counted[-2].seconds_left < 5


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_at_any_moment_and_taken_up_gives_what_an_undisturbed_run_gives(ihc, again):
    rng = random.Random(3)
    process = None
    for _ in range(3):
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(ihc.path), ihc.moved])
        ledger = None
        while process.poll() is None and ledger is None:
            ledger = next((ihc.path / "pathosam").rglob("blocks"), None)
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    record = treat(ihc.path, ihc.moved, resume="auto")
    assert record.manifest.run == run_ids(ihc.path)[-1]
    other = again(record.manifest.run)
    assert_geodataframe_equal(ihc.detections(), other.detections())
    with ihc.open() as project:
        roll_back(project, "last")
    assert len(ihc.detections()) == 0


@pytest.mark.qupath
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_run_of_qupaths_own_code_goes_on_to_what_the_embedded_writer_gives(ihc, again):
    if find_installation() is None:
        pytest.skip("no QuPath found; install QuPath 0.5 or newer and set PAQUO_QUPATH_DIR")
    run_id = "20260101-000000-aaaa"
    command = [sys.executable, str(SCRIPT), str(ihc.path), ihc.moved, run_id, "paquo"]
    before = ihc.data.read_bytes()
    for pattern in ("blocks", "predictions.parquet"):
        process = subprocess.Popen(command)
        while process.poll() is None and not list((ihc.path / "pathosam").rglob(pattern)):
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert process.returncode == -signal.SIGKILL, "the run had ended before the kill"
        if pattern == "blocks":
            assert ihc.data.read_bytes() == before
    assert subprocess.run(command, check=False, timeout=200).returncode == 0
    assert run_ids(ihc.path) == [run_id]
    record = open_run(ihc.path, run_id)
    assert (record.manifest.backend, record.manifest.entries[0].state) == ("paquo", "written")
    expected, found = again(run_id).detections(), ihc.detections()
    assert found["id"].tolist() == expected["id"].tolist()
    assert_geodataframe_equal(found, expected)


@pytest.mark.parametrize("written", [False, True])
def test_a_kill_around_the_write_neither_doubles_nor_loses_a_nucleus(ihc, written):
    """The record says "predicted"; whether the file was replaced only the file can tell."""
    before = ihc.data.read_bytes()
    record = treat(ihc.path, ihc.moved)
    done = record.manifest.entries[0]
    frame = ihc.detections()
    if not written:
        ihc.data.write_bytes(before)
    record.update(replace(done, state="predicted", hash_after=None))
    record.begin_again()
    after = treat(ihc.path, ihc.moved, resume="auto").manifest.entries[0]
    assert after.state == "written"
    assert_geodataframe_equal(ihc.detections(), frame)
    with ihc.open() as project:
        [undone] = roll_back(project, "last")
    assert undone.action == "restored"
    assert ihc.data.read_bytes() == before


@pytest.mark.parametrize(("what", "now"), [("weights_hash", "1"), ("precision", "bfloat16")])
def test_something_else_is_not_taken_up_and_the_difference_is_told(ihc, what, now):
    first = treat(ihc.path, ihc.moved, stop=StopAfter(2)).manifest.run
    other = CheapModel(**{what: now})
    difference = f"{what}: {getattr(CheapModel(), what)} then, {now} now"
    seen = []
    second = treat(ihc.path, ihc.moved, model=other, resume="auto", report=seen.append)
    assert second.manifest.run != first
    [note] = [p.note for p in seen if p.note]
    assert f"model {difference}" in note
    with pytest.raises(RunError, match=difference):
        treat(ihc.path, ihc.moved, model=other, resume=first)
    assert open_run(ihc.path, first).manifest.finished is None


def test_an_image_whose_annotations_changed_is_done_from_the_start(ihc):
    from pathosam_qupath.qupath.project import HierarchyChange

    treat(ihc.path, ihc.moved, stop=StopAfter(3))
    line = next(o for o in ihc.objects() if o.name == "whole image")
    ihc.change(HierarchyChange(remove=frozenset([line.id])))
    seen = []
    treat(ihc.path, ihc.moved, resume="auto", report=seen.append)
    assert any("done from the start: annotations:" in p.note for p in seen if p.note)
    nuclei = ihc.detections()
    areas = [a.geometry for a in ihc.objects() if a.object_type == "annotation"]
    union = shapely.union_all([shapely.make_valid(a) for a in areas if a.area])
    assert shapely.intersects(union, nuclei.geometry.centroid).all()


def test_failed_images_are_left_or_tried_again(ihc):
    class Failing(CheapModel):
        def predict(self, tiles):
            raise OSError("the card fell off the bus")

    record = treat(ihc.path, ihc.moved, model=Failing())
    assert record.manifest.entries[0].state == "failed"
    again = treat(ihc.path, ihc.moved, resume="last")
    assert again.manifest.entries[0].state == "failed"
    mended = treat(ihc.path, ihc.moved, resume="auto", retry_failed=True)
    assert mended.manifest.run == record.manifest.run
    [entry] = mended.manifest.entries
    assert (entry.state, entry.exit_code) == ("written", 0)
    assert "the card" not in entry.message
    assert len(ihc.detections()) == entry.nuclei > 5


def test_one_process_at_a_time_works_on_a_run(ihc):
    record = treat(ihc.path, ihc.moved, stop=StopAfter(1))
    with locked(record.folder), pytest.raises(RunError, match=f"process {os.getpid()}"):
        treat(ihc.path, ihc.moved, resume="auto")
    assert treat(ihc.path, ihc.moved, resume="auto").manifest.finished is not None


def test_a_damaged_record_of_the_last_run_does_not_stop_a_new_one(ihc):
    first = treat(ihc.path, ihc.moved, stop=StopAfter(1))
    (first.folder / "manifest.json").write_text("{", encoding="utf-8")
    assert earlier_rate(ihc.path, "cheap") is None
    seen = []
    again = treat(ihc.path, ihc.moved, resume="auto", report=seen.append)
    assert again.manifest.finished is not None
    assert any("A new run begins" in p.note for p in seen if p.note)
    with pytest.raises(RunError, match="cannot be read"):
        treat(ihc.path, ihc.moved, resume=first.manifest.run)
