"""A slide whose nuclei are drawn, and a network that reads them off the colours.

Red falls with the foreground, green is the distance to the centre, blue that to the border.
The network averages 3 × 3 pixels in whole numbers, so it needs a halo of one pixel and its
maps do not depend on the tile. Two classes: pixels left and right of a nucleus' own hue.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from pathosam_qupath.model.interface import ModelInfo, Postprocessing


def drawn(width, height, nuclei):
    """RGB with ellipses (x, y, long axis, short axis, angle, class 0 or 1).

    Where nuclei overlap, a pixel belongs to the one whose centre is nearer in units of its
    radius, so they touch along a line.
    """
    nearest = np.full((height, width), np.inf)
    kind = np.zeros((height, width), int)
    for x, y, a, b, angle, of_class in nuclei:
        reach = int(max(a, b)) + 2
        x0, x1 = max(0, int(x) - reach), min(width, int(x) + reach + 1)
        y0, y1 = max(0, int(y) - reach), min(height, int(y) + reach + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        dy, dx = np.mgrid[y0:y1, x0:x1] - np.array([y, x])[:, None, None]
        u = dx * np.cos(angle) + dy * np.sin(angle)
        v = dy * np.cos(angle) - dx * np.sin(angle)
        radius = np.sqrt((u / a) ** 2 + (v / b) ** 2)
        closer = radius < np.minimum(nearest[y0:y1, x0:x1], 1)
        nearest[y0:y1, x0:x1][closer] = radius[closer]
        kind[y0:y1, x0:x1][closer] = of_class
    distance = np.minimum(nearest, 1)
    rgb = np.full((height, width, 3), 255, np.uint8)
    inside = distance < 1
    rgb[inside, 0] = np.where(kind[inside] == 0, 0, 60)
    rgb[..., 1] = np.round(255 * distance)
    rgb[..., 2] = np.round(255 * distance)
    return rgb


def scattered(width, height, count, seed, radius=(5, 14)):
    """Random nuclei, some of them touching, some over the border."""
    random = np.random.default_rng(seed)
    long = random.uniform(*radius, count)
    return list(
        zip(
            random.uniform(0, width, count),
            random.uniform(0, height, count),
            long,
            long * random.uniform(0.5, 1, count),
            random.uniform(0, np.pi, count),
            random.integers(0, 2, count),
            strict=True,
        )
    )


@dataclass(frozen=True)
class DrawnNetwork:
    """A network of one fixed convolution."""

    tile: int = 96
    halo: int = 16
    mpp: float = 0.25
    postprocessing: Postprocessing = field(default_factory=Postprocessing)
    device: str = "cpu"
    classes: tuple = ("round", "spindle")
    seen: list = field(default_factory=list)
    threads: set = field(default_factory=set)

    @property
    def info(self):
        return ModelInfo(
            name="drawn",
            weights_hash="0",
            mpp=self.mpp,
            tile=self.tile,
            halo=self.halo,
            classes=self.classes,
            colors=((200, 0, 0), (0, 0, 200))[: len(self.classes)],
            postprocessing=self.postprocessing,
        )

    def predict(self, tiles):
        self.seen.append(len(tiles))
        self.threads.add(threading.current_thread().name)
        padded = np.pad(tiles.astype(np.int32), ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = tiles.shape[1:3]
        total = sum(padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
        red, green, blue = (total[..., i].astype(np.float32) / (9 * 255) for i in range(3))
        maps = [1 - red, green, blue]
        if self.classes:
            share = np.clip(red * 3, 0, 1)
            maps += [1 - share, share]
        return np.stack(maps, axis=1).astype(np.float32)


@dataclass(frozen=True)
class DrawnSlide:
    """A slide with pixels at the network's resolution and any slide resolution."""

    rgb: np.ndarray
    model_mpp: float = 0.25
    mpp: tuple = (0.25, 0.25)
    reads: list = field(default_factory=list)

    @property
    def scale(self):
        return (self.model_mpp / self.mpp[0], self.model_mpp / self.mpp[1])

    @property
    def width(self):
        return int(self.rgb.shape[1] * self.scale[0])

    @property
    def height(self):
        return int(self.rgb.shape[0] * self.scale[1])

    def at(self, mpp):
        assert mpp == self.model_mpp
        return self

    def read(self, x, y, width, height):
        self.reads.append((x, y, width, height))
        inside = x >= 0 and y >= 0
        assert inside and x + width <= self.rgb.shape[1] and y + height <= self.rgb.shape[0]
        return self.rgb[y : y + height, x : x + width]
