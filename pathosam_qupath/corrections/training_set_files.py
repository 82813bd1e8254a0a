"""The files of a training set: read, checked, written.

``regions.json`` says what a folder holds: the regions with their outlines, the crops of each,
and which file has the nuclei (``nuclei-<n>.parquet``: every nucleus with its project, image,
object, run, kind of correction, crop and label). It is replaced atomically before the masks'
manifests, which follow from it, so an export that was cut off is mended by the next one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from pathosam_qupath.corrections.layouts import (
    SPLITS,
    crop_files,
    manifest_text,
    png_bytes,
    write_layouts,
    write_png,
)
from pathosam_qupath.corrections.masks import Window, draw_masks
from pathosam_qupath.corrections.training_regions import OTHER, Region
from pathosam_qupath.corrections.training_set import Crop, StoredRegion, TrainingSet, crop_rows
from pathosam_qupath.errors import ImageError, UsageError
from pathosam_qupath.qupath.atomic import replace_file

STATE = "regions.json"
CLASSES = "classes.json"
_FORMAT = 1
_AGAIN = "Export into another folder, from all projects."


def read_training_set(folder: Path) -> TrainingSet | None:
    """Read what is in a folder; None where nothing was exported to it.

    Raises
    ------
    UsageError : it is not what an export wrote, or is damaged.
    """
    path = folder / STATE
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(
                folder, "it holds other things than an export", "Name an empty or a new folder."
            )
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != _FORMAT:
            raise ValueError("it was written by another version of pathosam-qupath")
        content = folder / stored["nuclei"]
        if _sha256(content.read_bytes()) != stored["nuclei_sha256"]:
            raise ValueError(f"{content.name} is not the file that was written")
        nuclei = gpd.read_parquet(content)
        regions = tuple(_region(item, nuclei) for item in stored["regions"])
        return TrainingSet(
            stored["mpp"], stored["classes"], stored["splits"], regions, stored["number"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(path, f"the export is damaged ({error})", _AGAIN) from error


def verify_training_set(folder: Path) -> TrainingSet | None:
    """Read a folder and check every file of it; None where it is no export.

    Raises
    ------
    UsageError : the list of regions or a manifest is damaged.
    ImageError : a crop is missing or is not what was written.
    """
    if not (folder / STATE).exists():
        return None
    found = read_training_set(folder)
    assert found is not None
    for stored in found.regions:
        for crop in stored.crops:
            files = crop_files(folder / stored.split, crop.name)
            missing = next((file for file in files if not file.is_file()), None)
            if missing is not None or _hash_of(files) != crop.sha256:
                raise ImageError(
                    missing or files[0],
                    "a file of the export is missing"
                    if missing
                    else "the crop or a mask of it is not what the export wrote",
                    _AGAIN,
                )
    for split in SPLITS:
        path = folder / split / "manifest.csv"
        rows = crop_rows(found, split)
        if rows and (not path.is_file() or path.read_text("utf-8") != manifest_text(rows)):
            raise UsageError(
                path, "it does not list what was exported", "Run the same export again."
            )
    return found


def write_training_set(
    folder: Path, new: TrainingSet, images: Mapping[str, NDArray[np.uint8]]
) -> TrainingSet:
    """Write a set into its folder: crops, masks, the list, then what follows from it.

    Parameters
    ----------
    images : pixels of crops that the folder does not have yet, by name.

    Raises
    ------
    ImageError : the image of an earlier crop is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_draw(folder, stored, images) for stored in new.regions]
    frames = [nuclei for _, nuclei in drawn]
    written = replace(new, regions=tuple(s for s, _ in drawn), number=new.number + 1)
    nuclei = gpd.GeoDataFrame(pd.concat(frames, ignore_index=True), geometry="geometry")
    name = f"nuclei-{written.number}.parquet"
    replace_file(folder / name, lambda file: nuclei.to_parquet(file, index=False))
    state = {
        "format": _FORMAT,
        "number": written.number,
        "mpp": written.mpp,
        "classes": dict(written.classes),
        "splits": dict(written.splits),
        "nuclei": name,
        "nuclei_sha256": _sha256((folder / name).read_bytes()),
        "regions": [_item(stored) for stored in written.regions],
    }
    _write_json(folder / STATE, state)
    _write_json(folder / CLASSES, dict(written.classes))
    for split in SPLITS:
        rows = crop_rows(written, split)
        if rows or (folder / split).exists():
            write_layouts(folder / split, rows, written.classes)
            _sweep(folder / split, {row.name for row in rows})
    for path in folder.glob("nuclei-*.parquet"):
        if path.name != name:
            path.unlink()
    return written


