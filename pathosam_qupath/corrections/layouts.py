"""The files that training programs read, made from the crops of a training set.

For each split (``train``, ``val``):

* ``images/``, ``labels/``, ``types/``, ``ignore/`` and ``manifest.csv``: what ``train``,
  ``evaluate`` and ``finetune`` read (:mod:`~pathosam_qupath.corrections.samples`);
* ``coco.json``: COCO's instance format, masks as run lengths; what was not reviewed is a crowd
  of the category "not reviewed";
* ``pathosam/images`` and ``pathosam/labels``: TIFF pairs of one name, as PathoSAM's loaders of
  raw and label folders take them. They know no ignore mask, so pixels that nobody reviewed are
  white there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.corrections.samples import IGNORED_TYPE, TYPES
from pathosam_qupath.qupath.atomic import replace_file

SPLITS = ("train", "val")
FOLDERS = ("images", "labels", "types", "ignore")
COLUMNS = (
    "file",
    "label",
    "types",
    "ignore",
    "width",
    "height",
    "n_nuclei",
    "original_dataset",
    "mpp",
    "group",
    "project",
    "image",
    "region",
    "sha256",
)
_NOT_REVIEWED = "not reviewed"


@dataclass(frozen=True)
class CropRow:
    """A crop as the manifest lists it.

    Attributes
    ----------
    group : the slide.
    sha256 : of the image, the labels, the types and the ignore mask, one after the other.
    """

    name: str
    width: int
    height: int
    nuclei: int
    mpp: float
    group: str
    project: str
    image: str
    region: str
    sha256: str


def crop_files(split: Path, name: str) -> tuple[Path, ...]:
    """The four files of a crop."""
    return tuple(split / folder / f"{name}.png" for folder in FOLDERS)


def manifest_text(crops: Sequence[CropRow]) -> str:
    """The table of a split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for c in sorted(crops, key=lambda c: c.name):
        files = [f"{folder}/{c.name}.png" for folder in FOLDERS]
        sizes = [c.width, c.height, c.nuclei, "corrections", f"{c.mpp:g}"]
        writer.writerow([*files, *sizes, c.group, c.project, c.image, c.region, c.sha256])
    return text.getvalue()


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """Write an image or a mask, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = png_bytes(pixels)
    replace_file(path, lambda file: file.write(content))


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """An image (RGB) or a mask as a PNG file."""
    bgr = pixels if pixels.ndim == 2 else pixels[..., ::-1]
    done, content = cv2.imencode(".png", np.ascontiguousarray(bgr))
    assert done
    return content.tobytes()


def read_png(path: Path) -> NDArray[Any]:
    """A mask or an RGB image."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def write_layouts(split: Path, crops: Sequence[CropRow], classes: Mapping[str, int]) -> None:
    """Write the manifest, and the same crops for COCO's and PathoSAM's tools.

    Parameters
    ----------
    split : the folder that holds the crops' files.
    classes : type ids of the project's own classes.
    """
    split.mkdir(parents=True, exist_ok=True)
    _write_text(split / "coco.json", json.dumps(_coco(split, crops, classes)))
    wanted = {f"{crop.name}.tif" for crop in crops}
    for crop in crops:
        _write_pathosam(split, crop.name)
    for folder in ("images", "labels"):
        for path in (split / "pathosam" / folder).glob("*.tif"):
            if path.name not in wanted:
                path.unlink()
    _write_text(split / "manifest.csv", manifest_text(crops))


def _write_pathosam(split: Path, name: str) -> None:
    import tifffile

    image, labels, _, ignore = (read_png(path) for path in crop_files(split, name))
    shown = np.where((ignore > 0)[..., None], np.uint8(255), image)
    for folder, pixels in (("images", shown), ("labels", labels)):
        path = split / "pathosam" / folder / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        tifffile.imwrite(content, pixels, compression="zlib")
        replace_file(path, lambda file, content=content: file.write(content.getvalue()))  # type: ignore[misc]


def _coco(split: Path, crops: Sequence[CropRow], classes: Mapping[str, int]) -> dict[str, Any]:
    names = {**TYPES, **{number: name for name, number in classes.items()}}
    names[IGNORED_TYPE] = "unclassified"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, crop in enumerate(sorted(crops, key=lambda c: c.name), start=1):
        _, labels, types, ignore = (read_png(path) for path in crop_files(split, crop.name))
        file = f"images/{crop.name}.png"
        images.append({"id": number, "file_name": file, "width": crop.width, "height": crop.height})
        masks = [(labels == label, 0) for label in np.unique(labels[labels > 0])]
        masks += [(ignore > 0, 1)] if ignore.any() else []
        for mask, crowd in masks:
            kind = 0 if crowd else int(types[mask][0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kind,
                    "iscrowd": crowd,
                    "area": int(mask.sum()),
                    "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
                    "segmentation": _run_lengths(mask),
                }
            )
    categories = [{"id": number, "name": name} for number, name in sorted(names.items())]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 0, "name": _NOT_REVIEWED}, *categories],
    }


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column by column, beginning with background."""
    flat = np.concatenate([[False], mask.T.ravel(), [True]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = np.append(changes[changes < mask.size], mask.size)
    counts = np.diff(np.concatenate([[0], ends]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _write_text(path: Path, text: str) -> None:
    replace_file(path, lambda file: file.write(text.encode()))
