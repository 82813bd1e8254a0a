"""Reviewed regions of many projects, gathered without counting a nucleus twice.

A region that is exported again takes the place of what the same image gave there before. Where
regions of two projects overlap on one slide, the one that was saved last counts (or the one
that is there, or it is an error), and where they disagree about nuclei that is reported. A
slide is in one split for good: of every five slides the second is held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import geopandas as gpd
import shapely

from pathosam_qupath.corrections.diff import KEPT, compare
from pathosam_qupath.corrections.layouts import (
    CropRow,
)
from pathosam_qupath.corrections.masks import Window, slide_box
from pathosam_qupath.corrections.training_regions import OTHER, Region
from pathosam_qupath.errors import UsageError
from pathosam_qupath.replacing import in_region

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

OnConflict = Literal["newest", "keep", "error"]

HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Crop:
    """A crop of a region: where it lies, how many nuclei it shows, the hash of its files."""

    name: str
    window: Window
    nuclei: int = 0
    sha256: str = ""


@dataclass(frozen=True, eq=False)
class StoredRegion:
    """A region in the folder.

    Attributes
    ----------
    scale : (x, y) slide pixels per pixel of its crops.
    """

    region: Region
    split: str
    scale: tuple[float, float]
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Conflict:
    """Two projects that reviewed the same place.

    Attributes
    ----------
    area : of the place, in slide pixels.
    nuclei : how many nuclei they disagree about; 0 where they agree.
    winner : the project that counts there.
    """

    image: str
    projects: tuple[str, str]
    area: float
    nuclei: int
    winner: str


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a folder holds.

    Attributes
    ----------
    mpp : µm/px of the crops.
    classes : type ids of classes that PanNuke does not know.
    splits : split by slide.
    """

    mpp: float
    classes: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    regions: tuple[StoredRegion, ...] = ()
    number: int = 0

    def split_of(self, slide: str) -> str:
        """The split of a slide, known or new."""
        held_out = len(self.splits) % HELD_OUT_EVERY == 1
        return self.splits.get(slide, "val" if held_out else "train")


def add_regions(
    known: TrainingSet, new: Sequence[StoredRegion], on_conflict: OnConflict
) -> tuple[TrainingSet, list[Conflict]]:
    """A training set with new regions; crops keep their places, areas give way to each other.

    Raises
    ------
    UsageError : two projects disagree about a nucleus, and that was to be an error.
    """
    kept, conflicts = list(known.regions), []
    for fresh in new:
        for position, old in enumerate(kept):
            both = shapely.intersection(old.region.area, fresh.region.area)
            if old.region.slide != fresh.region.slide or both.area < 1:
                continue
            if old.region.owner == fresh.region.owner:
                kept[position] = _cut(old, fresh.region.area)
                continue
            newer = fresh.region.saved >= old.region.saved
            wins = newer if on_conflict == "newest" else False
            winner, count = fresh if wins else old, _disagreement(old.region, fresh.region, both)
            conflict = Conflict(
                fresh.region.image,
                (old.region.project, fresh.region.project),
                float(both.area),
                count,
                winner.region.project,
            )
            conflicts.append(conflict)
            if on_conflict == "error" and count:
                raise UsageError(
                    f"image {conflict.image!r}",
                    f"{conflict.projects[0]} and {conflict.projects[1]} disagree about {count} "
                    "nuclei of the same region",
                    "Settle it in QuPath, or take --on-conflict newest or keep.",
                )
            if wins:
                kept[position] = _cut(old, fresh.region.area)
            else:
                fresh = _cut(fresh, old.region.area)
        kept.append(fresh)
    left = tuple(s for s in kept if s.region.area.area >= 1 and s.crops)
    return replace(known, regions=left), conflicts


def crop_rows(training_set: TrainingSet, split: str) -> list[CropRow]:
    """The crops of a split, as its manifest lists them."""
    return [
        CropRow(
            crop.name,
            crop.window.width,
            crop.window.height,
            crop.nuclei,
            training_set.mpp,
            s.region.slide,
            s.region.project,
            s.region.image,
            s.region.name,
            crop.sha256,
        )
        for s in training_set.regions
        if s.split == split
        for crop in s.crops
    ]


def _cut(stored: StoredRegion, area: BaseGeometry) -> StoredRegion:
    """A region without an area that belongs to another one."""
    region = stored.region
    left = region.without(area)
    nuclei = region.nuclei
    gone = in_region(nuclei.geometry.to_numpy(), area) & (nuclei["kind"] != OTHER).to_numpy()
    cut = replace(region, area=left, nuclei=nuclei[~gone].reset_index(drop=True))
    crops = tuple(c for c in stored.crops if left.intersects(slide_box(c.window, stored.scale)))
    return replace(stored, region=cut, crops=crops if left.area >= 1 else ())


def _disagreement(old: Region, new: Region, area: BaseGeometry) -> int:
    """How many nuclei of an area two regions see differently."""

    def inside(region: Region) -> gpd.GeoDataFrame:
        nuclei = region.nuclei[(region.nuclei["kind"] != OTHER).to_numpy()]
        nuclei = nuclei[in_region(nuclei.geometry.to_numpy(), area)]
        named = nuclei.rename(columns={"object": "id", "class": "classification"})
        return named[["id", "classification", "by", "run", "geometry"]]

    diff = compare(inside(old), inside(new))
    return int((diff["kind"] != KEPT).sum())
