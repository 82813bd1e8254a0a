"""The fixture projects: their names, what QuPath reads from them, where images are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from pathosam_qupath.qupath.project import PathMap

FIXTURES = Path(__file__).resolve().parents[1] / "data" / "fixtures"
IMAGES = FIXTURES / "0.6.0" / "images"

PROJECTS = tuple(
    sorted(
        str(judge.relative_to(FIXTURES)).removesuffix(".judge.json")
        for judge in FIXTURES.glob("*/*.judge.json")
    )
)
"""The fixture projects as "version/name"."""


def judged_project(name: str) -> dict[str, Any]:
    """What QuPath reads from a fixture project."""
    return json.loads((FIXTURES / f"{name}.judge.json").read_text("utf-8"))


def images_map(name: str) -> PathMap:
    """Where the images of a fixture project lie in the repository."""
    return PathMap(((f"/slides/fixtures/{name.split('/')[0]}/images", str(IMAGES)),))


def nuclei(
    count: int,
    parents: list[str | None],
    *,
    seed: int = 0,
    run: str | None = "20260101-000000-test",
) -> gpd.GeoDataFrame:
    """Detections as a run makes them: twelve-sided polygons of two classes."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    centre = rng.uniform(20, 480, (count, 1, 2))
    outline = (centre + 4 * ring).astype(np.float32).astype(np.float64)
    identity = [rng.bytes(16).hex() for _ in range(count)]
    return gpd.GeoDataFrame(
        {
            "id": [f"{i[:8]}-{i[8:12]}-4{i[13:16]}-8{i[17:20]}-{i[20:]}" for i in identity],
            "object_type": "detection",
            "classification": np.where(np.arange(count) % 2, "Nucleus: Tumor", "Lymphocyte"),
            "probability": rng.uniform(0, 1, count),
            "name": None,
            "color": None,
            "locked": False,
            "parent": [parents[i % len(parents)] for i in range(count)],
            "run": run,
            "Area µm^2": rng.uniform(10, 90, count),
            "Probability: Lymphocyte": rng.uniform(0, 1, count),
        },
        geometry=shapely.polygons(outline),
    )
