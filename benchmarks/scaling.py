"""Blocks on Dask workers: how much quicker two are than one, and what 64 GPUs would do.

``python benchmarks/scaling.py --side 8192 --workers 1 2`` segments a slide (mirrored tissue
in a JPEG TIFF) for each number of workers on as many cores: by threads of one process, and
by as many worker processes of a core each. All runs must find the same, byte for byte, or
the script fails. Each has a process of its own. Starting workers and loading the model is
not in the times, but shown.

From the figures that do not depend on the network (bytes per nucleus, seconds of the
process that collects, bytes of the slide per tile) it then computes the model of
docs/scaling.md for up to 64 GPUs, with ``--gpu-ms`` for a tile on one, ``--disk`` and
``--network`` in MB/s. With ``--model stain`` a colour rule stands in the network's place,
whose nuclei are as dense as real ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tifffile
from segmentation import MirroredTissue, StainRule, a_model, shown

Figures = dict[str, Any]
MPP = 0.25
GPUS = (1, 2, 4, 8, 16, 32, 64)


def made_slide(path: Path, side: int) -> Path:
    """Mirrored tissue as a scanner stores it: JPEG tiles, three levels."""
    tissue = MirroredTissue(side, MPP)

    def tiles(step: int, across: int) -> Iterator[Any]:
        for y in range(0, across, 512):
            for x in range(0, across, 512):
                yield tissue.read(x * step, y * step, 512 * step, 512 * step)[::step, ::step]

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(3):
            across = side >> level
            writer.write(
                tiles(1 << level, across),
                shape=(across, across, 3),
                dtype="uint8",
                photometric="rgb",
                tile=(512, 512),
                compression="jpeg",
                subfiletype=int(level > 0),
                resolution=(40_000 / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def measure(path: Path, model_name: str, cores: int, workers: int) -> Figures:
    """Segment the slide on some cores, in this process (no workers) or by workers."""
    from pathosam_qupath.block_ledger import open_ledger, packed
    from pathosam_qupath.block_workers import ImageBlocks, InProcess, ModelChoice
    from pathosam_qupath.segmentation.pipeline import Progress, SegmentOptions, plan_blocks
    from pathosam_qupath.slide import SlideFile

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    model = a_model(model_name, "cpu")
    load = StainRule if model_name == "stain" else ModelChoice(model_name, "cpu")
    options = SegmentOptions(seed="benchmark", network_threads=cores)
    file = SlideFile(path, mpp=MPP)
    last: list[Progress] = []
    with ExitStack() as opened:
        begun = time.perf_counter()
        computing: Any = InProcess(model)
        if workers:
            from pathosam_qupath.dask_cluster import connected
            from pathosam_qupath.dask_workers import DaskWorkers

            client = opened.enter_context(connected("local", workers, "cpu"))
            computing = opened.enter_context(DaskWorkers(client, load, model.info))
        started = time.perf_counter() - begun
        slide = opened.enter_context(file.open())
        plan = plan_blocks(slide, None, model.info, options)
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        ledger = opened.enter_context(open_ledger(Path(folder) / "blocks", {"path": str(path)}))
        begun, processor = time.perf_counter(), time.process_time()
        results = computing.results(
            ImageBlocks("slide", file, plan, options),
            progress=lambda p: last.__setitem__(slice(None), [p]),
        )
        for result in results:
            ledger.append(result)
        seconds = time.perf_counter() - begun
        collecting = time.process_time() - processor
        tiles = computing.tiles if workers else last[0].tiles_total
        shares = dict(computing.computed) if workers else {}
        found, size = hashlib.sha256(), 0
        for result in ledger.results():  # by their numbers
            block = packed(result)
            found.update(block)
            size += len(block)
    return {
        "cores": cores,
        "workers": workers,
        "blocks": len(plan.blocks),
        "tiles of the plan": int(plan.wanted.sum()),
        "tiles computed": tiles,
        "nuclei": ledger.objects,
        "seconds to start": started,
        "seconds": seconds,
        "seconds in the network (threads)": last[-1].seconds_network,
        "seconds reading (threads)": last[-1].seconds_read,
        "seconds of polygons (threads)": last[-1].seconds_postprocess,
        "processor seconds of the collecting process": collecting,
        "bytes per nucleus": size / max(1, ledger.objects),
        "blocks by worker": shares,
        "slide, bytes per tile": path.stat().st_size / max(1, int(plan.wanted.sum())),
        "result": found.hexdigest(),
    }


def on_paper(figures: Figures, arguments: argparse.Namespace) -> list[Figures]:
    """The model of docs/scaling.md: seconds per slide, and what binds, by number of GPUs."""
    tiles, nuclei = arguments.tiles, arguments.nuclei
    again = figures["tiles computed"] / figures["tiles of the plan"] - 1
    collecting = figures["processor seconds of the collecting process"] / max(1, figures["nuclei"])
    per_tile = figures["slide, bytes per tile"]
    rows = []
    for gpus in GPUS:
        # Tiles at the borders of lanes are computed twice: their share grows as the root of
        # the number of lanes, from what two lanes of the measured slide took.
        measured = figures["tiles of the plan"], max(2, figures["workers"])
        border = again * ((gpus / measured[1]) * (measured[0] / tiles)) ** 0.5
        border = 0.0 if gpus == 1 else border
        seconds = {
            "network": tiles * (1 + border) * arguments.gpu_ms / 1000 / gpus,
            "reading": tiles * (1 + border) * per_tile / arguments.disk / 1e6,
            "transfer": nuclei * figures["bytes per nucleus"] / arguments.network / 1e6,
            "writing": nuclei * (collecting + arguments.write_us / 1e6),
        }
        binds = max(seconds, key=lambda name: seconds[name])
        efficiency = seconds["network"] / (1 + border) / max(seconds.values())
        rows.append({"GPUs": gpus, **seconds, "binds": binds, "efficiency": efficiency})
    return rows


def table(rows: list[Figures]) -> str:
    """Rows with the same keys as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---:|" * len(names)]
    for row in rows:
        cells = (f"{v:,.2f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_own_process(arguments: list[str]) -> Figures:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def scaling(path: Path, model: str, numbers: list[int]) -> list[Figures]:
    """Each number of cores, by one process and by as many workers."""
    rows = []
    for number in numbers:
        for workers in (0, number):
            given = ["--cores", str(number), "--only-workers", str(workers), "--model", model]
            figures = in_own_process(["--only", str(path), *given])
            rows.append(figures)
            said = f"{workers} workers" if workers else "one process"
            print(shown(f"{number} cores, {said}", figures), flush=True)
    if len({row["result"] for row in rows}) > 1:
        raise SystemExit("The runs did not find the same.")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192, help="of the slide in pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--gpu-ms", type=float, default=10.0, help="a tile on one GPU")
    parser.add_argument("--disk", type=float, default=1000.0, help="MB/s that slides come with")
    parser.add_argument("--network", type=float, default=1000.0, help="MB/s to the collector")
    parser.add_argument("--write-us", type=float, default=62.0, help="to write a nucleus, µs")
    parser.add_argument("--tiles", type=int, default=4000, help="of a slide, on paper")
    parser.add_argument("--nuclei", type=int, default=500_000, help="of a slide, on paper")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", type=Path, default=None, help="for itself")
    parser.add_argument("--cores", type=int, default=1, help="for itself")
    parser.add_argument("--only-workers", type=int, default=0, help="for itself")
    arguments = parser.parse_args()
    if arguments.only:
        given = arguments.only, arguments.model, arguments.cores, arguments.only_workers
        print(json.dumps(measure(*given)))
        return
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(shown("Machine", machine))
    with tempfile.TemporaryDirectory() as folder:
        path = made_slide(Path(folder) / "slide.tif", arguments.side)
        rows = scaling(path, arguments.model, arguments.workers)
    by_workers = [row for row in rows if row["workers"]]
    alone = {row["cores"]: row["seconds"] for row in rows if not row["workers"]}
    summary = [
        {
            "workers": row["workers"],
            "seconds": row["seconds"],
            "times one worker": by_workers[0]["seconds"] / row["seconds"],
            "times one process on as many cores": alone[row["cores"]] / row["seconds"],
            "tiles computed / of the plan": row["tiles computed"] / row["tiles of the plan"],
            "same result": True,
        }
        for row in by_workers
    ]
    paper = on_paper(by_workers[-1], arguments)
    print(table(summary))
    print("\nOn paper, seconds per slide; they overlap, the largest binds:")
    print(table(paper))
    if arguments.json:
        everything = {"machine": machine, "runs": rows, "scaling": summary, "on paper": paper}
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
