"""How fast regions of a slide are read, beside tiffslide's own ``read_region``.

    python benchmarks/slide.py [SLIDE ...]

Without a slide, a 4096 x 4096 JPEG pyramid (256-pixel tiles) of real tissue is written
first. Tiles of 512 x 512 are read in rows over the whole slide, at the slide's own
resolution and at a half and a third of it, side by side and with the halo of 64 pixels
that a network needs. tiffslide reads the best level and Pillow resizes each tile, as is
usual; such tiles differ where they overlap, these do not. MP/s count the pixels that come
out, opening included, the best of three rounds; "CPU" counts the seconds of all threads
of the process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from skimage.data import immunohistochemistry

from pathosam_qupath.slide import open_slide

TILE = 512
HALO = 64
THREADS = 4
ROUNDS = 3


@dataclass(frozen=True)
class Sweep:
    """One way over a slide: at which µm/px, with what halo, by how many threads."""

    path: Path
    mpp: float
    halo: int
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", nargs="*", type=Path)
    with tempfile.TemporaryDirectory() as folder:
        slides = parser.parse_args().slides or [made_slide(Path(folder) / "tissue.tif")]
        print("| slide | µm/px | halo | threads | MP/s | tiffslide | ratio | ratio by CPU |")
        print("|---|---|---|---|---|---|---|---|")
        for slide in slides:
            compare(slide)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\nPeak memory {peak / 2**20 if sys.platform != 'darwin' else peak / 2**30:.2f} GB")


def compare(path: Path) -> None:
    with open_slide(path) as slide:
        own = slide.mpp[0]
    for factor in (1, 2, 3):
        for halo in (0, HALO):
            for threads in (1, THREADS):
                sweep = Sweep(path, own * factor, halo, threads)
                ours, our_cpu = rates(read_ours, sweep)
                theirs, their_cpu = rates(read_tiffslide, sweep)
                print(
                    f"| {path.name} | {sweep.mpp:.3f} | {halo} | {threads} | {ours:.0f} "
                    f"| {theirs:.0f} | {ours / theirs:.1f} | {our_cpu / their_cpu:.1f} |",
                    flush=True,
                )


def rates(read: Callable[[Sweep], int], sweep: Sweep) -> tuple[float, float]:
    """Megapixels per second, and per second of processor time; the best of the rounds."""
    wall, cpu = 0.0, 0.0
    for _ in range(ROUNDS):
        start, used = time.perf_counter(), time.process_time()
        pixels = read(sweep) / 1e6
        wall = max(wall, pixels / (time.perf_counter() - start))
        cpu = max(cpu, pixels / (time.process_time() - used))
    return wall, cpu


def corners(width: int, height: int, halo: int) -> list[tuple[int, int]]:
    step = TILE - 2 * halo
    return [(x, y) for y in range(-halo, height, step) for x in range(-halo, width, step)]


def total(tiles: Iterable[np.ndarray]) -> int:
    return sum(tile.shape[0] * tile.shape[1] for tile in tiles)


def read_ours(sweep: Sweep) -> int:
    with open_slide(sweep.path) as slide, ThreadPoolExecutor(sweep.threads) as pool:
        scaled = slide.at(sweep.mpp)
        places = corners(scaled.width, scaled.height, sweep.halo)
        return total(pool.map(lambda at: scaled.read(*at, TILE, TILE), places))


def read_tiffslide(sweep: Sweep) -> int:
    from tiffslide import TiffSlide

    with TiffSlide(sweep.path) as slide, ThreadPoolExecutor(sweep.threads) as pool:
        scale = sweep.mpp / slide.properties["tiffslide.mpp-x"]
        level = slide.get_best_level_for_downsample(scale * 1.001)
        side = round(TILE * scale / slide.level_downsamples[level])
        width, height = (math.ceil(extent / scale) for extent in slide.dimensions)

        def read(at: tuple[int, int]) -> np.ndarray:
            place = round(at[0] * scale), round(at[1] * scale)
            tile = slide.read_region(place, level, (side, side), as_array=True)
            if side == TILE:
                return tile
            small = Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BICUBIC)
            return np.array(small)

        return total(pool.map(read, corners(width, height, sweep.halo)))


def made_slide(path: Path) -> Path:
    picture = immunohistochemistry()
    pixels = np.pad(picture, ((0, 3584), (0, 3584), (0, 0)), mode="symmetric")
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            writer.write(
                pixels[:: 2**level, :: 2**level],
                photometric="rgb",
                tile=(256, 256),
                compression="jpeg",
                subfiletype=int(level > 0),
                resolution=(40_000 / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


if __name__ == "__main__":
    main()
