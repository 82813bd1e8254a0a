"""Where another model sees other nuclei than a run wrote: what is worth segmenting again.

What the runs of an image treated, less what was reviewed, is segmented with the new model as a
run would do it, and divided into fields. A field's *change* is the share of the nuclei, of both
sides together, that have no counterpart with an IoU of at least one half and the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.corrections.masks import Window, draw_masks, slide_box
from pathosam_qupath.corrections.metrics import matched_pairs, overlaps
from pathosam_qupath.corrections.suggesting import field_windows
from pathosam_qupath.segmentation.classes import MODEL_NAMES, ClassMap
from pathosam_qupath.segmentation.pipeline import (
    SegmentableSlide,
    SegmentOptions,
    iter_segment,
)

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.model.interface import NucleusModel

FIELD = 512
"""Side of a field in pixels of the model's resolution."""

MARGIN = 32
"""Pixels around it in which counterparts of its nuclei are looked for."""

FEWEST = 3
"""So many nuclei have to differ at least: one more or less is no change of a field."""


_TOUCHED = 0.01
"""Share of a field that has to lie in the area: what is hardly touched is not looked at."""


@dataclass(frozen=True)
class FieldChange:
    """How far a field changes.

    Attributes
    ----------
    window : the field, in pixels at the model's resolution.
    nuclei : of both sides together.
    differing : those without a counterpart.
    """

    window: Window
    nuclei: int
    differing: int

    @property
    def change(self) -> float:
        """Share of the nuclei that differ, 0…1; 0 where too few do."""
        return self.differing / self.nuclei if self.differing >= FEWEST else 0.0


@dataclass(frozen=True, eq=False)
class Labelled:
    """Nuclei of a window as an image.

    Attributes
    ----------
    labels : (height, width), 1…n.
    classes : of each.
    centres : (n, 2) x and y of each, in slide pixels.
    """

    labels: NDArray[np.int32]
    classes: Sequence[str | None]
    centres: NDArray[np.float64]


Look = Callable[[Window], Labelled]


def changed_fields(
    area: BaseGeometry, scale: tuple[float, float], before: Look, after: Look
) -> list[FieldChange]:
    """How far each field of an area changes.

    Parameters
    ----------
    area : in slide pixels.
    scale : (x, y) slide pixels per pixel of the model's resolution.
    before, after : the nuclei of a window; asked for fields with a margin.
    """
    shapely.prepare(area)
    found = []
    for window in field_windows(area, scale, FIELD, covered=_TOUCHED):
        field = slide_box(window, scale)
        sides = before(_with_margin(window)), after(_with_margin(window))
        counted = [_inside(side.centres, field, area) for side in sides]
        found.append(FieldChange(window, *_differing(*sides, counted)))
    return found


def found_by(
    model: NucleusModel,
    slide: SegmentableSlide,
    area: BaseGeometry,
    class_map: ClassMap | None,
    seen: Callable[[int, int], None] | None = None,
) -> gpd.GeoDataFrame:
    """What a run with a model would find in an area and close to it.

    Parameters
    ----------
    area : in slide pixels.
    class_map : what the model's classes are called in the project.
    seen : called with the number of tiles done and to do.

    Returns
    -------
    Outlines in slide pixels, with the column ``classification``.
    """
    import geopandas as gpd
    import pandas as pd

    around = shapely.buffer(area, MARGIN * max(slide.at(model.info.mpp).scale))
    parts = iter_segment(
        slide,
        [around],
        model,
        options=SegmentOptions(class_map=class_map or MODEL_NAMES),
        progress=None if seen is None else lambda p: seen(p.tiles_done, p.tiles_total),
    )
    # Of a whole slide the measurements would take most of the memory.
    kept = [part[["classification", "geometry"]] for part in parts if len(part)]
    if not kept:
        return gpd.GeoDataFrame({"classification": [], "geometry": []}, geometry="geometry")
    return gpd.GeoDataFrame(pd.concat(kept, ignore_index=True), geometry="geometry")


def drawn_in(nuclei: gpd.GeoDataFrame, scale: tuple[float, float]) -> Look:
    """The nuclei of any window.

    Parameters
    ----------
    nuclei : in slide pixels, with the column ``classification``.
    scale : (x, y) slide pixels per pixel.
    """
    shapes = nuclei.geometry.to_numpy()
    classes = nuclei["classification"].to_numpy()
    middle = shapely.centroid(shapes)
    centres = np.column_stack([shapely.get_x(middle), shapely.get_y(middle)])
    tree = shapely.STRtree(shapes)

    def look(window: Window) -> Labelled:
        box = slide_box(window, scale)
        inside = np.sort(tree.query(box, predicate="intersects"))
        masks = draw_masks(window, scale, box, list(shapes[inside]), [0] * len(inside))
        drawn = inside[list(masks.drawn)]
        called = [name if isinstance(name, str) else None for name in classes[drawn]]
        return Labelled(masks.labels.astype(np.int32), called, centres[drawn])

    return look


def changed_area(
    changes: Collection[FieldChange],
    threshold: float,
    scale: tuple[float, float],
    area: BaseGeometry,
) -> BaseGeometry:
    """The fields that change by more than a threshold, cut to an area of the slide."""
    boxes = [slide_box(c.window, scale) for c in changes if c.change > threshold]
    return shapely.intersection(shapely.union_all(boxes), area)


def _differing(before: Labelled, after: Labelled, counted: Sequence[set[int]]) -> tuple[int, int]:
    """Of the nuclei that count on both sides: how many there are, and how many are alone."""
    table = overlaps(before.labels, after.labels)
    same: tuple[set[int], set[int]] = (set(), set())
    for pair in matched_pairs(table):
        old = int(table.true_ids[table.true[pair]])
        new = int(table.predicted_ids[table.predicted[pair]])
        if before.classes[old - 1] == after.classes[new - 1]:
            same[0].add(old)
            same[1].add(new)
    alone = sum(len(ids - matched) for ids, matched in zip(counted, same, strict=True))
    return sum(len(ids) for ids in counted), alone


def _with_margin(window: Window) -> Window:
    """A window and what is compared around it."""
    side = 2 * MARGIN
    return Window(window.x - MARGIN, window.y - MARGIN, window.width + side, window.height + side)


def _inside(centres: NDArray[np.float64], field: BaseGeometry, area: BaseGeometry) -> set[int]:
    """Labels of the nuclei whose centre lies in a field and in the area."""
    left, top, right, bottom = field.bounds
    x, y = centres[:, 0], centres[:, 1]
    # A centre on the border between two fields is the right or lower one's.
    found = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    found &= shapely.contains_xy(area, x, y)
    return {int(i) + 1 for i in np.flatnonzero(found)}
