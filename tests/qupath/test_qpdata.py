"""Whole ``data.qpdata`` files: read as QuPath reads them, written as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from judge import assert_frame_equal, assert_objects_equal, judged_entries

from pathosam_qupath.qupath.qpdata import QpData

ENTRIES = judged_entries()
each_entry = pytest.mark.parametrize(
    ("path", "judged"), [(p, j) for _, p, j in ENTRIES], ids=[name for name, _, _ in ENTRIES]
)


@each_entry
def test_unchanged_data_are_written_byte_for_byte(path: Path, judged: dict[str, Any]) -> None:
    assert QpData.read(path).to_bytes() == path.read_bytes()


@each_entry
def test_objects_equal_what_qupath_reads(path: Path, judged: dict[str, Any]) -> None:
    assert_objects_equal(QpData.read(path).objects(), judged["objects"])


@each_entry
def test_detections_equal_what_qupath_reads(path: Path, judged: dict[str, Any]) -> None:
    assert_frame_equal(QpData.read(path).detections(), judged["objects"])
