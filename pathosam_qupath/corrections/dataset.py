"""Training crops: samples kept in memory, each batch a function of the seed and the step.

Images are kept as small pyramids (halved by area averaging), so that a crop of any
magnification is one ``warpAffine`` without aliasing; the target maps are warped along.
As a batch depends on nothing but ``(seed, step)``, a training run that is interrupted and
resumed sees the same batches as one that is not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.corrections.augmentation import (
    AugmentationConfig,
    Density,
    random_affine,
    random_colors,
    random_optics,
    random_scale,
    random_warp,
)
from pathosam_qupath.corrections.copy_paste import with_pasted_nuclei
from pathosam_qupath.corrections.samples import IGNORED_TYPE, Sample, median_diameter
from pathosam_qupath.corrections.targets import target_maps, touching
from pathosam_qupath.errors import UsageError
from pathosam_qupath.segmentation.opencv import without_own_threads

#: What ``cv2.remap`` takes where its first map holds both coordinates. Its stubs ask for an
#: array, but an empty one makes OpenCV 5.0 hang now and then.
_ONE_MAP: Any = None


@dataclass(frozen=True)
class Batch:
    """One step's crops.

    Attributes
    ----------
    images : (n, side, side, 3) uint8 RGB.
    maps : (n, 4, side, side) uint8: foreground, centre distance, boundary distance (0…1
        as 0…255), and what a pixel counts: 0 outside of the image or to be ignored, 128
        inside, 255 between nuclei that touch.
    types : (n, side, side) uint8: class index, or 255 where none is to be learnt.
    labels : (n, side, side) uint16 instance ids, 0 background and outside of the image.
    """

    images: NDArray[np.uint8]
    maps: NDArray[np.uint8]
    types: NDArray[np.uint8]
    labels: NDArray[np.uint16]


@dataclass(frozen=True)
class _Level:
    image: NDArray[np.uint8]
    maps: NDArray[np.uint8]
    types: NDArray[np.uint8] | None
    labels: NDArray[np.uint16]
    mpp: float
    density: Density


class CropSource:
    """Random crops of many samples at one resolution.

    Parameters
    ----------
    samples : the training samples.
    mpp : micrometres per pixel of the crops.
    side : of a square crop, in pixels.
    class_of_type : class index per type id; other types teach no class.
    weights : relative frequency of each source; sources that are not named weigh 1.
    assumed_diameter_um : nuclear diameter that gives samples without a pixel size one.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        mpp: float,
        side: int,
        class_of_type: Mapping[int, int],
        weights: Mapping[str, float],
        assumed_diameter_um: float,
        augmentation: AugmentationConfig,
    ) -> None:
        without_own_threads()
        self.mpp = mpp
        self.side = side
        self.augmentation = augmentation
        lookup = np.full(256, IGNORED_TYPE, np.uint8)
        for type_id, index in class_of_type.items():
            lookup[type_id] = index
        self._pyramids: dict[str, list[list[_Level]]] = {}
        self._pasted: dict[str, list[list[_Level]]] = {}
        self.class_pixels = np.zeros(max(class_of_type.values(), default=-1) + 1, np.int64)
        for sample in samples:
            diameter = median_diameter(sample.labels)
            size = sample.mpp or (assumed_diameter_um / diameter if diameter else None)
            if size is None:
                raise UsageError(
                    sample.name,
                    "it has no pixel size, and no nuclei to estimate one from",
                    "Add the column `mpp` to the manifest.",
                )
            pyramid = _pyramid(sample, size, lookup)
            self._pyramids.setdefault(sample.source, []).append(pyramid)
            if augmentation.paste_probability > 0:
                crowded = with_pasted_nuclei(sample, np.random.default_rng(sample.labels.sum()))
                crowded_pyramid = _pyramid(crowded, size, lookup)
                self._pasted.setdefault(sample.source, []).append(crowded_pyramid)
            types = pyramid[0].types
            if types is not None:
                known = types[(types != IGNORED_TYPE) & (pyramid[0].maps[..., 0] > 0)]
                self.class_pixels += np.bincount(known, minlength=self.class_pixels.size)
        if not self._pyramids:
            raise UsageError("training data", "no sample was found", "Give folders with images.")
        self.sources = sorted(self._pyramids)
        self._densities = [p[0].density for s in self.sources for p in self._pyramids[s]]
        chances = np.array([weights.get(source, 1.0) for source in self.sources])
        self._chances = chances / chances.sum()

    def augmented(self, augmentation: AugmentationConfig) -> CropSource:
        """The same samples with another augmentation; nuclei are pasted only if they were."""
        other = copy.copy(self)
        other.augmentation = augmentation
        if not self._pasted:
            other.augmentation = replace(augmentation, paste_probability=0.0)
        return other

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """The batch of a step: the same for the same seed and step."""
        rng = np.random.default_rng([seed, step])
        crops = [self._crop(rng) for _ in range(size)]
        images, maps, types, labels = zip(*crops, strict=True)
        return Batch(
            np.stack(images),
            np.stack(maps).transpose(0, 3, 1, 2),
            np.stack(types),
            np.stack(labels),
        )

    def _crop(
        self, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
        source = self.sources[rng.choice(len(self.sources), p=self._chances)]
        pasted = rng.random() < self.augmentation.paste_probability
        pyramids = (self._pasted if pasted else self._pyramids)[source]
        pyramid = pyramids[rng.integers(len(pyramids))]
        wanted = self.mpp / random_scale(rng, self.augmentation)
        # The coarsest level that is at most a quarter coarser than the crop.
        fine_enough = [level for level in pyramid if level.mpp <= 1.25 * wanted]
        level = fine_enough[-1] if fine_enough else pyramid[0]
        height, width = level.image.shape[:2]
        matrix = random_affine(
            rng, self.augmentation, level.mpp / wanted, (height, width), self.side
        )
        at = random_warp(rng, self.augmentation, matrix, self.side)
        linear, nearest = cv2.INTER_LINEAR, cv2.INTER_NEAREST
        warped = cv2.remap(level.image, at, _ONE_MAP, linear, borderMode=cv2.BORDER_REFLECT_101)
        image = np.asarray(warped, np.uint8)
        maps = np.asarray(cv2.remap(level.maps, at, _ONE_MAP, linear), np.uint8)
        types = np.full((self.side, self.side), IGNORED_TYPE, np.uint8)
        if level.types is not None:
            warped = cv2.remap(level.types, at, _ONE_MAP, nearest, borderValue=IGNORED_TYPE)
            types = np.asarray(warped, np.uint8)
        labels = np.asarray(cv2.remap(level.labels, at, _ONE_MAP, nearest), np.uint16)
        if rng.random() < self.augmentation.color_probability:
            other = self._densities[rng.integers(len(self._densities))]
            image = random_colors(rng, self.augmentation, image, pyramid[0].density, other)
        return random_optics(rng, self.augmentation, image), maps, types, labels


def _pyramid(sample: Sample, mpp: float, class_lookup: NDArray[np.uint8]) -> list[_Level]:
    image = sample.image
    maps = np.empty((*sample.labels.shape, 4), np.uint8)
    maps[..., :3] = (target_maps(sample.labels) * 255 + 0.5).transpose(1, 2, 0)
    maps[..., 3] = np.where(touching(sample.labels), 255, 128)
    if sample.ignore is not None:
        maps[sample.ignore, 3] = 0
    types = None
    if sample.types is not None:
        types = np.where(
            (sample.labels > 0) & (maps[..., 3] > 0), class_lookup[sample.types], IGNORED_TYPE
        )
    labels = sample.labels.astype(np.uint16)
    density = Density.of(image)
    levels = [_Level(image, maps, types, labels, mpp, density)]
    while min(image.shape[:2]) >= 64 and len(levels) < 4:
        size = (image.shape[1] // 2, image.shape[0] // 2)
        # An odd last row or column is cut off, so that pixels stay aligned.
        even = (slice(size[1] * 2), slice(size[0] * 2))
        image = np.asarray(cv2.resize(image[even], size, interpolation=cv2.INTER_AREA), np.uint8)
        maps = np.asarray(cv2.resize(maps[even], size, interpolation=cv2.INTER_AREA), np.uint8)
        types = None if types is None else np.ascontiguousarray(types[even][::2, ::2])
        labels = np.ascontiguousarray(labels[even][::2, ::2])
        levels.append(_Level(image, maps, types, labels, levels[-1].mpp * 2, density))
    return levels