def _draw(
    folder: Path, stored: StoredRegion, images: Mapping[str, NDArray[np.uint8]]
) -> tuple[StoredRegion, gpd.GeoDataFrame]:
    """Write the crops of a region; the region with their hashes, and its nuclei's places."""
    region = stored.region
    real = (region.nuclei["kind"] != OTHER).to_numpy()
    nuclei = region.nuclei.assign(region=region.name, crop=None, label=0)
    rows = np.flatnonzero(real)
    shapes = region.nuclei.geometry.to_numpy()
    types = region.nuclei["type"].to_numpy()
    crops = []
    for crop in stored.crops:
        masks = draw_masks(
            crop.window, stored.scale, region.area, shapes[rows], types[rows], shapes[~real]
        )
        files = crop_files(folder / stored.split, crop.name)
        contents: tuple[NDArray[Any], ...] = (masks.labels, masks.types, masks.ignore)
        if crop.name in images:
            write_png(files[0], images[crop.name])
        elif not files[0].is_file():
            raise ImageError(files[0], "an image of the export is missing", _AGAIN)
        for file, pixels in zip(files[1:], contents, strict=True):
            if not file.is_file() or file.read_bytes() != png_bytes(pixels):
                write_png(file, pixels)
        drawn = rows[list(masks.drawn)]
        nuclei.loc[drawn, "crop"] = crop.name
        nuclei.loc[drawn, "label"] = np.arange(1, len(drawn) + 1)
        crops.append(replace(crop, nuclei=len(drawn), sha256=_hash_of(files)))
    done = replace(region, nuclei=nuclei)
    return replace(stored, region=done, crops=tuple(crops)), nuclei


def _region(item: Mapping[str, Any], nuclei: gpd.GeoDataFrame) -> StoredRegion:
    mine = nuclei[(nuclei["region"] == item["name"]).to_numpy()].reset_index(drop=True)
    region = Region(
        item["name"],
        item["project"],
        item["entry"],
        item["image"],
        item["slide"],
        tuple(item["annotations"]),
        tuple(item["runs"]),
        item["saved"],
        shapely.from_wkt(item["area"]),
        mine,
    )
    crops = tuple(
        Crop(c["name"], Window(*c["window"]), c["nuclei"], c["sha256"]) for c in item["crops"]
    )
    return StoredRegion(region, item["split"], tuple(item["scale"]), crops)


def _item(stored: StoredRegion) -> dict[str, Any]:
    region = stored.region
    fixed = ("name", "project", "entry", "image", "slide", "annotations", "runs", "saved")
    return {
        **{name: getattr(region, name) for name in fixed},
        "split": stored.split,
        "scale": stored.scale,
        "area": shapely.to_wkt(region.area, rounding_precision=-1),
        "crops": [
            {
                "name": c.name,
                "window": [c.window.x, c.window.y, c.window.width, c.window.height],
                "nuclei": c.nuclei,
                "sha256": c.sha256,
            }
            for c in stored.crops
        ],
    }


def _sweep(split: Path, names: set[str]) -> None:
    """Remove crops that are in no region any more."""
    for path in split.glob("*/*.png"):
        if path.stem not in names:
            path.unlink()


def _hash_of(files: Sequence[Path]) -> str:
    return _sha256(b"".join(file.read_bytes() for file in files))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    replace_file(path, lambda file: file.write(text.encode()))
