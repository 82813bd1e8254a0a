"""A pixel size is believed where a microscope wrote it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from written_slides import write_pyramid

from pathosam_qupath.errors import PixelSizeError
from pathosam_qupath.slide import open_slide


def pixel_size(path: Path, **options: object) -> tuple[float, float]:
    with open_slide(path, **options) as slide:  # type: ignore[arg-type]
        return slide.mpp


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [(0.25, "µm", 0.25), (250, "nm", 0.25), (0.00025, "mm", 0.25), (2500, "Å", 0.25)],
)
def test_ome_units(
    tissue: np.ndarray, tmp_path: Path, size: float, unit: str, expected: float
) -> None:
    path = tmp_path / "slide.ome.tif"
    sizes = {f"PhysicalSize{axis}": size for axis in "XY"}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    tifffile.imwrite(path, tissue, photometric="rgb", metadata={"axes": "YXS", **sizes, **units})
    assert pixel_size(path) == pytest.approx((expected, expected))


def test_ome_with_oblong_pixels(tissue: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, tissue, photometric="rgb", metadata=metadata)
    assert pixel_size(path) == (0.25, 0.5)
    assert pixel_size(path, rotation=90) == (0.5, 0.25)


@pytest.mark.parametrize("metadata", [{}, {"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}])
def test_ome_without_a_length_unit(
    tissue: np.ndarray, tmp_path: Path, metadata: dict[str, object]
) -> None:
    path = tmp_path / "slide.ome.tif"
    tifffile.imwrite(
        path,
        tissue,
        photometric="rgb",
        resolution=(72, 72),
        resolutionunit="INCH",
        metadata={"axes": "YXS", **metadata},
    )
    with pytest.raises(PixelSizeError, match="--mpp"):
        open_slide(path)


@pytest.mark.parametrize("dpi", [1, 72, 96, 300, 600])
def test_a_print_resolution_is_no_pixel_size(tissue: np.ndarray, tmp_path: Path, dpi: int) -> None:
    path = tmp_path / "printed.tif"
    tifffile.imwrite(
        path,
        tissue,
        photometric="rgb",
        resolution=(dpi, dpi),
        resolutionunit="INCH",
        metadata=None,
    )
    with pytest.raises(PixelSizeError, match="--mpp"):
        open_slide(path)
    assert pixel_size(path, mpp=0.4) == (0.4, 0.4)


def test_resolution_tags_of_a_pyramid(tissue: np.ndarray, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", tissue, mpp=0.2525)
    assert pixel_size(path) == pytest.approx((0.2525, 0.2525), rel=1e-6)
    assert pixel_size(path, mpp=(0.3, 0.31)) == (0.3, 0.31)


def test_imagejs_unit(tissue: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "imagej.tif"
    tifffile.imwrite(path, tissue, imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    assert pixel_size(path) == (0.25, 0.25)
    tifffile.imwrite(path, tissue, imagej=True, resolution=(4, 4), metadata={"unit": "pixel"})
    with pytest.raises(PixelSizeError):
        open_slide(path)


def test_aperios_description(tissue: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    text = "Aperio Image Library v11.2.1\r\n1003x777 (128x128) JPEG/RGB Q=90"
    for known, description in ((True, "|AppMag = 20|MPP = 0.4990"), (False, "|AppMag = 20")):
        write_pyramid(path, tissue, mpp=None, levels=1, description=text + description)
        if known:
            assert pixel_size(path) == (0.499, 0.499)
        else:
            with pytest.raises(PixelSizeError, match=r"Scanned at 20x, it is about 0\.5"):
                open_slide(path)
