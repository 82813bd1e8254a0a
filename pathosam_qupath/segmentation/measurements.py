"""Shape measurements of polygons under QuPath's names and definitions, in bulk.

A nucleus measured here and one measured by QuPath's "Add shape features" carry the same
columns, so that a classifier or a script made for one works on the other. QuPath computes
them with JTS on the polygon scaled to micrometres: the maximum diameter is that of the
smallest enclosing circle, the minimum diameter the smallest distance between two parallel
lines around the polygon; solidity is the area over that of the convex hull.
"""

from __future__ import annotations

import math

import numpy as np
import shapely
from numpy.typing import NDArray

_PAIRS_AT_ONCE = 1 << 15
"""Hull vertices times hull edges held at once while the minimum diameters are found: so many
stay in a processor's cache."""

_PADDING = 2
"""Vertices more than a hull has to which it may be padded."""


def names(*, calibrated: bool = True) -> tuple[str, ...]:
    """The measurements' names, in QuPath's order; in pixels where there is no µm/px."""
    unit = "µm" if calibrated else "px"
    return (
        f"Area {unit}^2",
        f"Length {unit}",
        "Circularity",
        "Solidity",
        f"Max diameter {unit}",
        f"Min diameter {unit}",
    )


def shape_measurements(
    polygons: NDArray[np.object_], mpp: tuple[float, float] | None
) -> dict[str, NDArray[np.float64]]:
    """Measurements of polygons.

    Parameters
    ----------
    polygons : (n,) shapely polygons without holes, in slide pixels.
    mpp : µm per slide pixel in x and y; None where unknown.

    Returns
    -------
    name → (n,) float64: areas in µm², lengths and diameters in µm (or px² and px);
        circularity 4π·area/length² and solidity without unit.
    """
    if mpp is not None:
        polygons = np.asarray(shapely.transform(polygons, lambda xy: xy * np.array(mpp)))
    hulls = shapely.convex_hull(polygons)
    area, length = shapely.area(polygons), shapely.length(polygons)
    values = (
        area,
        length,
        4 * math.pi * area / length**2,
        area / shapely.area(hulls),
        2 * shapely.minimum_bounding_radius(hulls),
        min_widths(hulls),
    )
    return dict(zip(names(calibrated=mpp is not None), values, strict=True))


def min_widths(hulls: NDArray[np.object_]) -> NDArray[np.float64]:
    """Smallest distance between two parallel lines that hold each convex polygon.

    One of the two lines runs along an edge, so every edge is tried.
    """
    coordinates, owner = shapely.get_coordinates(hulls, return_index=True)
    counts = np.bincount(owner, minlength=len(hulls))
    starts = np.cumsum(counts) - counts
    widths = np.empty(len(hulls))
    # Those of a like number of vertices are looked at together: they are padded least.
    order = np.argsort(counts, kind="stable")
    low = 0
    while low < len(order):
        most = int(counts[order[low]]) + _PADDING
        high = min(
            low + max(1, _PAIRS_AT_ONCE // most**2),
            int(np.searchsorted(counts[order], most, side="right")),
        )
        some = order[low:high] if high > low else order[low : low + 1]
        most = int(counts[some].max())
        at = np.minimum(np.arange(most), counts[some, None] - 1) + starts[some, None]
        widths[some] = _min_widths(coordinates[at, 0], coordinates[at, 1])
        low += len(some)
    return widths


def _min_widths(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Widths of closed rings, (n, vertices) each, padded by their last vertex."""
    along_x, along_y = np.diff(x, axis=1), np.diff(y, axis=1)
    # (n, edges, vertices): the vector product of an edge and the way from its start.
    cross = y[:, None, :] - y[:, :-1, None]
    cross *= along_x[:, :, None]
    across = x[:, None, :] - x[:, :-1, None]
    across *= along_y[:, :, None]
    cross -= across
    lengths = np.sqrt(along_x**2 + along_y**2)
    farthest = np.abs(cross, out=cross).max(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        widths = np.where(lengths > 0, farthest / lengths, np.inf).min(axis=1)
    return np.asarray(widths, np.float64)
