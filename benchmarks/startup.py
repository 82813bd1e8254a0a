"""How soon the command line answers: ``--help`` against Python's own start.

    python benchmarks/startup.py [--repeats 9]

Each command runs in a process of its own; the figure is the median, in seconds, with the
processor time in brackets. The promise is that ``--help`` answers in under half a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median

PROMISE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    bare = measured(["-c", "pass"], repeats)
    print(f"python -c pass           {bare[0]:.3f} s ({bare[1]:.3f})")
    for words in (["--help"], ["segment", "--help"]):
        wall, busy = measured(["-m", "pathosam_qupath", *words], repeats)
        verdict = "" if wall < PROMISE else f"  over the promised {PROMISE} s"
        name = " ".join(["pathosam-qupath", *words])
        print(f"{name:24} {wall:.3f} s ({busy:.3f}), {wall / bare[0]:.1f} × bare{verdict}")


def measured(words: list[str], repeats: int) -> tuple[float, float]:
    """Median wall and processor seconds of a Python command."""
    walls, busy = [], []
    for _ in range(repeats):
        before, start = os.times(), time.perf_counter()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
        walls.append(time.perf_counter() - start)
        after = os.times()
        busy.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    return median(walls), median(busy)


if __name__ == "__main__":
    main()
