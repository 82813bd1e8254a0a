from __future__ import annotations

import numpy as np
from synthetic_nuclei import synthetic_image

from pathosam_qupath.corrections.targets import target_maps
from pathosam_qupath.model.interface import Postprocessing
from pathosam_qupath.segmentation.watershed import instances


def test_distances_are_zero_at_the_centre_and_one_outside():
    labels = np.zeros((40, 50), np.int32)
    labels[10:31, 10:31] = 5
    foreground, center, boundary = target_maps(labels)
    np.testing.assert_array_equal(foreground, labels > 0)
    assert center[20, 20] == 0
    assert center[10, 10] == 1
    assert boundary[20, 20] == 0
    # The outermost of eleven rings is one pixel deep.
    np.testing.assert_allclose(boundary[10, 10:31], 1 - 1 / 11)
    outside = labels == 0
    assert (center[outside] == 1).all()
    assert (boundary[outside] == 1).all()


def test_the_centre_of_a_bent_nucleus_lies_in_it():
    labels = np.zeros((30, 30), np.int32)
    labels[5:25, 5:9] = 1
    labels[21:25, 5:25] = 1
    _, center, _ = target_maps(labels)
    row, column = np.unravel_index(center.argmin(), center.shape)
    assert labels[row, column] == 1


def test_touching_nuclei_have_a_boundary_between_them():
    labels = np.zeros((20, 41), np.int32)
    labels[2:18, 0:20] = 1
    labels[2:18, 20:40] = 2
    _, _, boundary = target_maps(labels)
    assert (boundary[10, 19:21] > 0.8).all()


def test_the_watershed_gives_the_nuclei_back():
    _, labels, _ = synthetic_image(3, 256, 40)
    gentle = Postprocessing(foreground_smoothing=0.5, distance_smoothing=0.5)
    found = instances(target_maps(labels.astype(np.int32)), gentle)
    assert found.max() == labels.max()
    for label in range(1, int(labels.max()) + 1):
        values, counts = np.unique(found[labels == label], return_counts=True)
        best = values[counts.argmax()]
        iou = counts.max() / ((labels == label) | (found == best)).sum()
        assert best > 0
        assert iou > 0.8
