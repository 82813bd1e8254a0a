"""What to compute of a slide: options, the tiles that regions need, their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import UsageError
from pathosam_qupath.model.interface import ModelInfo, Postprocessing
from pathosam_qupath.segmentation import apg
from pathosam_qupath.segmentation.classes import MODEL_NAMES, ClassMap
from pathosam_qupath.segmentation.objects import MARGINS
from pathosam_qupath.segmentation.polygons import TOLERANCE
from pathosam_qupath.segmentation.tiling import (
    Block,
    ScaledPixels,
    TileGrid,
    blocks,
    treated_region,
    wanted_tiles,
)
from pathosam_qupath.segmentation.watershed import smoothing_reach

Mode = Literal["ais", "apg"]
"""How nuclei are found: by the seeded watershed (AIS), or by automatic prompts (APG)."""

CONTEXT = 64
"""Scaled pixels around a region whose maps are computed too: a nucleus whose centroid lies
in the region reaches no farther."""


class SegmentableSlide(Protocol):
    """What the segmentation asks of a slide (``pathosam_qupath.slide``)."""

    @property
    def width(self) -> int:
        """Full-resolution pixels in x."""

    @property
    def height(self) -> int:
        """Full-resolution pixels in y."""

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per pixel in x and y."""

    def at(self, mpp: float, /) -> ScaledPixels:
        """The slide at another resolution."""


@dataclass(frozen=True)
class SegmentOptions:
    """How to segment. The first group changes the result, the second only speed and memory.

    Attributes
    ----------
    mode : see ``watershed`` (ais) and ``apg``.
    postprocessing : thresholds; None takes the model's.
    class_map : names of classes in the project.
    seed : ids of nuclei follow from this text and their position, so the same run gives
        the same ids. Let it name the run and the image. None gives new ids each time.
    tolerance : of the polygons, in pixels at the model's resolution.
    block : about how many such pixels a block's side has.
    batch_size : tiles per call of the network; None chooses by the device.
    network_threads : calls of the network at a time; None: one per core on the CPU, else 1.
    read_threads, postprocess_threads : None for the latter chooses by the device.
    """

    mode: Mode = "ais"
    postprocessing: Postprocessing | None = None
    class_map: ClassMap = MODEL_NAMES
    seed: str | None = None
    tolerance: float = TOLERANCE

    block: int = 1024
    batch_size: int | None = None
    network_threads: int | None = None
    read_threads: int = 2
    postprocess_threads: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            known = " or ".join(get_args(Mode))
            raise UsageError(f"mode {self.mode}", "there is no such mode", f"Give {known}.")
        for name in ("block", "batch_size", "network_threads", "read_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(name, f"{value} is not possible", "Give 1 or more.")


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """What has to be computed of a slide.

    Attributes
    ----------
    pixels : the slide at the model's resolution, ``grid`` its tiles.
    wanted : (rows, columns) bool; other tiles are background.
    region : where centroids must lie, in slide pixels; None: anywhere.
    blocks : in the order in which they are computed; a block's number is its place here.
    """

    pixels: ScaledPixels
    grid: TileGrid
    wanted: NDArray[np.bool_]
    region: BaseGeometry | None
    blocks: tuple[Block, ...]


def plan_blocks(
    slide: SegmentableSlide,
    regions: Sequence[BaseGeometry] | None,
    info: ModelInfo,
    options: SegmentOptions,
    *,
    tissue: BaseGeometry | None = None,
) -> BlockPlan:
    """What has to be computed of a slide.

    Parameters
    ----------
    regions : as for :func:`segment`.
    tissue : polygons in slide pixels; tiles that are farther from them than ``CONTEXT`` are
        background. None: no tile is.
    """
    pixels = slide.at(info.mpp)
    grid = TileGrid.of_slide((slide.width, slide.height), pixels.scale, info.tile, info.halo)
    region = None if regions is None else treated_region(regions)
    wanted = np.ones((grid.rows, grid.columns), bool)
    for area in (region, None if tissue is None else treated_region([tissue])):
        if area is not None:
            wanted &= wanted_tiles(grid, area, pixels.scale, CONTEXT)
    return BlockPlan(pixels, grid, wanted, region, wanted_blocks(grid, wanted, info, options))


def wanted_blocks(
    grid: TileGrid, wanted: NDArray[np.bool_], info: ModelInfo, options: SegmentOptions
) -> tuple[Block, ...]:
    """Blocks that hold wanted tiles, with what each needs around itself."""
    parameters = options.postprocessing or info.postprocessing
    margin = MARGINS[-1] + 2 * smoothing_reach(parameters)
    if options.mode == "apg":
        margin = apg.MARGIN
    return tuple(blocks(grid, wanted, side=options.block, margin=margin))
