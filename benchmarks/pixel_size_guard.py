"""How well a wrong pixel size is told from the sizes of the nuclei that are found.

    python benchmarks/pixel_size_guard.py DATA … [--images 150] [--json figures.json]

``DATA`` has ``images/`` and a ``manifest.csv`` (columns ``file``, ``mpp``, ``group``). Every
image is segmented with the bundled model three times: as it is; shrunk to half and read as
if it had not been (20x read as 40x); with twice its pixel size (40x read as 20x). Images of
a group (slide or patient) count together. Prints each group's number of nuclei, their median
area and the 95th percentile, and of several limits how many right sizes they would doubt and
how many wrong ones they would catch; at last, how many the limit of the package does, and one
that is chosen without the group that it judges.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathosam_qupath.errors import ImageError
from pathosam_qupath.plausibility import LARGE, LEAST_LARGE, MOST_LARGE

READ_AS = {"right": (1, 1.0), "20x read as 40x": (2, 1.0), "40x read as 20x": (1, 2.0)}
"""By how much the image is shrunk, and its pixel size multiplied."""

ENOUGH = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=150, help="of each folder, spread over it")
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
            enough = len(sizes) >= ENOUGH
            row[reading] = {
                "nuclei": len(sizes),
                "median": float(np.median(sizes)) if enough else None,
                "large": float(np.percentile(sizes, LARGE)) if enough else None,
            }
        rows.append(row)
        print(f"{group:45}", *(said(row[reading]) for reading in READ_AS), sep="  ", flush=True)
    for limit in (14, 16, 17, 18, 20):
        told(rows, f"median below {limit} µm²", "median", lambda size, at=limit: size < at)
    for limit in (100, 110, 120, 130):
        told(rows, f"median above {limit} µm²", "median", lambda size, at=limit: size > at)
    for limit in (160, MOST_LARGE, 200):
        told(rows, f"{LARGE} % above {limit:g} µm²", "large", lambda size, at=limit: size > at)
    for limit in (35, 40, 43, LEAST_LARGE, 50, 55):
        told(rows, f"{LARGE} % below {limit:g} µm²", "large", lambda size, at=limit: size < at)
    print(f"{LARGE} % below a limit from the other groups: {left_out(rows)}")
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
                    try:
                        nuclei = pq.segment(path, None, model, mpp=mpp, tissue=False)
                    except ImageError as error:
                        print(f"{row['file']}: {error.cause}")
                        break
                    areas[row["group"]][reading].append(nuclei["Area µm^2"].to_numpy())
    return areas


def said(figures: dict[str, Any]) -> str:
    if figures["median"] is None:
        return f"{figures['nuclei']:5} are too few     "
    return f"{figures['nuclei']:5} of {figures['median']:4.0f}, {figures['large']:4.0f} µm²"


def told(rows: list[dict[str, Any]], name: str, key: str, doubted: Callable[[float], bool]) -> None:
    """Print how many groups a limit would doubt, by how they were read."""
    found = {}
    for reading in READ_AS:
        sizes = [row[reading][key] for row in rows if row[reading][key] is not None]
        found[reading] = f"{sum(map(doubted, sizes))} of {len(sizes)}"
    print(f"{name}: {found}")


def left_out(rows: list[dict[str, Any]]) -> str:
    """What a limit makes of each group that is chosen, with the fewest errors, on the others."""
    right, wrong = "right", "20x read as 40x"
    false = missed = 0
    for row in rows:
        others = [other for other in rows if other is not row]
        own, half = (
            [o[reading]["large"] for o in others if o[reading]["large"] is not None]
            for reading in (right, wrong)
        )
        limits = sorted({*own, *half})
        errors = [sum(s < at for s in own) + sum(s >= at for s in half) for at in limits]
        best = [at for at, count in zip(limits, errors, strict=True) if count == min(errors)]
        limit = (best[0] + best[-1]) / 2 if best else LEAST_LARGE
        false += row[right]["large"] is not None and row[right]["large"] < limit
        missed += row[wrong]["large"] is not None and row[wrong]["large"] >= limit
    return f"{false} right sizes doubted, {missed} wrong ones missed"


if __name__ == "__main__":
    main()
