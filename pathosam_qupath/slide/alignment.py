"""Find out by its pixels how a level of a pyramid lies on the full resolution.

A pyramid's sizes leave open whether each level halves the one before or is resized to
fit (see :func:`~pathosam_qupath.slide.source.level_downsamples`). A wrong guess shifts
the far end of a slide by up to a pixel of the level, so where it matters patches of
the level are compared with the next finer level under both hypotheses.
"""

from __future__ import annotations

from threading import RLock

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.slide.cache import Pixels
from pathosam_qupath.slide.resampling import Window, resample
from pathosam_qupath.slide.source import PixelSource

_HARMLESS = 0.1
"""Pixels of a level by which hypotheses may differ at its far end without a test."""
_PATCH = 64
_GRID = 8
_COMPARED = 12
_CLEAR = 1.02
"""How much larger the misfit of the worse hypothesis must be to discard it."""


class Pyramid:
    """A source and how each of its levels lies on level 0, measured when first asked."""

    def __init__(self, source: PixelSource) -> None:
        self.source = source
        self._known: dict[int, tuple[float, float]] = {}
        self._lock = RLock()

    def downsample(self, number: int) -> tuple[float, float]:
        """Return the (x, y) level 0 pixels that one pixel of level ``number`` covers."""
        with self._lock:
            if number not in self._known:
                self._known[number] = self._measure(number)
            return self._known[number]

    def _measure(self, number: int) -> tuple[float, float]:
        level = self.source.levels[number]
        likely, other = level.downsample, level.alternative
        if other is None or max(_differences(likely, other, level.width, level.height)) < _HARMLESS:
            return likely
        finer = max(
            (k for k, rest in enumerate(self.source.levels) if rest.width > level.width),
            key=lambda k: self.source.levels[k].downsample[0],
        )
        patches = self._telling_patches(number, likely, other)
        misfit = [
            sum(self._misfit(finer, hypothesis, x, y, patch) for x, y, patch in patches)
            for hypothesis in (likely, other)
        ]
        if misfit[1] * _CLEAR < misfit[0]:
            return other
        if misfit[0] * _CLEAR < misfit[1]:
            return likely
        return (likely[0] + other[0]) / 2, (likely[1] + other[1]) / 2

    def _telling_patches(
        self, number: int, likely: tuple[float, float], other: tuple[float, float]
    ) -> list[tuple[int, int, Pixels]]:
        """Return patches of the level with structure, where the hypotheses differ most."""
        level = self.source.levels[number]
        width, height = min(_PATCH, level.width), min(_PATCH, level.height)
        scored = []
        for y in np.linspace(0, level.height - height, _GRID).astype(int).tolist():
            for x in np.linspace(0, level.width - width, _GRID).astype(int).tolist():
                patch = self.source.read(number, x, y, width, height)
                grey = _grey(patch)
                shift_x, shift_y = _differences(likely, other, x + width / 2, y + height / 2)
                structure = (
                    shift_x * np.abs(np.diff(grey, axis=1)).mean()
                    + shift_y * np.abs(np.diff(grey, axis=0)).mean()
                )
                scored.append((float(structure), x, y, patch))
        scored.sort(key=lambda item: -item[0])
        return [(x, y, patch) for _, x, y, patch in scored[:_COMPARED]]

    def _misfit(
        self, finer: int, downsample: tuple[float, float], x: int, y: int, patch: Pixels
    ) -> float:
        height, width = patch.shape[:2]
        dx, dy = downsample
        window = Window(x * dx, y * dy, (x + width) * dx, (y + height) * dy)
        seen = resample(self.source, finer, self.downsample(finer), window, (width, height))
        return float(((_grey(seen) - _grey(patch)) ** 2).mean())


def _differences(
    one: tuple[float, float], two: tuple[float, float], x: float, y: float
) -> tuple[float, float]:
    """Return by how many level pixels two hypotheses put the point (x, y) apart."""
    return x * abs(two[0] / one[0] - 1), y * abs(two[1] / one[1] - 1)


def _grey(pixels: Pixels) -> NDArray[np.float32]:
    grey: NDArray[np.float32] = pixels.mean(axis=2, dtype=np.float32)
    return grey
