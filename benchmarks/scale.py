"""Whole slides, and runs that are killed: memory over area, what binds, what a kill costs.

``python benchmarks/scale.py --sides 4096 8192 16384`` segments synthetic slides of these
sides, simulated as they are read: a disk of tissue over glass, the tissue scikit-image's
immunohistochemistry image mirrored without end. A colour rule stands in the network's
place; everything else (reading ahead, blank tiles, blocks, watershed, polygons, the ledger
on disk) is what a run does. Each side has a process of its own, so that its peak memory is
its own. Prints how busy each stage was, which one binds, and the slope of memory over area.

``--tissue`` looks for tissue first, as whole images do, so that glass is not even read.

``--kills 20`` runs over a copy of the example project that is killed (SIGKILL) 20 times at
random moments and taken up each time, and compares every nucleus with an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from segmentation import MirroredTissue, StainRule, shown

Figures = dict[str, Any]
MPP = 0.25
KILLED = "killed"


class SimulatedSlide:
    """A disk of tissue on glass, made as it is read; at any resolution, mirrored tissue."""

    def __init__(self, side: int, share: float) -> None:
        self.width = self.height = side
        self.mpp = (MPP, MPP)
        self._tissue = MirroredTissue(side, MPP)
        self._radius = side * (share / np.pi) ** 0.5

    def at(self, mpp: float) -> SimulatedAt:
        """The slide at another resolution."""
        return SimulatedAt(self, mpp / MPP)

    def read(self, x: int, y: int, width: int, height: int, step: float) -> NDArray[np.uint8]:
        """RGB of a window, in pixels of ``step`` slide pixels."""
        columns = (np.arange(x, x + width) + 0.5) * step
        rows = (np.arange(y, y + height) + 0.5) * step
        middle = self.width / 2
        away = (columns - middle)[None, :] ** 2 + (rows - middle)[:, None] ** 2
        rgb = self._tissue.read(x, y, width, height).copy()
        rgb[away > self._radius**2] = (243, 242, 240)
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


def measure(side: int, share: float, with_tissue: bool) -> Figures:
    """Segment a simulated slide into a ledger, in this process."""
    from pathosam_qupath.block_ledger import open_ledger
    from pathosam_qupath.segmentation.pipeline import (
        Progress,
        SegmentOptions,
        plan_blocks,
        segment_blocks,
    )
    from pathosam_qupath.segmentation.tissue import find_tissue

    slide, model = SimulatedSlide(side, share), StainRule()
    options = SegmentOptions(seed="benchmark")
    before = peak()
    start, processor = time.perf_counter(), time.process_time()
    outlined = find_tissue(slide).geometry if with_tissue else None
    tissue_seconds = time.perf_counter() - start
    plan = plan_blocks(slide, None, model.info, options, tissue=outlined)
    last: list[Progress] = []
    nuclei = blank = 0
    writing = 0.0
    with tempfile.TemporaryDirectory() as folder:
        with open_ledger(Path(folder) / "blocks", {"side": side}) as ledger:
            results = segment_blocks(
                plan,
                model,
                options=options,
                progress=lambda p: last.__setitem__(slice(None), [p]),
            )
            for result in results:
                begun = time.perf_counter()
                ledger.append(result)
                writing += time.perf_counter() - begun
                nuclei += len(result.objects.anchors)
                blank += list(result.quality.values()).count("blank")
        size = (Path(folder) / "blocks").stat().st_size
    wall = time.perf_counter() - start
    cores = os.cpu_count() or 1
    threads = {
        "reading": (last[0].seconds_read, options.read_threads),
        "network": (last[0].seconds_network, cores),
        "polygons": (last[0].seconds_postprocess, 1),
        "ledger": (writing, 1),
    }
    busy = {name: seconds / wall / number for name, (seconds, number) in threads.items()}
    used = (time.process_time() - processor) / wall / cores
    binds = "the processor" if used > 0.85 else max(busy, key=lambda name: busy[name])
    return {
        "slide": f"{side} × {side}",
        "tiles": int(plan.wanted.sum()),
        "blocks": len(plan.blocks),
        "nuclei": nuclei,
        "seconds": wall,
        "seconds looking for tissue": tissue_seconds,
        "nuclei per second": nuclei / wall,
        **{f"busy, {name}": share for name, share in busy.items()},
        "busy, all cores": used,
        "binds": binds,
        "ledger, bytes per nucleus": size / max(1, nuclei),
        "MB before": before,
        "MB at peak": peak(),
    }


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def treat(folder: Path, run_id: str | None = None) -> None:
    """Run over the example project's copy in a folder, going on with its last run."""
    from pathosam_qupath import batch, run_image
    from pathosam_qupath.demo import copy_example
    from pathosam_qupath.qupath.project import open_project
    from pathosam_qupath.run_plan import RunOptions, plan_run
    from pathosam_qupath.segmentation.pipeline import SegmentOptions

    if run_id is not None:
        batch.new_run_id = lambda folder: run_id
    run_image.SegmentOptions = partial(SegmentOptions, block=128)  # many blocks, to be killed in
    model = StainRule()
    colors = ((200, 0, 0), (0, 160, 0), (0, 0, 200))
    few = replace(StainRule.info.postprocessing, min_size=10)
    model.info = replace(
        StainRule.info, mpp=0.5, tile=96, halo=16, colors=colors, postprocessing=few
    )
    with open_project(copy_example(folder), "embedded") as project:
        options = RunOptions()
        batch.run(project, model, options, plan_run(project, options), resume="auto")


