"""What the C library does with freed memory, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def printed(code, *words, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


PAGES = """
import resource, sys
import numpy as np
from pathosam_qupath.c_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_worker_does_not_get_the_same_pages_again_and_again():
    # Dask sets this for its workers.
    (kept,) = printed(PAGES, "keep", MALLOC_TRIM_THRESHOLD_="65536")
    (left,) = printed(PAGES, "leave", MALLOC_TRIM_THRESHOLD_="65536")
    assert kept < left / 5


# Rows of 64 kB come from the heap, and the one that stays keeps it from shrinking by itself.
FREED = """
import psutil
import numpy as np
from pathosam_qupath.c_memory import give_back_freed_memory
rows = [np.ones(1 << 13) for _ in range(3000)]
rows = rows[-1:]
held = psutil.Process().memory_info().rss / 2**20
give_back_freed_memory()
print(held, psutil.Process().memory_info().rss / 2**20)
"""


def test_freed_memory_is_given_back():
    held, left = printed(FREED)
    assert held - left > 100


AGAIN = """
import time
import psutil
import numpy as np
from pathosam_qupath.c_memory import FreedMemory

def left():
    rows = [np.ones(1 << 13) for _ in range(3000)]
    last = rows[-1]
    del rows
    freed.give_back()
    return psutil.Process().memory_info().rss / 2**20, last

freed = FreedMemory(0.5)
soon, kept = left()
time.sleep(0.6)
later, more = left()
print(soon, later)
"""


def test_it_is_given_back_now_and_then_only():
    soon, later = printed(AGAIN)
    assert soon - later > 100


# Twenty threads at once, each of which frees 16 MB of rows but for its last.
THREADS = """
import sys, threading
import numpy as np, psutil
from pathosam_qupath.c_memory import share_freed_memory
if sys.argv[1] == "share":
    share_freed_memory()
kept, turn = [], threading.Lock()
began = threading.Barrier(20)

def work():
    began.wait()
    np.ones(1 << 13)
    with turn:
        kept.append([np.ones(1 << 13) for _ in range(256)][-1])

threads = [threading.Thread(target=work) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(psutil.Process().memory_info().rss / 2**20)
"""


def test_threads_use_what_others_freed():
    (shared,) = printed(THREADS, "share")
    (apart,) = printed(THREADS, "apart")
    assert apart - shared > 50
