"""Megapixels per second of the bundled model alone, by number of threads and size of tile.

    python benchmarks/compact_model.py [--repeats 5]

Prints the best of some repetitions: wall-clock and processor seconds. "Useful" leaves out
the halo, which neighbouring tiles compute again. On a busy machine the processor seconds
are the figure to compare.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.data import immunohistochemistry

from pathosam_qupath.model import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    model = load_model(device="cpu")
    halo = model.info.halo
    picture = np.tile(immunohistochemistry(), (2, 2, 1))
    print(f"{'threads':>7} {'tile':>5} {'MP/s':>6} {'useful':>6} {'MP per CPU second':>18}")
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for side in (512, model.info.tile, 1024):
            tile = picture[None, :side, :side]
            model.predict(tile)
            wall, cpu = _best(model.predict, tile, repeats)
            megapixels, useful = side**2 / 1e6, (side - 2 * halo) ** 2 / 1e6
            print(
                f"{threads:7d} {side:5d} {megapixels / wall:6.2f} {useful / wall:6.2f}"
                f" {megapixels / cpu:18.2f}"
            )


def _best(
    predict: Callable[[NDArray[np.uint8]], object], tile: NDArray[np.uint8], repeats: int
) -> tuple[float, float]:
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        predict(tile)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


if __name__ == "__main__":
    main()
