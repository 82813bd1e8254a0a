"""Folders of images with instance masks: what training reads and evaluation scores.

A folder holds ``images/`` (RGB), ``labels/`` (instance ids 1…N, 0 background),
optionally ``types/`` (one id per pixel, the ids of PanNuke, see :data:`TYPES`) and
``manifest.csv`` with the columns ``file``, ``label``, ``types``, ``ignore``, ``mpp``,
``original_dataset`` and ``median_diam_px``; without a manifest, files are paired by name.
``ignore/`` holds masks that are not 0 where nobody looked: such pixels neither teach nor count.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.errors import ImageError, UsageError

#: Ids in ``types/``: PanNuke's, with 6 for data sets that merged 1 and 5.
TYPES = {
    1: "neoplastic",
    2: "inflammatory",
    3: "connective",
    4: "dead",
    5: "epithelial",
    6: "epithelial or neoplastic",
}
#: A nucleus whose type is unknown or outside :data:`TYPES`: it teaches no class.
IGNORED_TYPE = 255

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Sample:
    """One image with its masks.

    Attributes
    ----------
    name : the image's file name without suffix.
    source : first word of the manifest's ``original_dataset``; else the folder's name.
    image : (height, width, 3) uint8 RGB.
    labels : (height, width) int32 instance ids, 0 background.
    types : (height, width) uint8 type ids, or None when no types are known.
    mpp : micrometres per pixel, or None when the manifest has none.
    ignore : (height, width) bool, True where it is not known what is there; None: nowhere.
    """

    name: str
    source: str
    image: NDArray[np.uint8]
    labels: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    mpp: float | None
    ignore: NDArray[np.bool_] | None = None


def is_sample_folder(folder: Path) -> bool:
    """Whether ``folder`` has the two sub-folders that a set of samples needs."""
    return (folder / "images").is_dir() and (folder / "labels").is_dir()


def read_samples(folder: Path) -> Iterator[Sample]:
    """Read the samples of a folder, one at a time, in the order of their names.

    Raises
    ------
    UsageError : when the folder has no ``images`` and ``labels``, or nothing in them.
    ImageError : when a file is missing, unreadable, or image and labels differ in size.
    """
    if not is_sample_folder(folder):
        raise UsageError(
            folder,
            "it has no sub-folders `images` and `labels`",
            "Give a folder that holds images with instance masks of the same name.",
        )
    rows = _manifest_rows(folder) or _rows_by_name(folder)
    if not rows:
        raise UsageError(
            folder / "images", "it holds no image", f"Put {', '.join(_SUFFIXES)} files there."
        )
    for row in sorted(rows, key=lambda row: row["file"]):
        yield _read_sample(folder, row)


def parse_mpp(text: str | None) -> float | None:
    """The number in a manifest's pixel size, such as ``0.275`` or ``~0.25 (by the loader)``."""
    found = _NUMBER.search(text or "")
    value = float(found.group()) if found else 0.0
    return value if value > 0 else None


def median_diameter(labels: NDArray[np.int32]) -> float | None:
    """Median diameter in pixels of the circles with the areas of the instances."""
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    return float(np.median(np.sqrt(areas * (4 / np.pi)))) if areas.size else None


def _manifest_rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "manifest.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"file", "label"} <= rows[0].keys():
        raise UsageError(
            path, "it has no columns `file` and `label`", "Add them, or remove the manifest."
        )
    return rows


def _rows_by_name(folder: Path) -> list[dict[str, str]]:
    def files(kind: str) -> dict[str, str]:
        found = sorted((folder / kind).glob("*")) if (folder / kind).is_dir() else []
        return {p.stem: f"{kind}/{p.name}" for p in found if p.suffix.lower() in _SUFFIXES}

    labels, types, ignore = files("labels"), files("types"), files("ignore")
    rows = []
    for stem, file in files("images").items():
        if stem not in labels:
            raise ImageError(
                folder / file, "no mask of that name in `labels`", "Add it or remove the image."
            )
        optional = {"types": types.get(stem, ""), "ignore": ignore.get(stem, "")}
        rows.append({"file": file, "label": labels[stem], **optional})
    return rows


def _read_sample(folder: Path, row: dict[str, str]) -> Sample:
    image = _read_image(folder / row["file"])
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8:
        raise ImageError(
            folder / row["file"],
            f"expected 8-bit RGB, found {image.dtype} of shape {image.shape}",
            "Convert the image to 8-bit RGB.",
        )
    labels = _read_image(folder / row["label"])
    types = _read_image(folder / row["types"]) if row.get("types") else None
    ignore = _read_image(folder / row["ignore"]) if row.get("ignore") else None
    for kind, mask in (("label", labels), ("types", types), ("ignore", ignore)):
        if mask is not None and mask.shape != image.shape[:2]:
            raise ImageError(
                folder / row[kind],
                f"its size {mask.shape} is not the image's {image.shape[:2]}",
                "Give a single-channel mask of the image's width and height.",
            )
    source = (row.get("original_dataset") or "").split()
    return Sample(
        name=Path(row["file"]).stem,
        source=source[0] if source else folder.resolve().name,
        image=np.ascontiguousarray(image[..., :3]),
        labels=labels.astype(np.int32),
        types=None if types is None else types.astype(np.uint8),
        mpp=parse_mpp(row.get("mpp")),
        ignore=None if ignore is None else ignore.astype(bool),
    )


def _read_image(path: Path) -> NDArray[np.generic]:
    from PIL import Image

    if not path.is_file():
        raise ImageError(path, "the file does not exist", "Correct the manifest or add the file.")
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(path, f"it cannot be read ({error})", "Replace the file.") from error
