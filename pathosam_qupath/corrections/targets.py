"""The three maps that a decoder learns from an instance mask.

As in PathoSAM (and torch_em's per-object distance transform): *foreground*; *centre
distance*, the Euclidean distance to the nucleus's centre divided by its largest value in
the nucleus; *boundary distance*, one minus the distance to the outline divided by its
largest value in the nucleus. Both distances are 0 at the centre / at the innermost point,
1 at the boundary and in the background. They do not depend on scale, so they are computed
once per image and resampled with it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def touching(labels: NDArray[np.int32], reach: int = 3) -> NDArray[np.bool_]:
    """Pixels that have two nuclei within ``reach`` pixels of them (in x and in y)."""
    window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    numbers = labels.astype(np.float32)
    highest = cv2.dilate(numbers, window)
    lowest = cv2.erode(np.where(labels > 0, numbers, np.float32(np.inf)), window)
    return np.asarray((highest > 0) & (lowest < highest), np.bool_)


def target_maps(labels: NDArray[np.int32]) -> NDArray[np.float32]:
    """Foreground, centre distance and boundary distance of an instance mask.

    Parameters
    ----------
    labels : (height, width) instance ids, 0 background.

    Returns
    -------
    maps : (3, height, width) float32 in 0…1.
    """
    maps = np.ones((3, *labels.shape), np.float32)
    maps[0] = labels > 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        # One pixel of background on each side: the image border counts as outline.
        mask = np.pad(labels[box] == label, 1)
        inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        rows, columns = np.nonzero(mask)
        center_row, center_column = rows.mean(), columns.mean()
        if not mask[round(center_row), round(center_column)]:
            center_row, center_column = np.unravel_index(inside.argmax(), inside.shape)
        distance = np.hypot(rows - center_row, columns - center_column)
        rows, columns = rows + (box[0].start - 1), columns + (box[1].start - 1)
        depth = inside[mask]
        maps[1, rows, columns] = distance / max(float(distance.max()), 1e-6)
        maps[2, rows, columns] = 1.0 - depth / depth.max()
    return maps
