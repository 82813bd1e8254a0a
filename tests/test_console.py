"""Progress in a log: plain lines at intervals, with what is done and how long is left."""

import re

import pytest

from pathosam_qupath import console
from pathosam_qupath.batch import RunProgress
from pathosam_qupath.run_record import EntryRecord


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def tile(number, of=200, left=None):
    return RunProgress(1, 2, "a [1].svs", number / of / 2, number, of, 30 * number, left)


def test_a_log_gets_a_line_at_each_interval_with_the_time_left(clock, capsys):
    with console.run_progress() as report:
        report(tile(0))
        for number in range(1, 121):
            clock[0] += 1
            report(tile(number, left=4000.0 - number))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + 120 / console._LOG_EVERY
    assert lines[0] == "0.0 % · image 1/2 a [1].svs · tile 0/200 · 0 nuclei"
    assert lines[-1] == "30.0 % · image 1/2 a [1].svs · tile 120/200 · 3,600 nuclei · 65 min left"
    shares = [float(line.split(" ")[0]) for line in lines]
    assert shares == sorted(shares)
    assert not re.search(r"[\x1b\r]", "".join(lines))


def test_planning_hundreds_of_images_is_told_in_a_log_too(clock, capsys):
    with console.planning_progress() as looking:
        for number in range(1, 101):
            looking(number, 100, f"a [{number}].svs")
            clock[0] += 1
    assert capsys.readouterr().err.splitlines() == [
        f"planning: image {number}/100 a [{number}].svs" for number in (31, 61, 91)
    ]


def test_a_finished_image_and_a_note_are_told_at_once(clock, capsys):
    with console.run_progress() as report:
        report(tile(0))
        clock[0] += 1
        report(RunProgress(1, 2, "a.svs", 0.0, note="Run x is gone on with."))
        done = EntryRecord("1", "a.svs", state="written", nuclei=12345, seconds=61.0)
        report(RunProgress(1, 2, "a.svs", 0.5, finished=done))
        failed = EntryRecord("2", "b.svs", state="failed", message="the file is cut off")
        report(RunProgress(2, 2, "b.svs", 1.0, finished=failed))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        "Run x is gone on with.",
        "[1/2] a.svs: 12,345 nuclei in 61.0 s",
        "[2/2] b.svs: failed in 0.0 s (the file is cut off)",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (89, "89 s"), (700, "12 min"), (12000, "3 h 20 min")]
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert console.duration_text(seconds) == text
