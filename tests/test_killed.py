"""A run that is killed leaves the old file or the new one, and a re-run does it all."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import shapely
from ihc_project import IMAGE, MPP

from pathosam_qupath.run_record import file_hash, open_run, run_ids, runs_folder

COMMAND = [sys.executable, "-m", "pathosam_qupath"]


def started(ihc, *words):
    """Start a new run of `segment` over the tissue image in a process of its own."""
    arguments = ["segment", *ihc.words, "--images", IMAGE, "--mpp", str(MPP), "--device", "cpu"]
    arguments += ["--resume", "no"]
    return subprocess.Popen(
        [*COMMAND, *arguments, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def drawn(frame):
    return sorted(
        zip(shapely.to_wkb(frame.geometry), frame["classification"].fillna(""), strict=True)
    )


def until(process, ihc, known, pattern):
    """Wait for a file in the record of a new run, or for the process to end."""
    runs = runs_folder(ihc.path)
    while process.poll() is None:
        new = {path.name for path in runs.glob("*")} - set(known)
        if any(list((runs / run).glob(pattern)) for run in new):
            return
        time.sleep(0.002)


@pytest.fixture
def undisturbed(tmp_path_factory):
    from ihc_project import IhcProject

    ihc = IhcProject(tmp_path_factory.mktemp("undisturbed"))
    process = started(ihc)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return drawn(ihc.detections())


# The record's files mark how far a run has come: the moments just after each of them, and
# some way into the segmentation, are when there is most to lose.
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_at_any_moment_leaves_old_or_new_and_a_rerun_repairs(ihc, undisturbed):
    rng = random.Random(5)
    outcomes = set()
    for pattern in ("manifest.json", "*/predictions.parquet", "*/before.qpdata"):
        known, before = run_ids(ihc.path), file_hash(ihc.data)
        process = started(ihc)
        until(process, ihc, known, pattern)
        time.sleep(rng.uniform(0, 0.1))
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        found = ihc.detections()
        if file_hash(ihc.data) == before:
            outcomes.add("old")
        else:
            outcomes.add("new")
            assert drawn(found) == undisturbed
            assert len(set(found["run"])) == 1
        for run in run_ids(ihc.path):
            assert open_run(ihc.path, run).manifest.run == run
    process = started(ihc)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    found = ihc.detections()
    assert drawn(found) == undisturbed
    assert set(found["run"]) == {run_ids(ihc.path)[-1]}
    assert "old" in outcomes


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_says_so_in_one_sentence_and_leaves_the_file(ihc, number):
    before = file_hash(ihc.data)
    process = started(ihc)
    until(process, ihc, [], "manifest.json")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:  # it had finished before the signal came
        assert len(ihc.detections()) > 0
        return
    assert process.returncode == 130
    assert "Interrupted." in said
    assert "Traceback" not in said
    assert file_hash(ihc.data) == before or len(ihc.detections()) > 0


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_finishes_the_block_at_hand_and_a_second_one_stops_at_once(ihc, undisturbed):
    process = started(ihc)
    until(process, ihc, [], "manifest.json")
    process.send_signal(signal.SIGINT)
    said = ""
    while "Ctrl-C again" not in said and (line := process.stderr.readline()):
        said += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Interrupted." in rest
    assert "Traceback" not in rest
    again = subprocess.run(
        [*process.args[: process.args.index("--resume")], "--resume", "auto"],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert len(run_ids(ihc.path)) == 1
    assert drawn(ihc.detections()) == undisturbed
