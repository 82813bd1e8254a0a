"""How well a wrong pixel size is told from the sizes of the nuclei that are found.

    python benchmarks/pixel_size_guard.py DATA … [--images 40] [--json figures.json]

``DATA`` has ``images/`` and a ``manifest.csv`` (columns ``file``, ``mpp``, ``group``). Every
image is segmented with the bundled model three times: as it is; shrunk to half and read as
if it had not been (20x read as 40x); with twice its pixel size (40x read as 20x). Images of
a group (slide or patient) count together. Prints each group's median area and number of
nuclei, and of several pairs of limits how many right sizes they would doubt and how many
wrong ones they would catch.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

READ_AS = {"right": (1, 1.0), "20x read as 40x": (2, 1.0), "40x read as 20x": (1, 2.0)}
"""By how much the image is shrunk, and its pixel size multiplied."""

ENOUGH = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=40, help="of each folder, spread over it")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    began = time.perf_counter()
    areas = found_areas(arguments.data, arguments.images, arguments.model)
    rows = []
    for group, by_reading in sorted(areas.items()):
        row: dict[str, Any] = {"group": group}
        for reading, parts in by_reading.items():
            sizes = np.concatenate(parts)
            row[reading] = {
                "nuclei": len(sizes),
                "median": float(np.median(sizes)) if len(sizes) >= ENOUGH else None,
            }
        rows.append(row)
        print(f"{group:45}", *(said(row[reading]) for reading in READ_AS), sep="  ", flush=True)
    for smallest, largest in ((14, 130), (16, 120), (17, 130), (18, 110), (20, 100), (22, 90)):
        told = {reading: doubted(rows, reading, smallest, largest) for reading in READ_AS}
        print(f"limits {smallest:3} and {largest:3} µm²: doubted {told}")
    print(f"{time.perf_counter() - began:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def found_areas(folders: list[Path], most: int, model_name: str) -> dict[str, dict[str, list[Any]]]:
    """Areas in µm² of the nuclei found, by group and by how the image was read."""
    import pathosam_qupath as pq

    model = pq.load_model(model_name, "cpu")
    areas: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as name:
        for folder in folders:
            with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            chosen = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
            for row in (rows[i] for i in np.unique(chosen)):
                number = re.search(r"\d*\.\d+", row["mpp"])
                if number is None:
                    continue
                image = Image.open(folder / row["file"]).convert("RGB")
                for reading, (shrink, factor) in READ_AS.items():
                    size = (image.width // shrink, image.height // shrink)
                    path = Path(name) / "image.png"
                    image.resize(size, Image.Resampling.BOX).save(path)
                    mpp = float(number[0]) * factor
                    nuclei = pq.segment(path, None, model, mpp=mpp, tissue=False)
                    areas[row["group"]][reading].append(nuclei["Area µm^2"].to_numpy())
    return areas


def said(figures: dict[str, Any]) -> str:
    median = "too few" if figures["median"] is None else f"{figures['median']:5.0f} µm²"
    return f"{figures['nuclei']:5} of {median}"


def doubted(rows: list[dict[str, Any]], reading: str, smallest: float, largest: float) -> str:
    """How many groups limits would doubt."""
    medians = [row[reading]["median"] for row in rows if row[reading]["median"] is not None]
    outside = sum(not smallest <= median <= largest for median in medians)
    return f"{outside} of {len(medians)}"


if __name__ == "__main__":
    main()
