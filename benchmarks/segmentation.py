"""Time and memory of the segmentation, stage by stage.

Run with ``python benchmarks/segmentation.py``; each measurement has a process of its own,
so that its peak memory is its own. The tissue is scikit-image's immunohistochemistry image
(512 × 512), mirrored without end, or a slide given with ``--slide``. Prints a table; with
``--json`` writes the figures too.

``--model stain`` stands a colour rule in the network's place: its nuclei are as dense as
real ones, so that what follows the network can be measured by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.model.interface import ModelInfo, NucleusModel, Postprocessing

Figures = dict[str, Any]


class MirroredTissue:
    """A slide of any size: one image, mirrored at its borders again and again."""

    def __init__(self, side: int, mpp: float, image: NDArray[np.uint8] | None = None) -> None:
        if image is None:
            from skimage.data import immunohistochemistry

            image = immunohistochemistry()
        self._tile = np.concatenate([image, image[::-1]])
        self._tile = np.concatenate([self._tile, self._tile[:, ::-1]], axis=1)
        self.width = self.height = side
        self.mpp = (mpp, mpp)
        self.scale = (1.0, 1.0)

    def at(self, mpp: float) -> MirroredTissue:
        """The tissue, which is at the wanted resolution as it is."""
        return self

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """RGB of a rectangle."""
        rows = np.arange(y, y + height) % self._tile.shape[0]
        columns = np.arange(x, x + width) % self._tile.shape[1]
        return self._tile[rows[:, None], columns]


class StainRule:
    """Maps from darkness alone: nuclei are dark blobs, distances are Euclidean."""

    device = "cpu"
    info = ModelInfo(
        name="stain",
        weights_hash="",
        mpp=0.25,
        tile=512,
        halo=64,
        classes=("a", "b", "c"),
        postprocessing=Postprocessing(min_size=30),
    )

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps of each tile."""
        return np.stack([self._maps(tile) for tile in tiles])

    def _maps(self, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        import cv2

        grey = cv2.GaussianBlur(tile[..., 0], (0, 0), 1.5)
        dark = (grey < 155).astype(np.uint8)
        depth = cv2.distanceTransform(dark, cv2.DIST_L2, 5)
        peak = cv2.dilate(depth, np.ones((17, 17), np.uint8))
        distance = 1 - np.where(dark > 0, depth / np.maximum(peak, 1), 0)
        blue = tile[..., 2].astype(np.float32) / 255
        maps = [
            dark.astype(np.float32),
            distance,
            distance,
            blue / 2,
            (1 - blue) / 2,
            0 * blue + 0.5,
        ]
        return np.stack(maps).astype(np.float32)


def a_model(name: str, device: str) -> NucleusModel:
    """The model to measure with."""
    if name == "stain":
        return StainRule()
    from pathosam_qupath.model import load_model

    return load_model(name, device)


def measure_region(side: int, model_name: str, device: str, slide_path: str | None) -> Figures:
    """Segment a square of ``side`` pixels at the model's resolution."""
    import shapely

    from pathosam_qupath.segmentation.pipeline import Progress, SegmentOptions, segment

    model = a_model(model_name, device)
    slide: Any = MirroredTissue(side, model.info.mpp)
    regions = None
    if slide_path is not None:
        from pathosam_qupath.slide import open_slide

        slide = open_slide(Path(slide_path))
        scale = slide.at(model.info.mpp).scale
        regions = [shapely.box(0, 0, side * scale[0], side * scale[1])]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    last: list[Progress] = []
    start, start_processor = time.perf_counter(), time.process_time()
    frame = segment(
        slide,
        regions,
        model,
        options=SegmentOptions(seed="benchmark"),
        progress=lambda progress: last.__setitem__(slice(None), [progress]),
    )
    wall = time.perf_counter() - start
    processor = time.process_time() - start_processor
    return {
        "region": f"{side} × {side}",
        "model": model.info.name,
        "device": device,
        "tiles": last[0].tiles_total,
        "nuclei": len(frame),
        "seconds": wall,
        "seconds of all processors": processor,
        "seconds reading (threads)": last[0].seconds_read,
        "seconds in the network (threads)": last[0].seconds_network,
        "seconds post-processing (threads)": last[0].seconds_postprocess,
        "MB before": before / 1024,
        "MB at peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_parts() -> Figures:
    """Watershed and polygons alone, on one core."""
    from pathosam_qupath.segmentation.measurements import shape_measurements
    from pathosam_qupath.segmentation.polygons import polygons
    from pathosam_qupath.segmentation.watershed import instances

    model = StainRule()
    tile = MirroredTissue(2048, 0.25).read(0, 0, 2048, 2048)
    maps = model.predict(tile[None])[0]
    watershed_of_tile = _best(lambda: instances(maps[:, :512, :512]), 10)
    labels = instances(maps, model.info.postprocessing)
    found = polygons(labels)
    return {
        "nuclei per 512 × 512": int(instances(maps[:, :512, :512]).max()),
        "watershed of 512 × 512, ms": 1000 * watershed_of_tile,
        "polygons per second": len(found) / _best(lambda: polygons(labels), 5),
        "measured per second": len(found)
        / _best(lambda: shape_measurements(found, (0.25, 0.25)), 5),
    }


def _best(action: Callable[[], object], times: int) -> float:
    """Shortest of several runs in seconds of processor time, so other work hardly counts."""
    durations = []
    for _ in range(times):
        start = time.process_time()
        action()
        durations.append(time.process_time() - start)
    return min(durations)


def in_own_process(arguments: list[str]) -> Figures:
    """Figures of this script run with the given arguments."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def shown(title: str, figures: Figures) -> str:
    lines = [title]
    for name, value in figures.items():
        text = f"{value:,.2f}" if isinstance(value, float) else f"{value}"
        lines.append(f"  {name:36} {text:>16}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slide", default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", choices=["region", "parts"], default=None, help="for itself")
    arguments = parser.parse_args()
    if arguments.only == "region":
        figures = measure_region(
            arguments.sides[0], arguments.model, arguments.device, arguments.slide
        )
        print(json.dumps(figures))
        return
    if arguments.only == "parts":
        print(json.dumps(measure_parts()))
        return
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(shown("Machine", machine))
    parts = in_own_process(["--only", "parts"])
    print(shown("One core", parts))
    regions = []
    for side in arguments.sides:
        given = ["--sides", str(side), "--model", arguments.model, "--device", arguments.device]
        given += ["--slide", arguments.slide] if arguments.slide else []
        regions.append(in_own_process(["--only", "region", *given]))
        print(shown(f"Region {regions[-1]['region']}", regions[-1]))
    if len(regions) > 1:
        growth = regions[-1]["MB at peak"] / regions[0]["MB at peak"]
        print(f"Peak memory, last over first region: {growth:.3f}")
    if arguments.json:
        everything = {"machine": machine, "one core": parts, "regions": regions}
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
