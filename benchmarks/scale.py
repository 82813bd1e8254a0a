"""Whole slides: time, memory, what binds, what is lost beside the network; both backends.

``python benchmarks/scale.py --json scale.json`` prints the tables of ``benchmarks/README.md``.
Every row has a process of its own and is in the file as soon as it is measured; the same
command measures what is not there yet. Parts can be chosen with ``--parts``:

``runs``     runs over a project with one slide of each of ``--sides``, from the plan to the
             file in QuPath's format, with a cheap network and each backend;
``bundled``  the same with the bundled model, and slides that are files, as a scanner stores
             them (tiles of JPEG);
``writing``  a slide of 32,768 × 32,768 pixels with each of ``--nuclei`` and each backend: what
             follows the network alone (blocks into the ledger, nuclei into record and file);
``slope``    runs over slides of ``--slope-sides``, of which ``--slope-share`` is tissue, with the
             cheap network: peak memory over area, a million nuclei on the largest;
``kills``    ``kills.py``: runs that are killed at random moments and taken up again.

Slides are simulated as they are read: a disk of tissue (``--share`` of the slide) on glass,
the tissue scikit-image's immunohistochemistry image mirrored without end. A colour rule
stands in the cheap network's place, and in "writing" equal blocks of nuclei; all the rest
is what ``segment --whole-image`` does. A row's peak memory is that of its process, Java
included. Starting Python, Java and the model is timed by itself.

Shares of the cores are processor time over wall time and cores: of the threads that read,
of the network's, of the one that makes polygons, and of those that measure nuclei, write and
wait. What is not the network's is lost; "idle" is the part of it that no thread used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from backends import make_project
from numpy.typing import NDArray
from scaling import made_slide
from segmentation import MirroredTissue, StainRule, shown

Figures = dict[str, Any]
PARTS = ("runs", "bundled", "writing", "slope", "kills")
MPP = 0.25
SIDE_OF_WRITING = 32_768


class SimulatedSlide:
    """A disk of tissue on glass, made as it is read; at any resolution, mirrored tissue."""

    magnification = None

    def __init__(self, side: int, share: float, mpp: float = MPP) -> None:
        self.width = self.height = side
        self.mpp = (mpp, mpp)
        self._tissue = MirroredTissue(side, mpp)
        self._radius = side * (share / np.pi) ** 0.5 if share < 1 else 2 * side

    def at(self, mpp: float) -> SimulatedAt:
        """The slide at another resolution."""
        return SimulatedAt(self, mpp / self.mpp[0])

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> SimulatedSlide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, x: int, y: int, width: int, height: int, step: float) -> NDArray[np.uint8]:
        """RGB of a window, in pixels of ``step`` slide pixels."""
        columns = (np.arange(x, x + width) + 0.5) * step - self.width / 2
        rows = (np.arange(y, y + height) + 0.5) * step - self.height / 2
        rgb = self._tissue.read(x, y, width, height)
        far = np.abs(columns).max() ** 2 + np.abs(rows).max() ** 2
        if far > self._radius**2:
            for row, at in zip(rgb, rows, strict=True):
                row[columns**2 + at**2 > self._radius**2] = (243, 242, 240)
        return rgb


class SimulatedAt:
    """The slide at one resolution."""

    def __init__(self, slide: SimulatedSlide, step: float) -> None:
        self._slide, self._step = slide, step
        self.scale = (step, step)
        self.width = self.height = int(slide.width / step)

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """RGB of a window."""
        return self._slide.read(x, y, width, height, self._step)


class Stages:
    """Seconds of wall and of processor time that functions took, by stage."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.processor: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def timed(self, stage: str, owner: Any, name: str) -> None:  # noqa: ANN401
        """Time every call of ``owner.name``; a generator's steps count as calls."""
        inner = getattr(owner, name)

        def outer(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            with self.watch(stage):
                return inner(*arguments, **named)

        setattr(owner, name, outer)

    @contextlib.contextmanager
    def watch(self, stage: str) -> Iterator[None]:
        """Time what happens inside, on this thread."""
        wall, processor = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self.wall[stage] += time.perf_counter() - wall
                self.processor[stage] += time.thread_time() - processor


def measure(
    side: int,
    share: float,
    backend: str,
    model_name: str,
    nuclei: int,
    file: str | None = None,
    polygon_threads: int | None = None,
) -> Figures:
    """Run over a project with one slide, simulated or a file, in this process."""
    from pathosam_qupath import batch, block_workers, run_blocks, run_image, run_plan
    from pathosam_qupath.block_ledger import BlockLedger
    from pathosam_qupath.qupath.embedded_project import EmbeddedEntry
    from pathosam_qupath.qupath.project import open_project
    from pathosam_qupath.run_plan import RunOptions, plan_run
    from pathosam_qupath.segmentation import pipeline, tile_maps
    from pathosam_qupath.segmentation.pipeline import SegmentOptions
    from pathosam_qupath.slide import SlideFile

    starting = time.perf_counter()
    if backend == "paquo":
        from pathosam_qupath.qupath.jvm import start_qupath

        start_qupath()
    model = a_model(model_name)
    starting = time.perf_counter() - starting
    stages = Stages()
    if file is None:
        slide = SimulatedSlide(side, share)
        SlideFile.open = lambda file: slide
    for module in (run_plan, run_blocks):
        stages.timed("tissue", module, "tissue_of")
    stages.timed("stain", run_image, "stain_distance")
    stages.timed("reading", tile_maps.TileMaps, "_read")
    stages.timed("network", type(model), "predict")
    if polygon_threads:
        run_image.SegmentOptions = partial(SegmentOptions, postprocess_threads=polygon_threads)
    if nuclei:
        block_workers.segment_blocks = lambda plan, *_, **__: equal_blocks(plan, nuclei)
    stages.timed("polygons", pipeline, "block_objects")
    stages.timed("ledger", BlockLedger, "append")
    stages.timed("record", run_image, "gather")
    stages.timed("measuring", run_image, "nuclei_frame")
    stages.timed("file", EmbeddedEntry, "write")
    before = peak()
    wall, processor = time.perf_counter(), time.process_time()
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        image = None if file is None else Path(file)
        project = opened.enter_context(open_project(make_project(Path(folder), image), backend))
        options = RunOptions(whole_image=True)
        record = batch.run(project, model, options, plan_run(project, options))
        [entry] = record.manifest.entries
        assert entry.state == "written", entry.message
        predictions = record.entry_folder(entry.id) / "predictions.parquet"
        sizes = {
            "predictions": predictions.stat().st_size,
            "file": project.entries[0].data_path.stat().st_size,
        }
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores
    return {
        "side": side,
        "share": share,
        "backend": backend,
        "model": model_name,
        "tiles": entry.tiles,
        "megapixels": side**2 / 1e6,
        "nuclei": entry.nuclei,
        "seconds": wall,
        "seconds starting": starting,
        "nuclei per second": entry.nuclei / wall,
        "peak MB": peak(),
        "peak MB before": before,
        "cores": cores,
        "wall seconds": dict(stages.wall),
        "processor seconds": {**stages.processor, "all": processor},
        "bytes": sizes,
    }


def a_model(name: str) -> Any:  # noqa: ANN401
    """The cheap network, or a model of this package's by its name."""
    if name != "cheap":
        from pathosam_qupath.model import load_model

        return load_model(name, "cpu")
    model = StainRule()
    model.info = replace(StainRule.info, colors=((200, 0, 0), (0, 160, 0), (0, 0, 200)))
    return model


def equal_blocks(plan: Any, nuclei: int) -> Iterator[Any]:  # noqa: ANN401
    """Blocks with the same number of nuclei each, in rows; outlines of 12 to 32 vertices."""
    import shapely

    from pathosam_qupath.segmentation.objects import Objects
    from pathosam_qupath.segmentation.pipeline import BlockResult

    rng = np.random.default_rng(0)
    shapes = []
    for count in rng.integers(12, 33, 500).tolist():
        angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(8, 16)
        shapes.append(shapely.Polygon(ring.astype(np.float32)))
    pattern = np.array(shapes, object)
    ends = np.linspace(0, nuclei, len(plan.blocks) + 1).round().astype(int)
    for number, block in enumerate(plan.blocks):
        count = int(ends[number + 1] - ends[number])
        at = np.arange(count)
        per_row = max(1, int(np.ceil(np.sqrt(count))))
        x = block.inner.x0 + (at % per_row + 0.5) * block.inner.width / per_row
        y = block.inner.y0 + (at // per_row + 0.5) * block.inner.height / per_row
        anchors = np.stack([x, y], axis=1).astype(np.int64)
        chosen = pattern[rng.integers(0, len(pattern), count)]
        moved = np.repeat(anchors, shapely.get_num_coordinates(chosen), axis=0)
        placed = shapely.set_coordinates(chosen.copy(), shapely.get_coordinates(chosen) + moved)
        yield BlockResult(number, Objects(anchors, placed, rng.uniform(0, 9, (count, 3))), {})


def peak() -> float:
    """Peak memory of this process in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def in_own_process(
    slide: Callable[[int], Path],
    *,
    as_file: bool = False,
    **given: Any,  # noqa: ANN401
) -> Figures:
    """Figures of :func:`measure` in a process of its own.

    Parameters
    ----------
    slide : gives the file of a slide by its side; asked for one with ``as_file``.
    """
    if as_file:
        given["file"] = str(slide(given["side"]))
    command = [sys.executable, __file__, "--measure", json.dumps(given)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def shares(row: Figures) -> dict[str, float]:
    """Shares of all cores that the stages used, what nobody used, what binds."""
    capacity = row["seconds"] * row["cores"]
    used = row["processor seconds"]
    found = {name: seconds / capacity for name, seconds in used.items() if name != "all"}
    found["other"] = used["all"] / capacity - sum(found.values())
    found["idle"] = 1 - used["all"] / capacity
    return found


def binds(row: Figures) -> str:
    """The limit that binds: the processor, or the stage that others wait for."""
    found = shares(row)
    if found["idle"] < 0.15:
        largest = max((name for name in found if name != "idle"), key=lambda name: found[name])
        return f"the processor ({largest})"
    return max(row["wall seconds"], key=lambda name: row["wall seconds"][name])


HEAD = (
    "| slide | nuclei | network | backend | time | of processors | nuclei/s | peak | reading "
    "| network | polygons | writing | tissue, stain, rest | idle | binds |\n"
    "|---:|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|"
)


def line(row: Figures) -> str:
    """A row of the table."""
    found = shares(row)
    writing = sum(found.get(name, 0) for name in ("ledger", "record", "measuring", "file"))
    rest = found["other"] + found.get("tissue", 0) + found.get("stain", 0)
    cells = [
        f"{row['side']:,}²",
        f"{row['nuclei']:,}",
        Path(row["model"]).stem,
        row["backend"],
        f"{row['seconds']:.1f} s",
        f"{row['processor seconds']['all']:.1f} s",
        f"{row['nuclei per second']:,.0f}",
        f"{row['peak MB']:,.0f} MB",
        *(f"{found.get(name, 0):.0%}" for name in ("reading", "network", "polygons")),
        f"{writing:.0%}",
        f"{rest:.0%}",
        f"{found['idle']:.0%}",
        binds(row),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--nuclei", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--slope-sides", type=int, nargs="+", default=[16384, 32768, 65536, 100000])
    parser.add_argument("--slope-share", type=float, default=0.137)
    parser.add_argument("--model", default="bundled", help="of the part of that name")
    parser.add_argument("--share", type=float, default=1.0, help="of the slide that is tissue")
    parser.add_argument(
        "--polygon-threads", type=int, default=None, help="of the slope; a run chooses one"
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--backends", nargs="+", choices=["embedded", "paquo"], default=None)
    parser.add_argument("--json", type=Path, default=None, help="figures; those there are kept")
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(**json.loads(arguments.measure))))
        return
    kept = Kept(arguments.json)
    print(f"{kept.machine['processor']}, {kept.machine['cores']} cores\n\n{HEAD}", flush=True)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        slide = cache(lambda side: made_slide(Path(folder) / f"{side}.tif", side))
        for part, wanted in _wanted(arguments).items():
            rows[part] = []
            for given in wanted:
                measured = partial(in_own_process, slide, **given)
                rows[part].append(kept.figures(part, given, measured))
                print(line(rows[part][-1]), flush=True)
    for row in rows.get("bundled", []):
        lost = 1 - shares(row)["network"]
        of_work = 1 - row["processor seconds"]["network"] / row["processor seconds"]["all"]
        print(
            f"\nBundled model, {row['side']:,}², {row['backend']}: {lost:.1%} of the cores' time "
            f"is not the network's ({shares(row)['idle']:.1%} idle; of the time used, "
            f"{of_work:.1%})"
        )
    if len(rows.get("slope", [])) > 1:
        area = [row["megapixels"] for row in rows["slope"]]
        slope, start = np.polyfit(area, [row["peak MB"] for row in rows["slope"]], 1)
        print(
            f"\nPeak memory over area: {start:,.0f} MB and {1000 * slope:.2f} MB per gigapixel "
            f"({slope * area[-1] / start:.1%} more at {area[-1] / 1000:,.1f} gigapixels)"
        )
    if "kills" in arguments.parts:
        given = {"kills": arguments.kills}
        found = kept.figures("kills", given, partial(killed, arguments.kills))
        told = {name: value for name, value in found.items() if name != "given"}
        print(f"\n{shown('Kills', told)}")


def killed(kills: int) -> Figures:
    """Figures of ``kills.py``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kills.json"
        script = Path(__file__).with_name("kills.py")
        words = ["--kills", str(kills), "--json", str(path)]
        subprocess.run([sys.executable, script, *words], check=False, stdout=subprocess.DEVNULL)
        return dict(json.loads(path.read_text(encoding="utf-8")))


class Kept:
    """Figures in a file, each with what was asked for; those of another machine are refused."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.machine = {"processor": processor_name(), "cores": os.cpu_count()}
        self._found: Figures = {"machine": self.machine}
        if path is not None and path.exists():
            self._found = json.loads(path.read_text(encoding="utf-8"))
            if self._found["machine"] != self.machine:
                raise SystemExit(f"{path} is of another machine: {self._found['machine']}")

    def figures(self, part: str, given: Figures, measured: Callable[[], Figures]) -> Figures:
        """What is there of this, or is measured now."""
        rows = self._found.setdefault(part, [])
        found = next((row for row in rows if row["given"] == given), None)
        if found is None:
            found = {"given": given, **measured()}
            rows.append(found)
            if self._path is not None:
                text = json.dumps(self._found, indent=2) + "\n"
                self._path.write_text(text, encoding="utf-8")
        return found


def processor_name() -> str:
    """The processor's name, as the system has it."""
    with contextlib.suppress(OSError):
        for words in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if words.startswith("model name"):
                return words.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _wanted(arguments: argparse.Namespace) -> dict[str, list[Figures]]:
    """What to measure, by part."""
    backends = arguments.backends
    if backends is None:
        from pathosam_qupath.qupath.jvm import find_installation

        backends = ["embedded"]
        if find_installation() is None:
            print("No QuPath found (PAQUO_QUPATH_DIR): the embedded backend alone.")
        else:
            backends.append("paquo")

    def row(
        side: int, backend: str = "embedded", model: str = "cheap", nuclei: int = 0, **other: float
    ) -> Figures:
        share = other.get("share", arguments.share)
        return {
            "side": side,
            "share": share,
            "backend": backend,
            "model_name": model,
            "nuclei": nuclei,
        }

    several = arguments.polygon_threads
    threads = {} if several is None else {"polygon_threads": several}
    found: dict[str, Callable[[], list[Figures]]] = {
        "runs": lambda: [row(s, b) for s in arguments.sides for b in backends],
        "bundled": lambda: [
            {**row(s, b, model=arguments.model, share=1.0), "as_file": True}
            for s in arguments.sides
            for b in backends
        ],
        "writing": lambda: [
            row(SIDE_OF_WRITING, b, nuclei=n) for n in arguments.nuclei for b in backends
        ],
        "slope": lambda: [
            {**row(s, share=arguments.slope_share), **threads} for s in arguments.slope_sides
        ],
    }
    return {part: found[part]() for part in arguments.parts if part in found}


if __name__ == "__main__":
    main()
