"""How long ``data.qpdata`` files of many detections take without Java, and how much memory.

    python benchmarks/qpdata.py [--detections 50000 1000000]

Each figure comes from a process of its own, so that its peak memory is its own. Making
the detections and importing the libraries are not timed. "before" is the peak before the
step: the libraries, and for the first step the detections.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    import geopandas as gpd

STEPS = {
    "write": "add detections to a new file, write it",
    "detections": "read the file, all detections as a frame",
    "objects": "read the file, all objects one by one",
    "rewrite": "read, remove every second detection, write",
}


def detections(count: int, vertices: int = 20) -> gpd.GeoDataFrame:
    """Round polygons with a class and two measurements."""
    import geopandas as gpd
    import numpy as np
    import shapely

    random = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    circle = 8 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    centres = random.uniform(100, 100_000, (count, 1, 2))
    xy = (centres + circle).astype(np.float32).astype(float)
    ids = random.integers(0, 256, (count, 16), dtype=np.uint8)
    return gpd.GeoDataFrame(
        {
            "id": [str(UUID(bytes=i.tobytes(), version=4)) for i in ids],
            "classification": "Tumor",
            "probability": random.random(count),
            "run": "20260101-000000-abcd",
            "Area µm^2": random.random(count),
            "Length µm": random.random(count),
        },
        geometry=shapely.polygons(xy),
    )


def measure(step: str, count: int, path: Path) -> dict[str, float]:
    """Run one step and say what it took."""
    begin = time.perf_counter()
    import geopandas  # noqa: F401  (imported where it is used, so timed here)

    from pathosam_qupath.qupath.qpdata import QpData

    start = time.perf_counter() - begin
    frame = detections(count) if step == "write" else None
    before = peak_memory()
    begin, busy = time.perf_counter(), time.process_time()
    if frame is not None:
        data = QpData.new({}, identifier="benchmark")
        data.add_detections(frame, {"Tumor": (200, 0, 0)})
        with path.open("wb") as file:
            data.write(file)
    elif step == "detections":
        assert len(QpData.read(path).detections()) == count
    elif step == "objects":
        assert len(QpData.read(path).objects()) == count
    else:
        data = QpData.read(path)
        ids = data.detections()["id"][::2]
        assert data.remove({UUID(i) for i in ids}) == len(ids)
        with path.with_suffix(".half").open("wb") as file:
            data.write(file)
    return {
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time() - busy,
        "start": start,
        "peak": peak_memory(),
        "before": before,
    }


def peak_memory() -> float:
    """The process's peak resident memory in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detections", type=int, nargs="+", default=[50_000, 1_000_000])
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure(options.step, options.detections[0], options.path)))
        return
    heads = f"{'s':>8}{'CPU s':>8}{'per s':>12}{'peak GB':>9}{'before':>8}"
    print(f"{'detections':>10}  {'step':<44}{heads}")
    for count in options.detections:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.qpdata"
            for step, text in STEPS.items():
                command = [sys.executable, __file__, "--step", step, "--path", str(path)]
                run = subprocess.run(
                    [*command, "--detections", str(count)], stdout=subprocess.PIPE, check=True
                )
                figures = json.loads(run.stdout)
                rate = f"{count / figures['seconds']:,.0f}"
                print(
                    f"{count:>10,}  {text:<44}{figures['seconds']:>8.2f}"
                    f"{figures['cpu']:>8.2f}{rate:>12}"
                    f"{figures['peak']:>9.2f}{figures['before']:>8.2f}"
                )
            print(f"{'':>10}  the file has {path.stat().st_size / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()
