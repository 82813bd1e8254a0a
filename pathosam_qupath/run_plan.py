"""What a run would do: which images, which regions of them, and why not.

Reads the project and opens the slides, writes nothing; a dry run shows this and stops.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import shapely
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import ImageError, PathosamError, UsageError
from pathosam_qupath.regions import (
    ALL,
    IGNORED_CLASS,
    Regions,
    choose_regions,
    is_ignored,
    is_wanted,
    label,
    reason_against,
)
from pathosam_qupath.replacing import Policy
from pathosam_qupath.run_tissue import tissue_of
from pathosam_qupath.segmentation.block_plan import Mode
from pathosam_qupath.slide import SlideFile

if TYPE_CHECKING:
    from pathosam_qupath.qupath.objects import PathObject
    from pathosam_qupath.qupath.project import Entry, Project
    from pathosam_qupath.segmentation.classes import ClassMap
    from pathosam_qupath.slide import Slide


@dataclass(frozen=True)
class RunOptions:
    """What to segment, and how to treat what is there already.

    Attributes
    ----------
    images : patterns of image names or ids (``*`` and ``?``); empty means every image.
    annotations : classes or names of annotations; "all" means every one but "Ignore*".
    whole_image : segment the whole image instead.
    mpp : µm/px of the images, instead of what they say themselves.
    class_map : what the model's classes are called in the project; None: as the model does.
    policy, replace_edited : see :mod:`pathosam_qupath.replacing`.
    mode : how nuclei are found (see ``segmentation.block_plan``).
    tissue : "auto" (looked for in whole images), "off", or a GeoJSON file or folder; see
        :mod:`pathosam_qupath.run_tissue`. Where it is known, nothing else is looked at.
    where : by id of an image, the only part of it to treat (WKT, full-resolution pixels);
        None: all that is chosen.
    """

    images: tuple[str, ...] = ()
    annotations: tuple[str, ...] = (ALL,)
    whole_image: bool = False
    mpp: float | None = None
    class_map: ClassMap | None = None
    policy: Policy = "replace"
    replace_edited: bool = False
    mode: Mode = "ais"
    tissue: str = "auto"
    where: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.mpp is not None and not (math.isfinite(self.mpp) and self.mpp > 0):
            raise UsageError(
                f"--mpp {self.mpp}", "a pixel size must be positive", "Give µm per pixel, as 0.25."
            )


@dataclass(frozen=True, eq=False)
class EntryPlan:
    """What a run would do with one image.

    Attributes
    ----------
    regions : what to treat; None where the image cannot be treated.
    size : (width, height) in pixels, and ``mpp`` (x, y) in µm/px, where known.
    error : why the image cannot be treated; None where it can.
    nothing : why there is nothing to do in it; None where there is.
    tissue : polygons in slide pixels; None where the run does not ask for tissue.
    """

    entry: Entry
    regions: Regions | None = None
    size: tuple[int, int] | None = None
    mpp: tuple[float, float] | None = None
    error: PathosamError | None = None
    nothing: str | None = None
    tissue: BaseGeometry | None = None

    @cached_property
    def area(self) -> float | None:
        """Treated area in µm²."""
        if self.regions is None or self.mpp is None:
            return None
        pixels = self.regions.area
        if self.tissue is not None:
            union = self.regions.union()
            seen = self.tissue if union is None else shapely.intersection(self.tissue, union)
            pixels = float(seen.area)
        return pixels * self.mpp[0] * self.mpp[1]

    def summary(self) -> dict[str, object]:
        """The plan in words and numbers, for machines."""
        regions = self.regions
        return {
            "id": self.entry.id,
            "name": self.entry.name,
            "size": self.size,
            "mpp": self.mpp,
            "whole_image": regions is not None and not regions.treated,
            "annotations": [] if regions is None else [str(a.id) for a in regions.treated],
            "area": self.area,
            "skipped": self.nothing,
            "problem": None if self.error is None else self.error.cause,
            "remedy": None if self.error is None else self.error.remedy,
        }


def plan_run(
    project: Project,
    options: RunOptions,
    *,
    looking: Callable[[int, int, str], None] = lambda number, images, name: None,
) -> list[EntryPlan]:
    """What a run with these options would do; reads, writes nothing.

    Parameters
    ----------
    looking : called with the number of an image (from 1), how many there are, and its name,
        before it is looked at: hundreds of slides take minutes.

    Raises
    ------
    UsageError : no image fits the patterns, or no annotation fits anywhere.
    """
    entries = [e for e in project.entries if is_chosen(e, options.images)]
    if not entries:
        names = ", ".join(repr(e.name) for e in project.entries[:8]) or "none"
        raise UsageError(
            "--images " + " ".join(options.images) if options.images else project.path,
            "no image fits" if options.images else "the project has no images",
            f"Images of this project: {names}.",
        )
    plans = []
    for number, entry in enumerate(entries, start=1):
        looking(number, len(entries), entry.name)
        plans.append(plan_entry(entry, options))
    if all(plan.error is None and plan.nothing for plan in plans):
        raise UsageError(
            "--annotations " + " ".join(options.annotations),
            "there is nothing to segment in the chosen images "
            f"({plans[0].entry.name}: {plans[0].nothing})",
            "Draw annotations in QuPath and save, choose others (`pathosam-qupath inspect` lists "
            "them), or take --whole-image.",
        )
    return plans


def plan_entry(entry: Entry, options: RunOptions) -> EntryPlan:
    """What a run would do with one image."""
    try:
        annotations = entry.annotations()
        nothing = None if options.whole_image else _why_nothing(annotations, options)
        if nothing is not None:
            return EntryPlan(entry, nothing=nothing)
        with open_entry(entry, options.mpp) as slide:
            size, pixel = (slide.width, slide.height), slide.mpp
            tissue = tissue_of(slide, entry, options)
    except PathosamError as error:
        return EntryPlan(entry, error=error)
    regions = choose_regions(
        annotations, size, wanted=options.annotations, whole_image=options.whole_image
    )
    if options.where is not None:
        part = shapely.from_wkt(options.where.get(entry.id, "POLYGON EMPTY"))
        regions = regions.within(part, size)
    if regions.empty:
        nothing = "; ".join(f"{label(a)} {reason}" for a, reason in regions.refused)
        nothing = nothing or f"all of it is inside {IGNORED_CLASS}"
    outlined = None if tissue is None else tissue.geometry
    return EntryPlan(entry, regions, size, pixel, nothing=nothing, tissue=outlined)


def open_entry(entry: Entry, mpp: float | None = None) -> Slide:
    """Open an image's pixels as QuPath shows them.

    Raises
    ------
    ImageError, PixelSizeError : the pixels cannot be had, or not be segmented.
    """
    return slide_file(entry, mpp).open()


def slide_file(entry: Entry, mpp: float | None = None) -> SlideFile:
    """Where an image's pixels are, as QuPath shows them.

    Raises
    ------
    ImageError : they cannot be had, or not be segmented.
    """
    image = entry.image
    if image.problem is not None or image.path is None:
        raise ImageError(
            f"image {entry.name!r}",
            image.problem or "the file is not found",
            "Leave it out with --images to segment the others.",
        )
    if entry.image_type == "FLUORESCENCE":
        raise ImageError(
            f"image {entry.name!r}",
            "its type is fluorescence; the model knows stained tissue in transmitted light",
            "Leave it out with --images, or set its type in QuPath if that is wrong.",
        )
    return SlideFile(
        image.path, image.series, image.rotation, image.crop, image.mpp if mpp is None else mpp
    )


def is_chosen(entry: Entry, patterns: Sequence[str]) -> bool:
    """Whether an image's name or id fits one of the patterns; it does where there are none."""
    # A name with brackets ("LuCa_[13860,52919].tif") is meant as it is where it fits so.
    return not patterns or any(
        p in (entry.name, entry.id) or fnmatch.fnmatchcase(entry.name, p) for p in patterns
    )


def _why_nothing(annotations: Sequence[PathObject], options: RunOptions) -> str | None:
    """Why no annotation of an image can be treated; None where one can."""
    if not annotations:
        return "it has no annotations"
    if all(is_ignored(a) for a in annotations):
        return f"it has no annotations but those of class {IGNORED_CLASS}"
    wanted = [a for a in annotations if not is_ignored(a) and is_wanted(a, options.annotations)]
    if not wanted:
        known = {word for a in annotations for word in (a.name, a.classification) if word}
        listed = ", ".join(repr(k) for k in sorted(known)) or "only ones without either"
        return f"no annotation is called or classified so; there are {listed}"
    against = [(a, reason_against(a)) for a in wanted]
    if all(reason for _, reason in against):
        return "; ".join(f"{label(a)} {reason}" for a, reason in against)
    return None