def measure_kills(kills: int, seed: int) -> Figures:
    """Kill a run again and again; compare its nuclei with those of an undisturbed one."""
    from geopandas.testing import assert_geodataframe_equal

    from pathosam_qupath.demo import copy_example
    from pathosam_qupath.qupath.project import open_project
    from pathosam_qupath.run_record import open_run, run_ids

    rng = random.Random(seed)
    hit = finished = 0
    done_before: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        disturbed, other = Path(name) / "disturbed", Path(name) / "undisturbed"
        project_folder = copy_example(disturbed).parent
        begun = time.perf_counter()
        child(disturbed).wait()
        usual = time.perf_counter() - begun
        runs_before = set(run_ids(project_folder))
        while hit < kills:
            process = child(disturbed)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0.3, 1.0) * usual)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                hit += 1
            else:
                finished += 1
            process.wait()
        assert child(disturbed).wait() == 0
        runs = [run for run in run_ids(project_folder) if run not in runs_before]
        manifests = [open_run(project_folder, run).manifest for run in runs]
        assert all(m.finished is not None for m in manifests), "a run was left behind"
        assert all(e.state == "written" for m in manifests for e in m.entries), "an image failed"
        assert child(other, runs[-1]).wait() == 0
        found = []
        for folder in (disturbed, other):
            with open_project(copy_example(folder), "embedded") as project:
                found.append(project.entries[0].detections())
        assert_geodataframe_equal(*found)
        done_before.append(len(found[0]))
    return {
        "kills": hit,
        "runs that came to their end before the kill": finished,
        "runs in the record": len(runs),
        "nuclei": done_before[0],
        "nuclei that differ from the undisturbed run": 0,
        "seconds of an undisturbed run": usual,
    }


def child(folder: Path, run_id: str = "") -> subprocess.Popen[bytes]:
    """Start this script over a project, in a process of its own."""
    command = [sys.executable, __file__, "--only", KILLED, "--folder", str(folder)]
    return subprocess.Popen([*command, "--run", run_id])


def in_own_process(arguments: list[str]) -> Figures:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="*", default=[4096, 8192, 16384])
    parser.add_argument("--share", type=float, default=0.3, help="of the slide that is tissue")
    parser.add_argument("--tissue", action="store_true", help="leave glass out, as runs do")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", choices=["side", KILLED], default=None, help="for itself")
    parser.add_argument("--folder", type=Path, help="for itself")
    parser.add_argument("--run", default="", help="for itself")
    arguments = parser.parse_args()
    if arguments.only == KILLED:
        treat(arguments.folder, arguments.run or None)
        return
    if arguments.only == "side":
        print(json.dumps(measure(arguments.sides[0], arguments.share, arguments.tissue)))
        return
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(shown("Machine", machine))
    found: Figures = {"machine": machine, "sides": []}
    for side in arguments.sides:
        given = ["--only", "side", "--sides", str(side), "--share", str(arguments.share)]
        figures = in_own_process(given + (["--tissue"] if arguments.tissue else []))
        found["sides"].append(figures)
        print(shown(f"Slide {figures['slide']}", figures), flush=True)
    if len(found["sides"]) > 1:
        megapixels = [side**2 / 1e6 for side in arguments.sides]
        memory = [figures["MB at peak"] for figures in found["sides"]]
        slope = float(np.polyfit(megapixels, memory, 1)[0])
        found["MB per megapixel"] = slope
        print(f"Slope of peak memory over area: {slope:.4f} MB per megapixel")
    if arguments.kills:
        found["kills"] = measure_kills(arguments.kills, arguments.seed)
        print(shown("Kills", found["kills"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
