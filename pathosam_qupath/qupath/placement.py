"""Which annotation a nucleus goes under.

QuPath keeps the child order and the parents that a file has and resolves nothing on
load, so a detection must be written under the annotation that QuPath itself would have
put it under: of all annotations that contain its centroid, the one of smallest area.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.qupath.objects import PathObject


def smallest_containing(
    points: NDArray[np.object_] | Sequence[shapely.Point], areas: Sequence[BaseGeometry]
) -> NDArray[np.intp]:
    """Return for each point the index of the smallest area that contains it.

    Parameters
    ----------
    points : n shapely points.
    areas : k polygons or multipolygons in the same frame; anything else contains nothing.

    Returns
    -------
    index : (n,) index into ``areas``, −1 where none contains the point. A point on an
        outline is contained. Of areas of one size, the last counts (in a hierarchy read
        parents first, that is the deeper one).
    """
    points = np.asarray(points, dtype=object)
    found = np.full(len(points), -1, dtype=np.intp)
    polygons = np.asarray(areas, dtype=object)
    if not len(points) or not len(polygons):
        return found
    tree = shapely.STRtree(points)
    size = shapely.area(polygons)
    # From large to small: a later, smaller area overwrites what a larger one claimed.
    for index in sorted(range(len(polygons)), key=lambda i: (-size[i], i)):
        if size[index] > 0:
            found[tree.query(polygons[index], predicate="intersects")] = index
    return found


def smallest_holding(
    geometries: NDArray[np.object_] | Sequence[BaseGeometry], objects: Sequence[PathObject]
) -> NDArray[np.object_]:
    """Return for each nucleus the id of the annotation that it belongs under.

    Parameters
    ----------
    geometries : n shapely geometries in full-resolution pixels.
    objects : objects of the image, parents first; only its annotations are looked at,
        and of those only the ones on the first plane (z = 0, t = 0).

    Returns
    -------
    parent : (n,) ids as UUID text, None where no annotation contains the centroid (the
        object then belongs under the root): what the ``parent`` column of a detections
        frame holds.
    """
    annotations = [
        item
        for item in objects
        if item.object_type == "annotation" and item.plane.z == 0 and item.plane.t == 0
    ]
    centroids = shapely.centroid(np.asarray(geometries, dtype=object))
    index = smallest_containing(centroids, [item.geometry for item in annotations])
    ids = np.array([*(str(item.id) for item in annotations), None], dtype=object)
    parent: NDArray[np.object_] = ids[index]
    return parent
