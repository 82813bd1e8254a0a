"""PathoSAM here and in micro-sam: seconds per tile and region, memory, agreement.

Each variant runs in a process of its own, so that peak memory is its own. Without micro_sam
only ours are measured. Weights are random unless a checkpoint is given: times do not
depend on them, but agreement of objects then means little.

    python benchmarks/pathosam.py --region 2048 --json pathosam.json
    python benchmarks/pathosam.py --region 0 --repeats 1        # one tile only
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE, INNER, HALO = 512, 384, 64
VARIANTS = {
    "reference": "micro-sam",
    "exact": "ours, float32",
    "default": "ours, default precision",
}


def tissue(side: int) -> NDArray[np.uint8]:
    """Real tissue (scikit-image's immunohistochemistry image), mirrored to a square."""
    from skimage import data

    image = data.immunohistochemistry()
    repeats = -(-side // image.shape[0])
    rows = np.concatenate([image, image[::-1]])
    whole = np.concatenate([rows, rows[:, ::-1]], axis=1)
    return np.ascontiguousarray(np.tile(whole, (repeats, repeats, 1))[:side, :side])


def random_checkpoint(folder: Path) -> Path:
    """A vit_b with an instance decoder, in the layout that exported models have."""
    import torch

    from pathosam_qupath.model.sam import SamConfig, SamModel
    from pathosam_qupath.model.unetr import UnetrDecoder

    torch.manual_seed(0)
    state = SamModel(SamConfig()).state_dict()
    for value in state.values():
        if not value.any():
            value.normal_(std=0.02)
    path = folder / "random_vit_b.pt"
    torch.save({"model_state": state, "decoder_state": UnetrDecoder().state_dict()}, path)
    return path


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def measure_ours(arguments: argparse.Namespace, exact: bool) -> dict[str, Any]:
    import torch

    from pathosam_qupath.model.pathosam import load_pathosam
    from pathosam_qupath.model.preprocessing import normalize, prepare
    from pathosam_qupath.segmentation.watershed import instances

    model = load_pathosam(
        "benchmark",
        checkpoint=arguments.checkpoint,
        decoder=arguments.decoder,
        device=arguments.device,
        exact=exact,
    )
    tile = tissue(TILE)
    model.predict(tile[None])
    seconds, outside = [], []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        maps = model.predict(tile[None])[0]
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        normalize(prepare(tile), 1024, model.device)
        instances(maps)
        outside.append(time.perf_counter() - start)
    found = {
        "precision": str(model.dtype).removeprefix("torch."),
        "tile_seconds": float(np.median(seconds)),
        "outside_networks_seconds": float(np.median(outside)),
        "peak_bytes_tile": peak_memory(),
        "torch": torch.__version__,
    }
    if arguments.region:
        image = tissue(arguments.region)
        start = time.perf_counter()
        maps = np.zeros((3, *image.shape[:2]), np.float32)
        for y in range(0, image.shape[0], INNER):
            for x in range(0, image.shape[1], INNER):
                top, left = max(0, y - HALO), max(0, x - HALO)
                part = model.tile_maps(image[top : y + INNER + HALO, left : x + INNER + HALO])
                inner = part[:, y - top : y - top + INNER, x - left : x - left + INNER]
                maps[:, y : y + inner.shape[1], x : x + inner.shape[2]] = inner
        labels = instances(maps)
        found["region_seconds"] = time.perf_counter() - start
        np.savez(arguments.out.with_suffix(".npz"), maps=maps, labels=labels)
    return found


def measure_reference(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from micro_sam.instance_segmentation import (
        InstanceSegmentationWithDecoder,
        TiledInstanceSegmentationWithDecoder,
        get_predictor_and_decoder,
    )
    from micro_sam.util import precompute_image_embeddings

    predictor, decoder = get_predictor_and_decoder(
        "vit_b", str(arguments.checkpoint), device=arguments.device
    )
    tile = tissue(TILE)
    seconds = []
    for _ in range(arguments.repeats):
        segmenter = InstanceSegmentationWithDecoder(predictor, decoder)
        start = time.perf_counter()
        embeddings = precompute_image_embeddings(predictor, tile, ndim=2, verbose=False)
        segmenter.initialize(tile, image_embeddings=embeddings)
        segmenter.generate()
        seconds.append(time.perf_counter() - start)
    found = {
        "precision": "float32",
        "tile_seconds": float(np.median(seconds)),
        "peak_bytes_tile": peak_memory(),
        "torch": torch.__version__,
    }
    if arguments.region:
        image = tissue(arguments.region)
        tiled = TiledInstanceSegmentationWithDecoder(predictor, decoder)
        tiling = {"tile_shape": (INNER, INNER), "halo": (HALO, HALO)}
        start = time.perf_counter()
        embeddings = precompute_image_embeddings(
            predictor, image, ndim=2, verbose=False, batch_size=1, **tiling
        )
        tiled.initialize(image, image_embeddings=embeddings, verbose=False)
        state = tiled.get_state()
        names = ("foreground", "center_distances", "boundary_distances")
        maps = np.stack([np.array(state[name]) for name in names])
        labels = tiled.generate(output_mode="instance_segmentation", **tiling)
        found["region_seconds"] = time.perf_counter() - start
        np.savez(arguments.out.with_suffix(".npz"), maps=maps, labels=labels)
    return found


def agreement(found: Path, expected: Path) -> dict[str, float]:
    """Largest difference of maps, and share of objects matched at IoU over 0.9."""
    with np.load(found) as ours, np.load(expected) as theirs:
        difference = float(np.abs(ours["maps"] - theirs["maps"]).max())
        labels, wanted = ours["labels"].astype(np.int64), theirs["labels"].astype(np.int64)
    pairs = wanted * (labels.max() + 1) + labels
    ids, overlaps = np.unique(pairs[(wanted > 0) & (labels > 0)], return_counts=True)
    areas, wanted_areas = np.bincount(labels.ravel()), np.bincount(wanted.ravel())
    of_wanted, of_found = np.divmod(ids, labels.max() + 1)
    iou = overlaps / (areas[of_found] + wanted_areas[of_wanted] - overlaps)
    objects = np.count_nonzero(wanted_areas[1:])
    return {
        "largest_map_difference": difference,
        "objects": float(objects),
        "matched": float(np.count_nonzero(iou > 0.9) / max(1, objects)),
    }


def measure_all(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    for package in ("torch", "pathosam_qupath.model.pathosam"):
        importlib.import_module(package)  # what cannot be measured is told before the reference
    checkpoint = arguments.checkpoint or random_checkpoint(folder)
    variants = [v for v in VARIANTS if v != "reference" or _has_reference(arguments)]
    results: dict[str, Any] = {}
    for variant in variants:
        out = folder / f"{variant}.json"
        command = [sys.executable, __file__, "--variant", variant, "--out", str(out)]
        command += ["--checkpoint", str(checkpoint), "--device", arguments.device]
        command += ["--region", str(arguments.region), "--repeats", str(arguments.repeats)]
        command += ["--threads", str(arguments.threads)]
        if arguments.decoder:
            command += ["--decoder", str(arguments.decoder)]
        subprocess.run(command, check=True)
        results[variant] = json.loads(out.read_text())
        print(VARIANTS[variant], results[variant], file=sys.stderr, flush=True)
    if arguments.region and "reference" in results:
        for variant in ("exact", "default"):
            results[variant] |= agreement(folder / f"{variant}.npz", folder / "reference.npz")
    return {
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor(),
            "threads": arguments.threads,
        },
        "region": arguments.region,
        "weights": "random" if arguments.checkpoint is None else "given",
        "variants": results,
    }


def _has_reference(arguments: argparse.Namespace) -> bool:
    present = importlib.util.find_spec("micro_sam") is not None
    if not present:
        print("micro_sam is not installed: ours alone", file=sys.stderr)
    elif arguments.decoder:
        print("micro_sam is measured with one checkpoint file only: ours alone", file=sys.stderr)
    return present and not arguments.decoder


def table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="PathoSAM, vit_b")
    columns = ("", "precision", "s / tile", "times", "ms outside", f"s / {report['region']}²")
    for column in (*columns, "times", "peak GB", "Δ maps", "matched"):
        shown.add_column(column, justify="right" if column else "left")
    variants = report["variants"]
    base = variants.get("reference", {})

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    def ratio(measured: dict[str, Any], key: str) -> str:
        return number(base[key] / measured[key], ".2f") if key in base else ""

    for variant, measured in variants.items():
        outside = measured.get("outside_networks_seconds")
        shown.add_row(
            VARIANTS[variant],
            measured["precision"],
            number(measured["tile_seconds"], ".2f"),
            ratio(measured, "tile_seconds"),
            number(None if outside is None else outside * 1000, ".0f"),
            number(measured.get("region_seconds"), ".1f"),
            ratio(measured, "region_seconds"),
            number(measured["peak_bytes"] / 1e9, ".2f"),
            number(measured.get("largest_map_difference"), ".1e"),
            number(measured.get("matched"), ".1%"),
        )
    Console().print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, help="SAM's weights; random if left out")
    parser.add_argument("--decoder", type=Path, help="instance decoder, if a file of its own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--region", type=int, default=2048, help="side in pixels; 0 for none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        import torch

        torch.set_num_threads(arguments.threads)
        if arguments.variant == "reference":
            found = measure_reference(arguments)
        else:
            found = measure_ours(arguments, exact=arguments.variant == "exact")
        arguments.out.write_text(json.dumps(found | {"peak_bytes": peak_memory()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        report = measure_all(arguments, Path(folder))
    table(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
