"""Workers keep memory that a network frees, though Dask tells their C library not to."""

import os
import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys
import numpy as np
from pathosam_qupath.dask_tasks import _keep_freed_memory
if sys.argv[1] == "keep":
    _keep_freed_memory()
np.ones(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_worker_does_not_get_the_same_pages_again_and_again():
    def pages(how):
        told = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(
            [sys.executable, "-c", PAGES, how], capture_output=True, text=True, env=told, check=True
        )
        return int(done.stdout)

    assert pages("keep") < pages("leave") / 5
