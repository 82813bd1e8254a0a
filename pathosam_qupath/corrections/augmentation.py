"""Random changes of a training crop: geometry in one resampling, stain and optics after.

Stain and brightness are changed in optical density (Beer-Lambert; Ruifrok & Johnston
2001): a jitter of the haematoxylin, eosin and third components, a gamma, and a shift of
the density are together one 3 x 3 matrix and an offset, so they cost one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

#: Optical densities (red, green, blue) of haematoxylin, eosin and DAB, one per row, from
#: Ruifrok & Johnston, Anal Quant Cytol Histol 23 (2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1.0) / 256.0)


@dataclass(frozen=True)
class AugmentationConfig:
    """How strongly crops are changed; probabilities are per crop.

    Attributes
    ----------
    paste_probability : of a crop of the image with copies of its own nuclei.
    scale : bounds of the random magnification.
    scale_sigma : standard deviation of its logarithm (base e), clipped to the bounds.
    stain : relative jitter of each stain's amount.
    stain_offset : additive jitter of each stain's amount, in optical density.
    mixing : jitter of the entries of the colour matrix, for other scanners and stains.
    exchange : how far, at most, a crop's mean and spread of density (red, green, blue) go to
        those of another training image (Reinhard et al. 2001, in optical density).
    gamma : bounds of the factor on optical density (low is pale, high is dark).
    brightness : largest shift of all optical densities.
    elastic : standard deviation of the displacements, in pixels of the crop, that are drawn
        every sixth of its side and smoothly interpolated.
    """

    paste_probability: float = 0.15
    scale: tuple[float, float] = (0.5, 2.0)
    scale_sigma: float = 0.3
    stretch: float = 0.1
    stain: float = 0.25
    stain_offset: float = 0.05
    mixing: float = 0.04
    exchange: float = 1.0
    exchange_probability: float = 0.25
    gamma: tuple[float, float] = (0.65, 1.6)
    brightness: float = 0.12
    color_probability: float = 0.8
    elastic_probability: float = 0.2
    elastic: float = 4.0
    blur_probability: float = 0.25
    blur_sigma: float = 1.5
    rescan_probability: float = 0.15
    noise_probability: float = 0.3
    noise_sigma: float = 12.0
    jpeg_probability: float = 0.3
    jpeg_quality: tuple[int, int] = (30, 95)


def random_affine(
    rng: np.random.Generator,
    config: AugmentationConfig,
    scale: float,
    image_size: tuple[int, int],
    side: int,
) -> NDArray[np.float64]:
    """A matrix (2, 3) from pixels of an image to pixels of a crop, for ``cv2.warpAffine``.

    Parameters
    ----------
    scale : crop pixels per image pixel, the random magnification included.
    image_size : (height, width).
    side : of the square crop.
    """
    angle = rng.uniform(0, 2 * np.pi)
    stretch = np.exp(rng.uniform(-config.stretch, config.stretch))
    flip = rng.choice((-1.0, 1.0))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.diag([scale * stretch * flip, scale / stretch])
    # The crop's centre: anywhere in the image from which the crop lies mostly inside.
    height, width = image_size
    margin = 0.4 * side / scale
    center = [
        rng.uniform(min(margin, size / 2), max(size - margin, size / 2)) for size in (width, height)
    ]
    offset = np.full(2, (side - 1) / 2) - linear @ np.asarray(center)
    return np.hstack([linear, offset[:, None]])


def random_scale(rng: np.random.Generator, config: AugmentationConfig) -> float:
    """The random magnification of one crop."""
    return float(np.clip(np.exp(rng.normal(0.0, config.scale_sigma)), *config.scale))


def random_warp(
    rng: np.random.Generator,
    config: AugmentationConfig,
    matrix: NDArray[np.float64],
    side: int,
) -> NDArray[np.float32]:
    """Where in the image each pixel of a crop lies: :func:`random_affine` and elastic.

    Returns
    -------
    positions : (side, side, 2) x and y, for ``cv2.remap``.
    """
    inverse = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]
    y, x = np.mgrid[:side, :side].astype(np.float32)
    if rng.random() < config.elastic_probability:
        coarse = rng.normal(0.0, config.elastic, (7, 7, 2)).astype(np.float32)
        shifts = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        x, y = x + shifts[..., 0], y + shifts[..., 1]
    positions = np.stack([x, y, np.ones_like(x)], axis=-1) @ inverse.T.astype(np.float32)
    return np.ascontiguousarray(positions, np.float32)


@dataclass(frozen=True)
class Density:
    """Mean and standard deviation of an image's optical densities, (3,) each."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def of(cls, image: NDArray[np.uint8]) -> Density:
        """Those of an RGB image (h, w, 3)."""
        density = _DENSITY[image].reshape(-1, 3).astype(np.float64)
        return cls(density.mean(axis=0), density.std(axis=0) + 1e-3)


def random_colors(
    rng: np.random.Generator,
    config: AugmentationConfig,
    image: NDArray[np.uint8],
    own: Density,
    other: Density,
) -> NDArray[np.uint8]:
    """Change stain amounts, gamma and brightness of an RGB crop (h, w, 3).

    Parameters
    ----------
    own, other : densities of the image that the crop is of, and of another one.
    """
    matrix, offset = np.eye(3), np.zeros(3)
    if rng.random() < config.exchange_probability:
        share = rng.uniform(0.0, config.exchange)
        ratio = np.clip(other.spread / own.spread, 0.5, 2.0) ** share
        matrix = np.diag(ratio)
        offset = own.mean + share * (other.mean - own.mean) - own.mean * ratio
    amounts = rng.uniform(1 - config.stain, 1 + config.stain, 3)
    change = np.linalg.inv(_STAINS) @ np.diag(amounts) @ _STAINS
    change += rng.normal(0.0, config.mixing, (3, 3))
    change *= np.exp(rng.uniform(*np.log(config.gamma)))
    matrix, offset = matrix @ change, offset @ change
    offset += rng.uniform(-config.stain_offset, config.stain_offset, 3) @ _STAINS
    offset += rng.uniform(-config.brightness, config.brightness)
    density = _DENSITY[image].reshape(-1, 3) @ matrix.astype(np.float32)
    density += offset.astype(np.float32)
    changed = np.clip(np.exp(-density) * 256.0 - 1.0, 0, 255)
    return np.asarray(changed.reshape(image.shape), np.uint8)


def random_optics(
    rng: np.random.Generator, config: AugmentationConfig, image: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Blur, scanning at a lower resolution, noise and JPEG compression of a crop."""
    if rng.random() < config.blur_probability:
        blurred = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, config.blur_sigma))
        image = np.asarray(blurred, np.uint8)
    if rng.random() < config.rescan_probability:
        side = image.shape[0]
        small = round(side * rng.uniform(0.4, 0.9))
        scanned = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(scanned, (side, side)), np.uint8)
    if rng.random() < config.noise_probability:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= rng.uniform(1.0, config.noise_sigma)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < config.jpeg_probability:
        quality = int(rng.integers(*config.jpeg_quality))
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
    return image
