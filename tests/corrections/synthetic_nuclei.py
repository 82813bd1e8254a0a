"""Small images of dark ellipses on a pink ground, written as a folder of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.draw import ellipse
from skimage.io import imsave


def synthetic_image(seed: int, side: int = 128, nuclei: int = 16):
    """An RGB image, its labels, and types: odd labels inflammatory and small, even 6."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), (225, 180, 205), np.float32)
    labels = np.zeros((side, side), np.uint16)
    types = np.zeros((side, side), np.uint8)
    count = 0
    for _ in range(nuclei * 4):
        if count == nuclei:
            break
        small = count % 2 == 0
        radius = rng.uniform(4, 5) if small else rng.uniform(8, 10)
        rows, columns = ellipse(
            *rng.uniform(4, side - 4, 2),
            radius,
            radius * rng.uniform(0.8, 1.2),
            shape=labels.shape,
            rotation=rng.uniform(0, np.pi),
        )
        if rows.size < 20 or labels[rows, columns].any():
            continue
        count += 1
        labels[rows, columns] = count
        types[rows, columns] = 2 if small else 6
        image[rows, columns] = (60, 40, 120) if small else (130, 90, 170)
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels, types


def write_samples(
    folder: Path, count: int, *, first_seed: int = 0, types: bool = True, side: int = 128
) -> Path:
    """A folder of samples with a manifest; pixel size 0.4 µm."""
    for kind in ("images", "labels", "types"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rows = ["file,label,types,original_dataset,mpp"]
    for index in range(count):
        image, labels, kinds = synthetic_image(first_seed + index, side)
        name = f"image_{index}.png"
        for kind, pixels in (("images", image), ("labels", labels), ("types", kinds)):
            imsave(folder / kind / name, pixels, check_contrast=False)
        typed = f"types/{name}" if types else ""
        rows.append(f"images/{name},labels/{name},{typed},Synthetic ellipses,~0.4 (made)")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder
