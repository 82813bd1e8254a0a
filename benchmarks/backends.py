"""Time and memory of both backends, side by side with paquo's own way.

    python benchmarks/backends.py [--detections 50000 1000000] [--json figures.json]

Detections of 20 vertices, one class, two measurements, in a project with one image.
"write" is the change of an image without data, up to the file in its place; "read" is
all detections as a frame. paquo's own way is ``add_detection`` in a loop and QuPath's
own save (only for the first number). Every figure comes from a process of its own: its
peak memory is that of Python, the frame and the Java machine together. Start-up, of
Java too, and making the polygons are not timed. In brackets: processor time of all
threads, for machines that have other things to do. Without QuPath only the embedded
backend is measured.
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
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

if TYPE_CHECKING:
    import geopandas as gpd

VERTICES = 20
SIDE = 2048


def main() -> None:
    arguments = _arguments()
    if arguments.step:
        figures = measure(arguments.step, arguments.backend, arguments.count, arguments.project)
        print(json.dumps(figures))
        return
    from pathosam_qupath.qupath.jvm import find_installation

    backends = ["embedded"]
    if find_installation() is None:
        print("No QuPath found (PAQUO_QUPATH_DIR): the embedded backend alone.", file=sys.stderr)
    else:
        backends += ["paquo", "add_detection loop"]
    rows = []
    for count in arguments.detections:
        for backend in backends:
            if backend == "add_detection loop" and count != min(arguments.detections):
                continue
            rows.append(_row(backend, count))
            print(f"{rows[-1]}", file=sys.stderr)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| detections | by | write (CPU) | per second | peak | read (CPU) | peak | file |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        write, read = row["write"], row["read"]
        lines.append(
            f"| {row['detections']:,} | {row['backend']} | {_times(write)} "
            f"| {row['detections'] / write['seconds']:,.0f} | {write['peak_mb']:,.0f} MB "
            f"| {_times(read)} | {read['peak_mb']:,.0f} MB | {row['file_mb']:,.0f} MB |"
        )
    return "\n".join(lines)


def _times(figures: dict[str, float]) -> str:
    return f"{figures['seconds']:.2f} s ({figures['cpu_seconds']:.2f})"


def measure(step: str, backend: str, count: int, project: Path) -> dict[str, float]:
    """Run one step in this process and say what it took."""
    if step == "read":
        watch = _read("embedded" if backend == "embedded" else "paquo", count, project)
    elif backend == "add_detection loop":
        watch = _loop(count, project)
    else:
        watch = _write(backend, count, project)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds, "peak_mb": peak / unit}


class Watch:
    """A stop watch for the clock on the wall and for all threads of this process."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def stop(self) -> Watch:
        """Stop, and return itself."""
        self.seconds = time.perf_counter() - self._begin[0]
        self.cpu_seconds = time.process_time() - self._begin[1]
        return self


def _write(backend: str, count: int, project: Path) -> Watch:
    from pathosam_qupath.qupath.project import HierarchyChange, open_project

    frame = detections(count)
    with open_project(project, backend) as opened:
        watch = Watch()
        opened.entries[0].write(HierarchyChange(add=frame))
        return watch.stop()


def _read(backend: str, count: int, project: Path) -> Watch:
    from pathosam_qupath.qupath.project import open_project

    with open_project(project, backend) as opened:
        watch = Watch()
        frame = opened.entries[0].detections()
        watch.stop()
        assert len(frame) == count
        return watch


def _loop(count: int, project: Path) -> Watch:
    from pathosam_qupath.qupath.jvm import start_qupath

    start_qupath()
    from paquo.classes import QuPathPathClass
    from paquo.projects import QuPathProject

    polygons = detections(count).geometry.to_numpy()
    area, length = np.random.default_rng(0).uniform(1, 90, (2, count)).tolist()
    opened = QuPathProject(project, mode="r+")
    entry = opened.images[0]
    tumor = QuPathPathClass("Tumor")
    hierarchy = entry.hierarchy
    watch = Watch()
    for polygon, one, other in zip(polygons, area, length, strict=True):
        measurements = {"Area µm^2": one, "Length µm": other}
        hierarchy.add_detection(polygon, path_class=tumor, measurements=measurements)
    entry.save()
    return watch.stop()


def detections(count: int) -> gpd.GeoDataFrame:
    """Round polygons with one class and two measurements."""
    import geopandas as gpd
    import shapely

    random = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    circle = 8 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    outline = (random.uniform(10, SIDE - 10, (count, 1, 2)) + circle).astype(np.float32)
    ids = random.integers(0, 256, (count, 16), dtype=np.uint8)
    return gpd.GeoDataFrame(
        {
            "id": [str(UUID(bytes=one.tobytes(), version=4)) for one in ids],
            "object_type": "detection",
            "classification": "Tumor",
            "probability": random.uniform(0, 1, count),
            "name": None,
            "color": None,
            "locked": False,
            "parent": None,
            "run": "20260101-000000-abcd",
            "Area µm^2": random.uniform(1, 90, count),
            "Length µm": random.uniform(1, 90, count),
        },
        geometry=shapely.polygons(outline.astype(float)),
    )


def make_project(folder: Path, image: Path | None = None) -> Path:
    """Make a project with one image (None: a plain one) and no data, as QuPath writes it."""
    from PIL import Image

    if image is None:
        image = folder / "image.png"
        Image.fromarray(np.full((SIDE, SIDE, 3), 240, np.uint8)).save(image)
    builder = {
        "builderType": "uri",
        "providerClassName": "qupath.imagej.images.servers.ImageJServerBuilder",
        "uri": image.as_uri(),
        "args": [],
    }
    entry = {"serverBuilder": builder, "entryID": 1, "imageName": image.name, "metadata": {}}
    document = {
        "version": "0.6.0",
        "createTimestamp": 0,
        "modifyTimestamp": 0,
        "uri": (folder / "project.qpproj").as_uri(),
        "lastID": 1,
        "images": [entry],
    }
    project = folder / "project.qpproj"
    project.write_text(json.dumps(document, indent=2))
    return project


def _row(backend: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder))
        row: dict[str, Any] = {"detections": count, "backend": backend}
        for step in ("write", "read"):
            command = [sys.executable, __file__, "--step", step, "--backend", backend]
            command += ["--count", str(count), "--project", str(project)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row[step] = json.loads(done.stdout.splitlines()[-1])
        data = Path(folder) / "data" / "1" / "data.qpdata"
        row["file_mb"] = data.stat().st_size / 2**20
        return row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--detections", type=int, nargs="+", default=[50_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    for internal in ("--step", "--backend"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--project", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
