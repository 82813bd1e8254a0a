"""A network that costs nothing, and a process that runs it over a project.

Dark blobs are nuclei. Blocks are small here, so that the tissue image makes many of them,
which is what a run that is cut off and taken up again needs. As a script it treats
a project: ``cheap_model.py PROJECT MOVED [RUN] [BACKEND]``, going on with the last run, or
beginning one of the given id.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import cv2
import numpy as np

from pathosam_qupath.model.interface import ModelInfo, Postprocessing


@dataclass(frozen=True)
class CheapModel:
    """Maps from darkness alone; counts its tiles."""

    device: str = "cpu"
    seconds: float = 0.0
    weights_hash: str = "0"
    precision: str = "float32"
    tiles: list = field(default_factory=list)
    lock: Lock = field(default_factory=Lock, compare=False)

    @property
    def info(self):
        return ModelInfo(
            name="cheap",
            weights_hash=self.weights_hash,
            precision=self.precision,
            mpp=0.6,
            tile=96,
            halo=16,
            classes=("dark", "pale"),
            colors=((200, 0, 0), (0, 0, 200)),
            postprocessing=Postprocessing(min_size=5),
        )

    def predict(self, tiles):
        with self.lock:
            self.tiles.append(len(tiles))
        time.sleep(self.seconds)
        return np.stack([self._maps(tile) for tile in tiles])

    @staticmethod
    def _maps(tile):
        grey = cv2.GaussianBlur(tile[..., 0], (0, 0), 1)
        dark = (grey < 155).astype(np.uint8)
        depth = cv2.distanceTransform(dark, cv2.DIST_L2, 5)
        distance = 1 - np.where(dark > 0, depth / np.maximum(cv2.dilate(depth, None), 1), 0)
        blue = tile[..., 2].astype(np.float32) / 255
        maps = np.stack([dark, distance, distance, blue, 1 - blue]).astype(np.float32)
        return cv2.GaussianBlur(maps.transpose(1, 2, 0), (0, 0), 0.7).transpose(2, 0, 1)


@dataclass(frozen=True)
class CheapLoader:
    """Loads the model in a worker; $CHEAP_WEIGHTS there stands for other weights."""

    seconds: float = 0.0

    def __call__(self):
        weights = os.environ.get("CHEAP_WEIGHTS", "0")
        return CheapModel(seconds=self.seconds, weights_hash=weights)


def treat(project, moved, run_id=None, backend="embedded", *, model=None, options=(), **arguments):
    """Run over the tissue image of a project, with some options; the run's record."""
    from ihc_project import IMAGE, MPP

    from pathosam_qupath import batch, run_image
    from pathosam_qupath.qupath.project import PathMap, open_project
    from pathosam_qupath.run_plan import RunOptions, plan_run
    from pathosam_qupath.segmentation.pipeline import SegmentOptions

    run_image.SegmentOptions = partial(SegmentOptions, block=128)
    if run_id:
        batch.new_run_id = lambda folder: run_id
    options = RunOptions(images=(IMAGE,), mpp=MPP, **dict(options))
    with open_project(project, backend, path_map=PathMap.parse([moved])) as opened:
        plans = plan_run(opened, options)
        return batch.run(opened, model or CheapModel(), options, plans, **arguments)


if __name__ == "__main__":
    treat(*sys.argv[1:], model=CheapModel(seconds=0.02), resume="auto")
