"""Runs that are killed and taken up again: what is lost, and what differs.

``python benchmarks/kills.py --kills 20`` makes a copy of the example project for each kill,
starts a run over it in a process of its own (forked off one that has only imported what a
run needs), ends that with SIGKILL at a random moment between its beginning and its end,
takes the run up again in another process, and compares
every nucleus (id, class, outline, measurements, place in the file) with those of a run that
nobody disturbed. ``--backend paquo`` lets QuPath's own code write. A colour rule stands in
the network's place, and blocks are small, so that there is much to be killed in.

The kills are spread over the time that an undisturbed run takes from its first to its last
write; so they come while blocks are computed, recorded, stored and written. Prints what each
kill found (blocks in the ledger, state of the image) and ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmentation import StainRule, shown

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from multiprocessing.synchronize import Event

    import geopandas as gpd

PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["geopandas", "skimage.segmentation", "scipy.ndimage", "pathosam_qupath.batch"]

RUN = "20260101-000000-aaaa"
"""Every run has this id: ids of nuclei follow from it."""


def treat(folder: Path, backend: str, begun: Event) -> None:
    """Run over the example project's copy in a folder, going on with its last run."""
    from pathosam_qupath import batch, run_image
    from pathosam_qupath.demo import copy_example
    from pathosam_qupath.qupath.project import open_project
    from pathosam_qupath.run_plan import RunOptions, plan_run
    from pathosam_qupath.segmentation.pipeline import SegmentOptions

    batch.new_run_id = lambda folder: RUN
    run_image.SegmentOptions = partial(SegmentOptions, block=128)
    model = StainRule()
    colors = ((200, 0, 0), (0, 160, 0), (0, 0, 200))
    few = replace(StainRule.info.postprocessing, min_size=10)
    model.info = replace(
        StainRule.info, mpp=0.5, tile=96, halo=16, colors=colors, postprocessing=few
    )
    with open_project(copy_example(folder), backend) as project:
        options = RunOptions()
        plans = plan_run(project, options)
        begun.set()
        batch.run(project, model, options, plans, resume="auto")


def started(folder: Path, backend: str) -> ForkServerProcess:
    """Start a run in a process of its own; returns when it has begun."""
    begun = PROCESSES.Event()
    process = PROCESSES.Process(target=treat, args=(folder, backend, begun))
    process.start()
    while process.is_alive() and not begun.wait(0.05):
        pass
    return process


def finished(folder: Path, backend: str) -> tuple[gpd.GeoDataFrame, float]:
    """Let a run come to its end: its nuclei, and how long it took from its beginning."""
    process = started(folder, backend)
    begun = time.perf_counter()
    process.join()
    seconds = time.perf_counter() - begun
    if process.exitcode != 0:
        raise SystemExit(f"the run in {folder} failed with {process.exitcode}")
    return nuclei(folder), seconds


def nuclei(folder: Path) -> gpd.GeoDataFrame:
    """The nuclei in a project's file, in their order."""
    from pathosam_qupath.demo import copy_example
    from pathosam_qupath.qupath.project import open_project

    with open_project(copy_example(folder), "embedded") as project:
        return project.entries[0].detections()


def differing(one: gpd.GeoDataFrame, other: gpd.GeoDataFrame) -> str | None:
    """What differs between two lists of nuclei; None where nothing does."""
    from geopandas.testing import assert_geodataframe_equal

    try:
        assert_geodataframe_equal(one, other)
    except AssertionError as error:
        return str(error).replace("\n", " ")
    return None


def state(folder: Path) -> str:
    """How far a killed run had come, as its record has it."""
    from pathosam_qupath.demo import copy_example
    from pathosam_qupath.run_record import open_run, run_ids

    project = copy_example(folder).parent
    if RUN not in run_ids(project):
        return "no record yet"
    record = open_run(project, RUN)
    [entry] = record.manifest.entries
    ledger = record.blocks_path(entry.id)
    size = ledger.stat().st_size if ledger.exists() else 0
    return f"{entry.state}, {size // 1024} kB of blocks"


def measure(kills: int, seed: int, backend: str) -> dict[str, Any]:
    """Kill runs, take them up again, compare."""
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        expected, seconds = finished(Path(name) / "undisturbed", backend)
        differences: list[str] = []
        number = 0
        while found["killed"] < kills:
            number += 1
            folder = Path(name) / str(number)
            process = started(folder, backend)
            moment = rng.uniform(0, seconds)
            time.sleep(moment)
            if not process.is_alive():
                found["ended before the kill"] += 1
                continue
            process.kill()
            process.join()
            found["killed"] += 1
            seen = state(folder)
            again, _ = finished(folder, backend)
            difference = differing(again, expected)
            if difference:
                differences.append(f"kill {number}: {difference}")
            print(
                f"kill {found['killed']:2} after {moment:5.2f} s ({seen}): {len(again)} nuclei, "
                f"{difference or 'identical'}",
                flush=True,
            )
    return {
        "kills": found["killed"],
        "runs that ended before the kill": found["ended before the kill"],
        "nuclei": len(expected),
        "resumed runs that differ": len(differences),
        "seconds of an undisturbed run": seconds,
        "backend": backend,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", choices=["embedded", "paquo"], default="embedded")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    PROCESSES.set_forkserver_preload(IMPORTED)
    began = time.perf_counter()
    figures = measure(arguments.kills, arguments.seed, arguments.backend)
    figures["seconds in all"] = time.perf_counter() - began
    print(shown("Kills", figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(1 if figures["resumed runs that differ"] else 0)


if __name__ == "__main__":
    main()
