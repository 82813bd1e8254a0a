"""What a run will take, before it is begun: tiles, time, disk. Estimates, and called so."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathosam_qupath.disk_space import bytes_needed
from pathosam_qupath.errors import RunError
from pathosam_qupath.model.interface import ModelInfo, Postprocessing
from pathosam_qupath.run_record import open_run, run_ids
from pathosam_qupath.segmentation.block_plan import CONTEXT
from pathosam_qupath.segmentation.tiling import TileGrid, treated_region, wanted_tiles

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.run_plan import EntryPlan

NUCLEI_PER_MM2 = 6000.0
"""More than most tissues have on average; for the disk."""

_AROUND_NETWORK = 1.25
"""Whole time over the network's alone, on a calibration; the stages overlap."""


@dataclass(frozen=True)
class Rate:
    """How fast tiles are treated.

    Attributes
    ----------
    info : of the model that this is the rate of.
    seconds : per tile, everything included; ``source`` says where that comes from.
    """

    info: ModelInfo
    seconds: float
    source: str


@dataclass(frozen=True, eq=False)
class Estimate:
    """What treating one image will take.

    Attributes
    ----------
    tiles, seconds : None where the image is not treated or nothing is known of the model.
    source : what the time rests on.
    disk : bytes at most, while the run goes on.
    """

    plan: EntryPlan
    tiles: int | None
    seconds: float | None
    disk: int
    source: str | None = None

    def summary(self) -> dict[str, object]:
        """The plan and the estimate in words and numbers, for machines."""
        found = {
            "tiles": self.tiles,
            "estimated_seconds": self.seconds,
            "estimated_from": self.source,
            "disk": self.disk,
        }
        return {**self.plan.summary(), **found}


def estimate(plans: Sequence[EntryPlan], rate: Rate | None) -> list[Estimate]:
    """What each image of a plan will take."""
    return [_of_image(plan, rate) for plan in plans]


def earlier_rate(project_folder: Path, model_name: str, device: str | None = None) -> Rate | None:
    """The rate of the latest run of a project with a model; None where there was none."""
    for run in reversed(run_ids(project_folder)):
        try:
            manifest = open_run(project_folder, run).manifest
        except RunError:
            continue  # `runs` tells of a damaged record; an estimate can do without
        done = [e for e in manifest.entries if e.tiles and e.seconds]
        same = manifest.model.get("name") == model_name
        if same and done and device in (None, manifest.model.get("device")):
            seconds = sum(e.seconds for e in done) / sum(e.tiles for e in done)
            return Rate(_info(dict(manifest.model)), seconds, f"the rate of run {run}")
    return None


def calibrated_rate(model: NucleusModel) -> Rate:
    """The rate of a model's network on noise, and a share for the rest."""
    seconds = tile_seconds(model)
    # The call used all cores for one tile or one of them; a run keeps all of them busy.
    if model.device == "cpu" and _one_core():
        seconds /= os.cpu_count() or 1
    return Rate(model.info, seconds * _AROUND_NETWORK, "a short trial of the network")


def workers_rate(info: ModelInfo, seconds: Sequence[float]) -> Rate:
    """The rate of workers that compute at a time.

    Parameters
    ----------
    seconds : that each one's network takes for a tile (:func:`tile_seconds`).
    """
    together = _AROUND_NETWORK / sum(1 / one for one in seconds)
    number = "one worker" if len(seconds) == 1 else f"the {len(seconds)} workers that are there"
    return Rate(info, together, f"a short trial on {number}")


def tile_seconds(model: NucleusModel) -> float:
    """How long the network takes for a tile of noise, once it is warm."""
    side = model.info.tile
    tile = np.random.default_rng(0).integers(90, 240, (1, side, side, 3)).astype(np.uint8)
    model.predict(tile)
    begun = time.perf_counter()
    model.predict(tile)
    return time.perf_counter() - begun


def _one_core() -> bool:
    torch = sys.modules.get("torch")
    return torch is None or torch.get_num_threads() == 1


def _of_image(plan: EntryPlan, rate: Rate | None) -> Estimate:
    area = plan.area
    if plan.error is not None or plan.nothing is not None or area is None:
        return Estimate(plan, None, None, 0)
    disk = bytes_needed(plan.entry.data_path, area * 1e-6 * NUCLEI_PER_MM2)
    if rate is None:
        return Estimate(plan, None, None, disk)
    tiles = _tiles(plan, rate.info)
    return Estimate(plan, tiles, tiles * rate.seconds, disk, rate.source)


def _tiles(plan: EntryPlan, info: ModelInfo) -> int:
    """How many tiles the network will see of an image."""
    assert plan.size is not None and plan.mpp is not None and plan.regions is not None
    scale = (info.mpp / plan.mpp[0], info.mpp / plan.mpp[1])
    grid = TileGrid.of_slide(plan.size, scale, info.tile, info.halo)
    wanted = np.ones((grid.rows, grid.columns), bool)
    for area in (plan.regions.union(), plan.tissue):
        if area is not None:
            wanted &= wanted_tiles(grid, treated_region([area]), scale, CONTEXT)
    return int(wanted.sum())


def _info(stored: dict[str, Any]) -> ModelInfo:
    """A model's description as a manifest keeps it."""
    known = {f.name: stored[f.name] for f in fields(ModelInfo) if f.name in stored}
    known["classes"] = tuple(known.get("classes", ()))
    known["colors"] = tuple(tuple(color) for color in known.get("colors", ()))
    thresholds = known.pop("postprocessing", {})
    names = {f.name for f in fields(Postprocessing)}
    chosen = {name: value for name, value in thresholds.items() if name in names}
    return ModelInfo(**known, postprocessing=Postprocessing(**chosen))
