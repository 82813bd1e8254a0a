"""What a run found, image by image: counts, densities, shares, sizes, doubts, pictures.

Numbers are those of the run's own record, as it wrote them; what a person has edited since
does not change them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import PathosamError
from pathosam_qupath.picture import UNCLASSIFIED, busiest, layers
from pathosam_qupath.regions import Regions, choose_regions
from pathosam_qupath.replacing import in_region
from pathosam_qupath.report.checks import Check, checks_of, doubts
from pathosam_qupath.run_plan import open_entry
from pathosam_qupath.run_record import EntryRecord, RunRecord

if TYPE_CHECKING:
    import geopandas as gpd
    from PIL.Image import Image

    from pathosam_qupath.picture import Box
    from pathosam_qupath.qupath.objects import PathObject
    from pathosam_qupath.qupath.project import Color, Entry, Project
    from pathosam_qupath.slide import Slide

DETAIL_UM = 150.0
"""Side of a close view."""

_MANY = 60
"""Images from which pictures get smaller, so that a browser can still open the page: it has about
80 MB then, and hardly more with hundreds."""

WHOLE = "whole image"


@dataclass(frozen=True, eq=False)
class View:
    """A part of an image, without and with its nuclei; or a picture of something else."""

    title: str
    tissue: Image
    nuclei: Image | None = None


@dataclass(frozen=True, eq=False)
class ImageFindings:
    """What a run found in one image.

    Attributes
    ----------
    record : what the run did.
    classes : a row per annotation class and nucleus class: nuclei, share of the annotation
        class, per mm², median area in µm².
    areas : µm² of each nucleus, by its class.
    checks : what was looked at to find reasons for doubt.
    flags : what a reader should doubt.
    views : the whole image first, what counted as tissue last; empty where the image's pixels
        cannot be had.
    """

    record: EntryRecord
    classes: pd.DataFrame
    areas: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    flags: tuple[str, ...] = ()
    views: tuple[View, ...] = ()


COLUMNS = ("image", "region", "class", "nuclei", "share", "region mm²", "per mm²", "median µm²")


@dataclass(frozen=True)
class Sizes:
    """How large the pictures of an image are: pixels across, and how many close views."""

    whole: int = 1400
    detail: int = 640
    details: int = 3

    @classmethod
    def of(cls, images: int) -> Sizes:
        """Sizes with which the report of so many images can still be opened."""
        if images <= _MANY:
            return cls()
        share = (_MANY / images) ** 0.5
        return cls(max(480, round(1400 * share)), max(320, round(640 * share)), 1)


def findings(project: Project, record: RunRecord) -> Iterator[ImageFindings]:
    """What a run found in every image that it treated or meant to, one after the other."""
    entries = {entry.id: entry for entry in project.entries}
    colors = {**project.classes, **record.manifest.class_colors}
    done = record.manifest.entries
    sizes = Sizes.of(sum(e.state == "written" for e in done))
    for e in done:
        yield _of_image(entries.get(e.id), e, record, colors, sizes)


def _of_image(
    entry: Entry | None,
    done: EntryRecord,
    record: RunRecord,
    colors: Mapping[str, Color],
    sizes: Sizes,
) -> ImageFindings:
    nothing = pd.DataFrame(columns=list(COLUMNS))
    flags = [*([done.message] if done.message else []), *done.warnings]
    if done.state != "written" or entry is None:
        return ImageFindings(done, nothing, flags=tuple(flags))
    try:
        nuclei = record.load_predictions(done.id, ("geometry", "classification", "probability"))
        if nuclei is None:
            return ImageFindings(done, nothing, flags=(*flags, "its predictions are gone"))
        mpp = record.manifest.options.get("mpp")
        with open_entry(entry, mpp) as slide:
            return _seen(slide, entry.annotations(), nuclei, done, record, colors, flags, sizes)
    except PathosamError as error:
        return ImageFindings(done, nothing, flags=(*flags, str(error)))


def _seen(
    slide: Slide,
    annotations: Sequence[PathObject],
    nuclei: gpd.GeoDataFrame,
    done: EntryRecord,
    record: RunRecord,
    colors: Mapping[str, Color],
    flags: Sequence[str],
    sizes: Sizes,
) -> ImageFindings:
    options = record.manifest.options
    size = (slide.width, slide.height)
    regions = choose_regions(
        annotations,
        size,
        wanted=tuple(options.get("annotations", ("all",))),
        whole_image=bool(options.get("whole_image", False)),
    )
    nuclei = nuclei.assign(classification=nuclei["classification"].fillna(UNCLASSIFIED))
    square = slide.mpp[0] * slide.mpp[1]
    areas = nuclei.geometry.area.to_numpy() * square
    kinds = nuclei["classification"].to_numpy()
    checks = checks_of(slide, nuclei, areas, done)
    said = doubts(checks) if len(nuclei) else ["no nucleus was found"]
    views = _views(slide, annotations, nuclei, colors, sizes)
    tissue = record.load_picture(done.id, "tissue.jpg")
    if tissue is not None:
        views.append(View("what counted as tissue", tissue))
    return ImageFindings(
        done,
        _class_table(done, regions, nuclei, areas, square),
        {str(kind): areas[kinds == kind] for kind in pd.unique(kinds)},
        checks,
        (*flags, *said),
        tuple(views),
    )


def _class_table(
    done: EntryRecord,
    regions: Regions,
    nuclei: gpd.GeoDataFrame,
    areas: NDArray[np.float64],
    square: float,
) -> pd.DataFrame:
    rows = []
    shapes = nuclei.geometry.to_numpy()
    for name, shape, area in _by_class(regions, done, square):
        inside = np.ones(len(nuclei), bool) if shape is None else in_region(shapes, shape)
        kinds = nuclei["classification"].to_numpy()[inside]
        for kind in sorted(set(kinds)):
            of_kind = areas[inside][kinds == kind]
            rows.append(
                (
                    done.name,
                    name,
                    kind,
                    len(of_kind),
                    len(of_kind) / inside.sum(),
                    area / 1e6,
                    len(of_kind) / area * 1e6 if area else np.nan,
                    float(np.median(of_kind)),
                )
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _by_class(
    regions: Regions, done: EntryRecord, square: float
) -> list[tuple[str, BaseGeometry | None, float]]:
    """The treated area of each annotation class: (class, polygons, µm²)."""
    if regions.polygons is None or not regions.treated:
        return [(WHOLE, regions.union(), done.area or regions.area * square)]
    by_class: dict[str, list[BaseGeometry]] = {}
    for annotation, polygon in zip(regions.treated, regions.polygons, strict=True):
        by_class.setdefault(annotation.classification or UNCLASSIFIED, []).append(polygon)
    unions = {name: shapely.union_all(shapes) for name, shapes in by_class.items()}
    return [(name, shape, float(shape.area) * square) for name, shape in unions.items()]


def _views(
    slide: Slide,
    annotations: Sequence[PathObject],
    nuclei: gpd.GeoDataFrame,
    colors: Mapping[str, Color],
    sizes: Sizes,
) -> list[View]:
    views = []
    boxes: list[tuple[str, Box | None, int]] = [("whole image", None, sizes.whole)]
    left, side = nuclei, DETAIL_UM / slide.mpp[0]
    for number in range(1, sizes.details + 1):
        box = busiest(left, side)
        if box is None:
            break
        boxes.append((f"detail {number}", box, sizes.detail))
        away = ~left.intersects(shapely.box(*box).buffer(side))
        left = left[away.to_numpy()]
    for title, box, width in boxes:
        tissue, drawn = layers(
            slide, nuclei, box=box, annotations=annotations, colors=colors, width=width
        )
        views.append(View(title, tissue, drawn))
    return views
