"""Where another model sees other nuclei than a run wrote: what is worth segmenting again.

What the runs of an image treated, less what was reviewed, is divided into fields. The new model
looks at the middle of each, or at all of it, and its nuclei are compared with the recorded ones
there (or with those of another model). A field's *change* is the share of the nuclei, of both
together, that have no counterpart with an IoU of at least one half and the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.corrections.evaluation import segment_image
from pathosam_qupath.corrections.masks import Window, draw_masks, slide_box
from pathosam_qupath.corrections.metrics import matched_pairs, overlaps
from pathosam_qupath.corrections.suggesting import field_windows
from pathosam_qupath.segmentation.classes import MODEL_NAMES, ClassMap
from pathosam_qupath.segmentation.focus import is_blank

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.slide import ScaledSlide

FIELD = 512
"""Side of a field in pixels of the model's resolution."""

LOOK = 256
"""Side of its middle, which the model looks at."""

MARGIN = 64
"""Pixels around it, at least, that the model sees too."""

_GRID = 32
"""Windows begin at multiples of this, as tiles do: networks with strides see them alike."""

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
    nuclei : of both sides together, in what was looked at.
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
    """Nuclei of a window as an image: labels 1…n (height, width), and the class of each."""

    labels: NDArray[np.int32]
    classes: Sequence[str | None]


Look = Callable[[Window], Labelled]


def changed_fields(
    area: BaseGeometry,
    scale: tuple[float, float],
    before: Look,
    after: Look,
    *,
    thorough: bool = False,
    seen: Callable[[int, int], None] | None = None,
) -> list[FieldChange]:
    """How far each field of an area changes.

    Parameters
    ----------
    area : in slide pixels.
    scale : (x, y) slide pixels per pixel of the model's resolution.
    before, after : the nuclei of a window; asked for windows with a margin.
    thorough : look at all of each field, not at its middle.
    seen : called with the number of fields done and to do.
    """
    windows = field_windows(area, scale, FIELD, covered=_TOUCHED)
    found = []
    for number, window in enumerate(windows, start=1):
        inner = window if thorough else _middle(window)
        outer = _with_margin(inner)
        sides = before(outer), after(outer)
        counted = [_inside(side.labels, outer, inner, scale, area) for side in sides]
        found.append(FieldChange(window, *_differing(*sides, counted)))
        if seen is not None:
            seen(number, len(windows))
    return found


def looked_at_by(
    model: NucleusModel, pixels: ScaledSlide, mpp: float, class_map: ClassMap | None
) -> Look:
    """What a model finds in a window.

    Parameters
    ----------
    pixels : the slide at ``mpp`` µm/px.
    class_map : what its classes are called in the project.
    """
    names = class_map or MODEL_NAMES

    def look(window: Window) -> Labelled:
        image = pixels.read(window.x, window.y, window.width, window.height)
        if is_blank(image):
            return Labelled(np.zeros(image.shape[:2], np.int32), ())
        labels, classes = segment_image(model, image, mpp)
        known = [model.info.classes[i] for i in classes] if model.info.classes else []
        kept = np.array([name not in names.dropped for name in known], bool)
        if len(kept) and not kept.all():
            labels = np.where(np.r_[True, kept][labels], labels, np.int32(0))
        called: list[str | None] = [names.name(name) for name in known]
        called = called or [None] * int(labels.max())
        return Labelled(labels, called)

    return look


def as_recorded(nuclei: gpd.GeoDataFrame, scale: tuple[float, float]) -> Look:
    """What runs wrote into a window.

    Parameters
    ----------
    nuclei : in slide pixels, with the column ``classification``.
    scale : (x, y) slide pixels per pixel of the model's resolution.
    """
    shapes = nuclei.geometry.to_numpy()
    classes = nuclei["classification"].to_numpy()
    tree = shapely.STRtree(shapes)

    def look(window: Window) -> Labelled:
        box = slide_box(window, scale)
        inside = np.sort(tree.query(box, predicate="intersects"))
        masks = draw_masks(window, scale, box, list(shapes[inside]), [0] * len(inside))
        drawn = [classes[inside[i]] for i in masks.drawn]
        called = [name if isinstance(name, str) else None for name in drawn]
        return Labelled(masks.labels.astype(np.int32), called)

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


def _middle(window: Window) -> Window:
    width, height = min(LOOK, window.width), min(LOOK, window.height)
    x, y = window.x + (window.width - width) // 2, window.y + (window.height - height) // 2
    return Window(x, y, width, height)


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


def _with_margin(inner: Window) -> Window:
    """A window and what the model sees around it."""
    left, top = ((at - MARGIN) // _GRID * _GRID for at in (inner.x, inner.y))
    width = -(-(inner.x + inner.width + MARGIN - left) // _GRID) * _GRID
    height = -(-(inner.y + inner.height + MARGIN - top) // _GRID) * _GRID
    return Window(left, top, width, height)


def _inside(
    labels: NDArray[np.int32],
    seen: Window,
    inner: Window,
    scale: tuple[float, float],
    area: BaseGeometry,
) -> set[int]:
    """Labels of the nuclei of ``seen`` whose centre lies in ``inner`` and in the area."""
    rows, columns = np.nonzero(labels)
    ids = labels[rows, columns]
    count = np.bincount(ids)
    some = np.maximum(count, 1)
    x = seen.x + np.bincount(ids, columns) / some + 0.5
    y = seen.y + np.bincount(ids, rows) / some + 0.5
    found = (count > 0) & (x >= inner.x) & (x < inner.x + inner.width)
    found &= (y >= inner.y) & (y < inner.y + inner.height)
    shapely.prepare(area)
    found &= shapely.contains_xy(area, x * scale[0], y * scale[1])
    return {int(i) for i in np.flatnonzero(found)}
