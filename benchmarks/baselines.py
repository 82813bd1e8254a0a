"""What a user without a GPU would otherwise run, on the same images with the same scores.

    python benchmarks/baselines.py --data ../shared/nuclei/val
    python benchmarks/baselines.py --data ../shared/nuclei/val --method histomicstk

`skimage`: haematoxylin by colour deconvolution (Ruifrok & Johnston 2001), Otsu's threshold,
watershed of the distance to the outline. `histomicstk`: the recipe of HistomicsTK's example
of nucleus segmentation (Reinhard normalisation, colour deconvolution, Al-Kofahi's detection)
with the defaults of its command `NucleiDetection`; run it with a Python that has HistomicsTK,
this repository in PYTHONPATH. `bundled`: the model of this package. Both baselines are given
each image at 0.5 um/px or finer, which is what their defaults are for.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.corrections.evaluation import ImageResult, summarize
from pathosam_qupath.corrections.metrics import overlaps, scores
from pathosam_qupath.corrections.samples import Sample, read_samples

MPP = 0.5
"""Micrometres per pixel that the baselines' sizes are for (20x)."""

SMALLEST = 25
"""Area in such pixels: the default of HistomicsTK's command."""


def main() -> None:
    """Score one method on a folder and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--method", choices=("skimage", "histomicstk", "bundled"), default="skimage"
    )
    parser.add_argument("--mpp", type=float, default=0.25, help="of images without one")
    arguments = parser.parse_args()
    method: Callable[[NDArray[np.uint8], float], NDArray[np.int32]] = {
        "skimage": by_skimage,
        "histomicstk": by_histomicstk,
        "bundled": by_bundled_model,
    }[arguments.method]
    results, seconds, pixels = [], 0.0, 0
    for sample in read_samples(arguments.data):
        mpp = sample.mpp or arguments.mpp
        started = time.perf_counter()
        labels = method(sample.image, mpp)
        seconds += time.perf_counter() - started
        pixels += labels.size
        results.append(_scored(sample, labels))
    print(json.dumps({**summarize(results), "megapixels_per_second": pixels / 1e6 / seconds}))


def by_skimage(image: NDArray[np.uint8], mpp: float) -> NDArray[np.int32]:
    """Labels by colour deconvolution, a threshold and a watershed."""
    from scipy import ndimage
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects
    from skimage.segmentation import watershed

    scale = MPP / mpp
    haematoxylin = gaussian(rgb2hed(image)[..., 0], scale)
    mask = haematoxylin > threshold_otsu(haematoxylin)
    mask = ndimage.binary_opening(mask, iterations=max(1, round(scale)))
    mask = remove_small_holes(mask, max_size=int(SMALLEST * scale**2))
    mask = remove_small_objects(mask, max_size=int(SMALLEST * scale**2))
    depth = gaussian(ndimage.distance_transform_edt(mask), scale)
    peaks = peak_local_max(depth, min_distance=round(6 * scale), labels=mask.astype(int))
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(watershed(-depth, markers, mask=mask), np.int32)


def by_histomicstk(image: NDArray[np.uint8], mpp: float) -> NDArray[np.int32]:
    """Labels by HistomicsTK, at 20x."""
    from histomicstk.preprocessing.color_deconvolution import (
        color_deconvolution,
        stain_color_map,
    )
    from histomicstk.preprocessing.color_normalization import reinhard
    from histomicstk.segmentation.nuclear import detect_nuclei_kofahi
    from scipy import ndimage

    height, width = image.shape[:2]
    size = (round(width * mpp / MPP), round(height * mpp / MPP))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    # The reference statistics and stains of the command's defaults.
    mean, spread = (8.63234435, -0.11501964, 0.03868433), (0.57506023, 0.10403329, 0.01364062)
    normalised = reinhard(small, mean, spread)
    stains = np.array(
        [stain_color_map["hematoxylin"], stain_color_map["eosin"], stain_color_map["null"]]
    ).T
    nuclear = color_deconvolution(normalised, stains).Stains[..., 0].astype(float)
    mask = ndimage.binary_fill_holes(nuclear < 60)
    labels = detect_nuclei_kofahi(nuclear, mask, 6, 12, SMALLEST, 10)
    enlarged = cv2.resize(
        labels.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.asarray(enlarged, np.int32)


def by_bundled_model(image: NDArray[np.uint8], mpp: float) -> NDArray[np.int32]:
    """Labels by the model that comes with the package."""
    from functools import cache

    from pathosam_qupath.corrections.evaluation import segment_image
    from pathosam_qupath.model import load_model

    return segment_image(cache(load_model)("bundled", "cpu"), image, mpp)[0]


def _scored(sample: Sample, labels: NDArray[np.int32]) -> ImageResult:
    table = overlaps(sample.labels, labels)
    return ImageResult(
        name=sample.name,
        source=sample.source,
        nuclei=table.true_ids.size,
        predicted=table.predicted_ids.size,
        scores=scores(table),
        typed=0,
        right=0,
    )


if __name__ == "__main__":
    main()
