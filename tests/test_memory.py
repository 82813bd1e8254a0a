"""What a phase has freed is the system's again."""

import platform
from pathlib import Path

import numpy as np
import pytest

from pathosam_qupath.memory import give_back_memory


def resident():
    """Megabytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back by themselves")
def test_what_lies_below_a_piece_in_use_is_given_back():
    pieces = [np.ones(60_000, np.uint8) for _ in range(2000)]
    pieces = pieces[-1:]  # it keeps the heap from shrinking by itself
    before = resident()
    give_back_memory()
    assert resident() < before - 80
    assert pieces[0].all()
