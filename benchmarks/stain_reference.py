"""The stains of training images, as ``segmentation/stain_reference.json`` keeps them.

    python benchmarks/stain_reference.py DATA [--out stain_reference.json] [--beside FOLDER …]

``DATA`` has ``images/`` and a ``manifest.csv`` with the columns ``file`` and
``original_dataset``. Every image gives six numbers (``segmentation.stain``); the range of
each is kept in which 99 % of the images lie, a little widened, since other laboratories
stain a little differently. Prints how far the images are from the middle of the ranges, and
those of other folders or files too.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathosam_qupath.segmentation.stain import FEATURES, StainReference, stain_features

WIDENED = 0.15
"""By this share of its width a range is widened at each end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="write the reference to this file")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="images to compare")
    arguments = parser.parse_args()
    by_set = features_of(arguments.data)
    stored = reference(by_set)
    for name, rows in by_set.items():
        tell(name, np.array(rows), stored)
    for folder in arguments.beside:
        if (folder / "manifest.csv").exists():
            for name, rows in features_of(folder).items():
                tell(f"{folder.name}: {name}", np.array(rows), stored)
        else:
            paths = [folder] if folder.is_file() else sorted(folder.iterdir())
            found = [features(path) for path in paths]
            tell(folder.name, np.array([f for f in found if f is not None]), stored)
    if arguments.out:
        arguments.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def features_of(data: Path) -> dict[str, list[NDArray[np.float64]]]:
    """Features of the images of each data set."""
    found = defaultdict(list)
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seen = features(data / row["file" if "file" in row else "image"])
            if seen is not None:
                found[row["original_dataset"].split(" (")[0].split(" stage")[0]].append(seen)
    return dict(found)


def features(path: Path) -> NDArray[np.float64] | None:
    """Features of an image file."""
    return stain_features(np.asarray(Image.open(path).convert("RGB"))[::2, ::2])


def reference(by_set: dict[str, list[NDArray[np.float64]]]) -> dict[str, Any]:
    """The range of each feature."""
    values = np.array([row for rows in by_set.values() for row in rows])
    low, high = np.percentile(values, (0.5, 99.5), axis=0)
    wider = WIDENED * (high - low)
    ranges = np.round(np.stack([low - wider, high + wider], axis=1), 4).tolist()
    return {
        "images": {name: len(rows) for name, rows in by_set.items()},
        "ranges": dict(zip(FEATURES, ranges, strict=True)),
    }


def tell(name: str, values: NDArray[np.float64], stored: dict[str, Any]) -> None:
    known = StainReference.from_dict(stored)
    found = np.array([known.distance(row) for row in values])
    print(
        f"{name:40} {len(found):4} images; distance: median {np.median(found):5.2f}, "
        f"largest {found.max():5.2f}, beyond the range {(found > 1).mean():4.0%}"
    )


if __name__ == "__main__":
    main()
