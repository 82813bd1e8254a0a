"""Which part of an image counts as tissue in a run: looked for, given by a person, or all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import UsageError
from pathosam_qupath.segmentation.tissue import Tissue, find_tissue, given_tissue

if TYPE_CHECKING:
    from pathosam_qupath.qupath.project import Entry
    from pathosam_qupath.run_plan import RunOptions
    from pathosam_qupath.slide import Slide


def tissue_of(slide: Slide, entry: Entry, options: RunOptions) -> Tissue | None:
    """The tissue of an image; None where the run does not ask.

    "auto" looks for it in whole images only: what a person has outlined is not second-guessed.

    Raises
    ------
    UsageError : the file of outlines is missing, or has none for this image.
    """
    if options.tissue == "off" or (options.tissue == "auto" and not options.whole_image):
        return None
    if options.tissue == "auto":
        return find_tissue(slide)
    return given_tissue(slide, read_tissue(Path(options.tissue), entry))


def read_tissue(path: Path, entry: Entry) -> BaseGeometry:
    """The outlines of a GeoJSON file, or of ``<image name or id>.geojson`` in a folder.

    Raises
    ------
    UsageError, FormatError : there is no such file, or no area in it.
    """
    from pathosam_qupath.qupath.geojson_reader import read_geojson

    file = path
    if path.is_dir():
        names = [f"{stem}.geojson" for stem in (entry.name, Path(entry.name).stem, entry.id)]
        file = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not file.is_file():
        raise UsageError(
            f"--tissue {path}",
            f"there is no file {file.name}" if path.is_dir() else "there is no such file or folder",
            "Give auto, off, a GeoJSON file, or a folder with one per image, named as the image.",
        )
    shapes = [shapely.make_valid(o.geometry) for o in read_geojson(file).objects]
    union = shapely.union_all([shape for shape in shapes if shape.area > 0])
    if union.is_empty:
        raise UsageError(
            f"--tissue {file}", "it holds no area", "Draw the tissue in QuPath and export it."
        )
    return union
