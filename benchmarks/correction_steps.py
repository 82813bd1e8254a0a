"""Time and memory of every step of the correction loop, each as the command that a user gives.

Run with ``python benchmarks/correction_steps.py NUCLEI``, NUCLEI being a folder with the sets
``train`` and ``val``. Sixteen images of ``val`` become one picture of 2048 × 2048 pixels in a
project; it is segmented, a fifth of it is marked as reviewed with some nuclei deleted, reshaped
and reclassified, and every command of the loop runs on that. Prints a table of wall time, time
of the processor, and largest memory; ``--json`` writes the figures too.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import shapely
from backends import make_project
from PIL import Image

SIDE, REGION = 2048, 256
REPLAYED = 40
MODELS = ("class-head", "decoder", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("nuclei", type=Path, help="folder with train and val")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--what", nargs="+", default=MODELS, choices=MODELS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = _steps(arguments.nuclei, Path(folder), arguments.what)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def _steps(nuclei: Path, folder: Path, depths: list[str]) -> list[dict[str, Any]]:
    project = make_project(folder)
    Image.fromarray(_mosaic(nuclei / "val")).save(folder / "image.png")
    replay = _replay(nuclei / "train", folder / "replay")
    opened = [project, "--backend", "embedded", "--mpp", "0.25"]
    plain = [project, "--backend", "embedded"]
    data = folder / "training data"
    rows: list[dict[str, Any]] = []
    print(f"{'step':28s} {'wall':>8s} {'processor':>10s} {'memory':>9s}")

    def step(name: str, *words: object) -> None:
        row = {"step": name, **_measured([str(w) for w in words], folder)}
        rows.append(row)
        print(
            f"{name:28s} {row['wall']:6.1f} s {row['processor']:8.1f} s {row['memory']:6.0f} MB",
            flush=True,
        )

    device = ["--device", "cpu"]
    step("segment", "segment", *opened, "--whole-image", "--tissue", "off", *device)
    _edit(project)
    step("corrections collect", "corrections", "collect", *plain)
    step("corrections export", "corrections", "export", *opened, "--out", data)
    step("corrections suggest", "corrections", "suggest", *opened, "-n", 20, "--dry-run", *device)
    learning = ["finetune", "--data", data, "--replay", replay, "--force", *device]
    for what in depths:
        step(f"finetune {what}", *learning, "--what", what, "--name", f"new-{what}")
    newest = f"new-{depths[-1]}"
    val = nuclei / "val"
    held = ["--what", depths[-1], "--name", "held", "--regression", val]
    step(f"finetune {depths[-1]}, held", *learning, *held)
    step("models compare", "models", "compare", "bundled", newest, "--data", val, *device)
    again = ["corrections", "rerun", *opened, "--model", newest, *device]
    step("corrections rerun, dry", *again, "--dry-run")
    step("corrections rerun", *again)
    return rows


def _measured(words: list[str], folder: Path) -> dict[str, float]:
    """Run a command of the package; its time and its largest memory in MB."""
    environment = {**os.environ, "PATHOSAM_HOME": str(folder / "home")}
    began = time.monotonic()
    with (folder / "said.txt").open("w+b") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "pathosam_qupath", *words],
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        said.seek(0)
        if child.returncode:
            raise SystemExit(f"{' '.join(words)}\n{said.read().decode()}")
    return {
        "wall": round(wall, 2),
        "processor": round(used.ru_utime + used.ru_stime, 2),
        "memory": round(used.ru_maxrss / 1024, 1),
    }


def _mosaic(val: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Sixteen of the images, side by side."""
    files = sorted((val / "images").glob("*"))
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    fitting = [image for image in images if image.shape == (512, 512, 3)][:16]
    rows = [np.concatenate(fitting[i : i + 4], axis=1) for i in range(0, 16, 4)]
    return np.concatenate(rows)


def _replay(train: Path, folder: Path) -> Path:
    """Some of the samples that the base model was trained on."""
    with (train / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(1, len(rows) // REPLAYED)][:REPLAYED]
    for row in rows:
        for path in (row["file"], row["label"]):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(train / path)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _edit(project: Path) -> None:
    """Mark every fifth region as reviewed, and change every eighth nucleus in them."""
    from pathosam_qupath.qupath.objects import PathObject
    from pathosam_qupath.qupath.project import HierarchyChange, open_project

    corners = [(x, y) for y in range(0, SIDE, REGION) for x in range(0, SIDE, REGION)][::5]
    boxes = [shapely.box(x, y, x + REGION, y + REGION) for x, y in corners]
    reviewed = tuple(
        PathObject(
            uuid4(), "annotation", box, "Rectangle", classification="PathoSAM: reviewed", name=None
        )
        for box in boxes
    )
    with open_project(project, "embedded") as opened:
        entry = opened.entries[0]
        frame = entry.detections()
        inside = frame.geometry.centroid.within(shapely.union_all(boxes)).to_numpy()
        touched = frame[inside].iloc[::8].reset_index(drop=True)
        kept = touched.iloc[len(touched) // 3 :].copy()
        half = len(kept) // 2
        kept.iloc[:half, kept.columns.get_loc("classification")] = "Inflammatory"
        shapes = list(kept.geometry)
        shapes[half:] = [shape.buffer(1.5) for shape in shapes[half:]]
        gone = frozenset(UUID(identity) for identity in touched["id"])
        entry.write(HierarchyChange(gone, kept.set_geometry(shapes), annotations=reviewed))


if __name__ == "__main__":
    main()
