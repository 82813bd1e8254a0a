"""The package from a script or a notebook: a slide in, a GeoDataFrame of nuclei out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import UsageError

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries

    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.segmentation.pipeline import Progress, SegmentableSlide, SegmentOptions

    Region: TypeAlias = (
        BaseGeometry
        | Sequence[BaseGeometry]
        | GeoDataFrame
        | GeoSeries
        | tuple[float, float, float, float]
    )


def segment(
    slide: str | Path | SegmentableSlide,
    region: Region | None = None,
    model: str | Path | NucleusModel = "bundled",
    *,
    device: str = "auto",
    mpp: float | None = None,
    tissue: bool | BaseGeometry = True,
    options: SegmentOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> GeoDataFrame:
    """Nuclei of a slide, or of a region of it.

    Parameters
    ----------
    slide : a file, or an open slide.
    region : where nuclei must have their centroid, in full-resolution pixels: a polygon,
        several, a GeoDataFrame of them, or (left, top, right, bottom). None: all of it.
    model : a name of `pathosam-qupath models list`, a weight file, or a loaded model, which
        is what to give when there are many slides.
    device : where a model that is not loaded yet runs: auto, cpu, cuda, cuda:1, mps.
    mpp : µm/px of a file, instead of what it says itself.
    tissue : look for tissue where no region is given, and leave glass out; False looks
        everywhere; polygons say where tissue is.
    options : thresholds, class names, ids, speed (``segmentation.SegmentOptions``).
    progress : called as tiles and blocks are finished.

    Returns
    -------
    nuclei : one row per nucleus: ``id``, ``classification``, ``probability``, ``geometry``
        (polygon in slide pixels), then measurements in µm. ``nuclei.attrs`` has the
        slide's "mpp" and the "model" with its "weights_hash".

    Raises
    ------
    ImageError, PixelSizeError : the file cannot be segmented.
    ModelError : there is no such model.
    UsageError : a region that is none.

    Examples
    --------
    >>> import pathosam_qupath as pq
    >>> nuclei = pq.segment("projects_example/images/colon-ihc.tif", (0, 0, 400, 300))
    >>> list(nuclei.columns[:5])
    ['id', 'classification', 'probability', 'geometry', 'Area µm^2']
    """
    from pathosam_qupath.model import load_model
    from pathosam_qupath.segmentation.pipeline import (
        SegmentOptions,
        nuclei_frame,
        plan_blocks,
        segment_blocks,
    )
    from pathosam_qupath.segmentation.tissue import find_tissue
    from pathosam_qupath.slide import open_slide

    options = options or SegmentOptions()
    regions = None if region is None else _polygons(region)
    loaded = load_model(model, device) if isinstance(model, str | Path) else model
    with ExitStack() as opened:
        if isinstance(slide, str | Path):
            slide = opened.enter_context(open_slide(slide, mpp=mpp))
        elif mpp is not None:
            raise UsageError("mpp", "the slide is open already", "Give it to open_slide.")
        outlined: BaseGeometry | None = None
        if isinstance(tissue, BaseGeometry):
            outlined = tissue
        elif tissue and regions is None:
            outlined = find_tissue(slide).geometry
        plan = plan_blocks(slide, regions, loaded.info, options, tissue=outlined)
        results = segment_blocks(plan, loaded, options=options, progress=progress)
        parts = [result.objects for result in results]
        nuclei = nuclei_frame(parts, slide.mpp, loaded.info, options)
        nuclei.attrs = {
            "mpp": tuple(slide.mpp),
            "model": loaded.info.name,
            "weights_hash": loaded.info.weights_hash,
        }
    return nuclei


def _polygons(region: Region) -> list[BaseGeometry]:
    """A region as a list of polygons."""
    if isinstance(region, BaseGeometry):
        found: list[BaseGeometry] = [region]
    elif hasattr(region, "geometry"):
        found = list(region.geometry)
    elif len(region) == 4 and all(isinstance(side, int | float) for side in region):
        found = [shapely.box(*region)]
    else:
        found = [shape for shape in region if isinstance(shape, BaseGeometry)]
        if len(found) != len(region):
            raise UsageError(
                f"region {region!r:.80}",
                "it is neither polygons nor four numbers",
                "Give a shapely polygon, several, or (left, top, right, bottom) in pixels.",
            )
    if not any(shape.area > 0 for shape in found):
        raise UsageError(
            f"region {region!r:.80}", "it has no area", "Give polygons in pixels of the slide."
        )
    return found
