"""Speed of the bundled model: the network alone, the whole pipeline, prompts.

    python benchmarks/compact_model.py [--repeats 5] [--side 4096] [--images DIR]

Prints the best of some repetitions: wall-clock and processor seconds. "Useful" leaves out
the halo, which neighbouring tiles compute again. On a busy machine the processor seconds
are the figure to compare. The tissue is that of `segmentation.py`, which holds few nuclei; the
pipeline has a second line with `--images`, a folder such as `val` of the training data, whose
images lie side by side then, mirrored until the region is full.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from segmentation import MirroredTissue

from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.model import load_model
from pathosam_qupath.model.compact import CompactModel
from pathosam_qupath.model.prompts import Prompt
from pathosam_qupath.model.weights import load_weights
from pathosam_qupath.segmentation.pipeline import segment


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=4096, help="of the pipeline's region")
    parser.add_argument("--images", type=Path, help="folder of samples for denser tissue")
    arguments = parser.parse_args()
    model = load_model(device="cpu")
    assert isinstance(model, CompactModel)
    print_network(model, arguments.repeats)
    print()
    print_pipeline(model, MirroredTissue(arguments.side, model.info.mpp), "sparse tissue")
    if arguments.images is not None:
        tissue = MirroredTissue(arguments.side, model.info.mpp, mosaic(arguments.images))
        print_pipeline(model, tissue, f"images of {arguments.images.name}")
    print_prompts(model, arguments.repeats)


def print_network(model: CompactModel, repeats: int) -> None:
    """Megapixels per second by arithmetic, threads and size of tile."""
    from pathosam_qupath.model import bundled_weights

    network, description = load_weights(bundled_weights()[0])
    exact = CompactModel(network, description, weights_hash="", device="cpu", dtype=torch.float32)
    tissue = MirroredTissue(1024, model.info.mpp)
    halo = model.info.halo
    print(
        f"{'in':>9} {'threads':>7} {'tile':>5} {'MP/s':>6} {'useful':>6} {'MP per CPU second':>18}"
    )
    for one in {model.info.precision: model, "float32": exact}.values():
        for threads in sorted({1, torch.get_num_threads()}):
            torch.set_num_threads(threads)
            for side in (512, 1024):
                tile = tissue.read(0, 0, side, side)[None]
                wall, cpu = _best(lambda one=one, tile=tile: one.predict(tile), repeats)
                megapixels, useful = side**2 / 1e6, (side - 2 * halo) ** 2 / 1e6
                print(
                    f"{one.info.precision:>9} {threads:7d} {side:5d} {megapixels / wall:6.2f}"
                    f" {useful / wall:6.2f} {megapixels / cpu:18.2f}"
                )


def mosaic(folder: Path) -> NDArray[np.uint8]:
    """As many of a folder's images as make a square, in squares of 512 pixels, side by side."""
    side = 512
    pieces = [
        sample.image[y : y + side, x : x + side]
        for sample in read_samples(folder)
        for y in range(0, sample.image.shape[0] - side + 1, side)
        for x in range(0, sample.image.shape[1] - side + 1, side)
    ]
    count = int(len(pieces) ** 0.5)
    rows = [np.concatenate(pieces[i * count : (i + 1) * count], axis=1) for i in range(count)]
    return np.concatenate(rows)


def print_pipeline(model: CompactModel, tissue: MirroredTissue, name: str) -> None:
    """Megapixels per second of the whole: tiles to measured polygons."""
    wall, cpu = time.perf_counter(), time.process_time()
    nuclei = len(segment(tissue, None, model))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    megapixels = tissue.width * tissue.height / 1e6
    print(
        f"pipeline, {name}, {tissue.width} x {tissue.height}: {nuclei:,} nuclei,"
        f" {megapixels / wall:.2f} MP/s, {megapixels / cpu:.2f} MP per CPU second"
    )


def print_prompts(model: CompactModel, repeats: int) -> None:
    """Milliseconds of an embedding and of a further click on it."""
    tile = MirroredTissue(1024, model.info.mpp).read(0, 0, model.info.tile, model.info.tile)
    embedding = model.embed(tile)
    wall, _ = _best(lambda: model.embed(tile), repeats)
    clicks = [Prompt(points=((100.0 + 17 * i, 300.0 + 11 * i),)) for i in range(20)]
    times = [_best(lambda p=p: model.prompt(embedding, [p]), 1)[0] for p in clicks]
    print(
        f"\nembedding {1e3 * wall:.0f} ms, {embedding.nbytes / 1e6:.0f} MB;"
        f" a click on it {1e3 * np.median(times):.0f} ms (median of {len(times)})"
    )


def _best(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    run()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


if __name__ == "__main__":
    main()
