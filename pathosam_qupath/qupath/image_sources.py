"""Where the pixels of a project's images are, from the JSON of QuPath's server builders.

A builder is a file with a reader and its arguments (``"builderType": "uri"``), or a
wrapper around another builder. Wrappers that only move pixels (rotation by quarter
turns, crops, made-up pyramids) are resolved to a file, a crop in its pixels and a
rotation; those that change pixel values are refused by name, since a network would see
something else than the pathologist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pathosam_qupath.qupath.image_locations import ImageFinder
from pathosam_qupath.qupath.project import ImageSource
from pathosam_qupath.qupath.project_file import ImageRecord

_ROTATIONS = {"ROTATE_NONE": 0, "ROTATE_90": 90, "ROTATE_180": 180, "ROTATE_270": 270}

_REFUSED = {
    "affine": "an affine transform",
    "channels": "channels of several images",
    "color": "a channel transform",
    "color_deconvolved": "a colour deconvolution",
    "flipped": "a flip",
    "normalized": "a stain normalisation",
    "sliced": "a selection of z-slices or time points",
    "sparse": "a mosaic of several images",
    "swapRedBlue": "reordered colour channels",
    "typeConvert": "a pixel type conversion",
    "z_concatenated": "a stack of several images",
    "z_projected": "a z-projection",
}


class _RefusedError(Exception):
    """A builder whose pixels this package does not read; its text says why."""


@dataclass(frozen=True)
class _Frame:
    """A builder resolved so far: a file, the part of it in view, and how that is turned.

    ``size`` is (width, height) of the file's whole image, or of the crop; None when no
    metadata told it.
    """

    uri: str
    series: int
    size: tuple[int, int] | None
    crop: tuple[int, int, int, int] | None = None
    rotation: int = 0
    mpp: tuple[float, float] | None = None


def image_source(record: ImageRecord, finder: ImageFinder) -> ImageSource:
    """Return where an entry's pixels are; ``problem`` says why where they cannot be had.

    The pixel size is the one that the project stores, if it is in micrometres: QuPath
    uses it whatever the file says. It belongs to the image as QuPath shows it, after
    rotation and crop.
    """
    if record.server is None:
        return ImageSource(None, None, problem="the project stores no image for this entry")
    try:
        frame = _resolve(record.server)
    except _RefusedError as refusal:
        return ImageSource(_first_uri(record.server), None, problem=str(refusal))
    except RecursionError:
        return ImageSource(None, None, problem="its wrappers are nested too deeply")
    path, problem = finder.find(frame.uri)
    return ImageSource(
        uri=frame.uri,
        path=path,
        series=frame.series,
        rotation=frame.rotation,
        crop=frame.crop,
        mpp=frame.mpp,
        problem=problem,
    )


def _resolve(builder: Mapping[str, Any]) -> _Frame:
    kind = builder.get("builderType")
    if kind == "uri" or (kind is None and "uri" in builder):
        frame = _file(builder)
    elif kind == "pyramidize":
        frame = _resolve(_inner(builder))
    elif kind == "rotated":
        frame = _rotated(_resolve(_inner(builder)), builder.get("rotation"))
    elif kind == "cropped":
        frame = _cropped(_resolve(_inner(builder)), builder.get("region"))
    else:
        what = _REFUSED.get(str(kind), f"a kind of image that is not known here ({kind!r})")
        raise _RefusedError(
            f"QuPath shows it through {what}; "
            "write the image to a file of its own (OME-TIFF) in QuPath and add that"
        )
    own = _mpp(builder)
    return replace(frame, mpp=own) if own is not None else frame


def _file(builder: Mapping[str, Any]) -> _Frame:
    uri = builder.get("uri")
    if not isinstance(uri, str) or not uri:
        raise _RefusedError("the project stores no file for it")
    given = builder.get("args")
    args = [str(arg) for arg in given] if isinstance(given, list) else []
    for option, what in (("--rotate", "rotation"), ("--order", "channel order")):
        if option in args:
            raise _RefusedError(
                f"its reader is told to change the {what} ({option}); "
                "write the image to a file of its own (OME-TIFF) in QuPath and add that"
            )
    return _Frame(uri, _series(args), _size(builder))


def _series(args: list[str]) -> int:
    """Return the image number that a reader's arguments (``--series 2``) ask for."""
    for index, arg in enumerate(args):
        name, has_value, value = arg.partition("=")
        if name != "--series":
            continue
        text = value if has_value else args[index + 1] if index + 1 < len(args) else ""
        if text.strip().isdecimal():
            return int(text)
        raise _RefusedError(f"its reader's argument --series is {text!r}, not a number")
    return 0


def _rotated(frame: _Frame, rotation: object) -> _Frame:
    if rotation is None:
        rotation = "ROTATE_NONE"
    if rotation not in _ROTATIONS:
        raise _RefusedError(f"its rotation {rotation!r} is not a multiple of 90 degrees")
    degrees = _ROTATIONS[str(rotation)]
    mpp = frame.mpp
    if mpp is not None and degrees in (90, 270):
        mpp = mpp[1], mpp[0]
    return replace(frame, rotation=(frame.rotation + degrees) % 360, mpp=mpp)


def _cropped(frame: _Frame, region: object) -> _Frame:
    """Crop what is in view; the region's frame is turned like the view."""
    if not isinstance(region, Mapping):
        raise _RefusedError("its crop has no region")
    try:
        x, y, width, height = (int(region[key]) for key in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError):
        raise _RefusedError(f"its crop {dict(region)!r} is not a rectangle") from None
    if frame.rotation:
        if frame.size is None:
            raise _RefusedError("it is a crop of a rotated image of unknown size")
        full_width, full_height = frame.size
        # A clockwise quarter turn takes the file's (x, y) to (full_height - y, x).
        if frame.rotation == 90:
            x, y, width, height = y, full_height - x - width, height, width
        elif frame.rotation == 180:
            x, y = full_width - x - width, full_height - y - height
        else:
            x, y, width, height = full_width - y - height, x, height, width
    left, top = frame.crop[:2] if frame.crop is not None else (0, 0)
    return replace(frame, crop=(left + x, top + y, width, height), size=(width, height))


def _inner(builder: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = builder.get("builder")
    if not isinstance(inner, Mapping):
        raise _RefusedError(f"its {builder.get('builderType')!r} wrapper holds no image")
    return inner


def _size(builder: Mapping[str, Any]) -> tuple[int, int] | None:
    metadata = builder.get("metadata")
    if not isinstance(metadata, Mapping):
        return None
    width, height = metadata.get("width"), metadata.get("height")
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    return None


def _mpp(builder: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the stored pixel size where it is calibrated in micrometres."""
    try:
        calibration = builder["metadata"]["pixelCalibration"]
        sides = [calibration["pixelWidth"], calibration["pixelHeight"]]
        if all(side["unit"] in ("µm", "μm", "um") for side in sides):
            x, y = (float(side["value"]) for side in sides)
            return (x, y) if x > 0 and y > 0 else None
    except (KeyError, TypeError, ValueError):
        return None
    return None


def _first_uri(builder: object) -> str | None:
    """Return the first URI anywhere in a builder, to name the image in messages."""
    if isinstance(builder, Mapping):
        uri = builder.get("uri")
        if isinstance(uri, str):
            return uri
        builder = list(builder.values())
    if isinstance(builder, list):
        for part in builder:
            if (uri := _first_uri(part)) is not None:
                return uri
    return None
