"""Runs over a project whose blocks are computed by a real cluster of two processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cheap_model import CheapLoader, CheapModel, treat
from geopandas.testing import assert_geodataframe_equal
from ihc_project import SEGMENT, IhcProject

from pathosam_qupath import batch
from pathosam_qupath.batch import run
from pathosam_qupath.dask_cluster import connected
from pathosam_qupath.dask_workers import DaskWorkers
from pathosam_qupath.run_plan import RunOptions, plan_run
from pathosam_qupath.run_record import open_run

pytest.importorskip("distributed", reason="needs Dask; install the extra `dask`")

SCRIPT = Path(__file__).parent / "dask_run.py"


@pytest.fixture(scope="module")
def client():
    with connected("local", 2, "cpu") as client:
        yield client


@pytest.fixture
def workers(client):
    with DaskWorkers(client, CheapLoader(), CheapModel().info) as found:
        yield found


@pytest.fixture
def again(tmp_path, monkeypatch):
    """What an undisturbed run of the same id, in one process, writes into a fresh copy."""

    def undisturbed(run_id):
        monkeypatch.setattr(batch, "new_run_id", lambda folder: run_id)
        ihc = IhcProject(tmp_path / "undisturbed")
        treat(ihc.path, ihc.moved)
        monkeypatch.undo()
        return ihc.detections()

    return undisturbed


class StopAfter:
    """Ask a run to stop after some questions."""

    def __init__(self, blocks):
        self.left = blocks

    def __call__(self):
        self.left -= 1
        return self.left < 0


def test_a_run_with_workers_writes_what_one_process_writes_ids_included(ihc, again, workers):
    record = treat(ihc.path, ihc.moved, workers=workers)
    assert record.manifest.entries[0].state == "written"
    assert record.manifest.finished is not None
    assert_geodataframe_equal(ihc.detections(), again(record.manifest.run))
    assert not record.blocks_path("1").exists()


def test_a_run_goes_on_with_workers_and_without(ihc, again, client, workers):
    record = treat(ihc.path, ihc.moved, stop=StopAfter(5))
    with DaskWorkers(client, CheapLoader(0.1), CheapModel().info) as slow:
        second = treat(ihc.path, ihc.moved, stop=StopAfter(2), resume="auto", workers=slow)
    assert second.manifest.run == record.manifest.run
    assert second.manifest.finished is None
    message = second.manifest.entries[0].message
    assert message.startswith("stopped; ")
    assert int(message.split()[1]) > 5
    third = treat(ihc.path, ihc.moved, resume="auto", workers=workers)
    assert third.manifest.run == record.manifest.run
    assert third.manifest.finished is not None
    assert_geodataframe_equal(ihc.detections(), again(record.manifest.run))


def test_images_that_fail_do_not_stop_the_others(ihc, workers):
    """The others of the project are missing or fluorescence."""
    options = RunOptions(mpp=0.6)
    with ihc.open() as project:
        plans = plan_run(project, options)
        record = run(project, CheapModel(), options, plans, workers=workers)
    states = [entry.state for entry in record.manifest.entries]
    assert states[0] == "written"
    assert set(states[1:]) == {"failed"}
    assert record.manifest.finished is not None


def started(ihc):
    """The script over a project, its workers' process ids, once blocks are in the ledger."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(ihc.path), ihc.moved],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    begun = time.monotonic()
    while not (ledger := next((ihc.path / "pathosam").rglob("blocks"), None)) or (
        ledger.stat().st_size < 6000
    ):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - begun < 240
        time.sleep(0.02)
    assert len(workers) == 2
    return process, workers


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_the_run_goes_on_from_its_blocks_and_leaves_no_worker(ihc, again):
    process, workers = started(ihc)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=240)
    psutil.wait_procs(workers, timeout=240)
    assert not any(worker.is_running() for worker in workers)
    seen = []
    record = treat(ihc.path, ihc.moved, resume="last", report=seen.append)
    assert next(p for p in seen if p.tiles_total).fraction > 0.05
    assert_geodataframe_equal(ihc.detections(), again(record.manifest.run))


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_lets_workers_finish_their_blocks_and_end(ihc, again):
    process, workers = started(ihc)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to workers too
    said, complaints = process.communicate(timeout=240)
    assert said.split() == ["stopping", "ended"], complaints
    assert "Traceback" not in complaints
    psutil.wait_procs(workers, timeout=240)
    assert not any(worker.is_running() for worker in workers)
    record = open_run(ihc.path, "last")
    assert record.manifest.finished is None
    assert record.manifest.entries[0].message.startswith("stopped; ")
    record = treat(ihc.path, ihc.moved, resume="last")
    assert_geodataframe_equal(ihc.detections(), again(record.manifest.run))


def test_the_command_starts_workers_with_the_bundled_model(ihc, command, tmp_path):
    """In two copies, by this process and by two of its own; in processes as users have them."""
    other = IhcProject(tmp_path / "other")
    code, _, said = command("segment", *other.words, *SEGMENT)
    assert code == 0, said
    words = ["segment", *ihc.words, *SEGMENT, "--scheduler", "local", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pathosam_qupath", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    one, two = (i.detections().drop(columns=["id", "run"]) for i in (ihc, other))
    assert len(one) > 5
    assert_geodataframe_equal(one, two)


def test_without_dask_the_error_names_the_extra(ihc, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, _, said = command("segment", *ihc.words, *SEGMENT, "--scheduler", "local")
    assert code == 2
    assert "pathosam-qupath[dask]" in said


def test_no_worker_at_all_is_refused(ihc, command):
    code, _, said = command("segment", *ihc.words, *SEGMENT, "--workers", "0")
    assert code == 2
    assert "--workers 0" in said
