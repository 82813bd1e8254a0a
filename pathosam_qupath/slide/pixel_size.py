"""Where a file says how large its pixels are, and when that can be believed.

OME-TIFF says it in ``Pixels/@PhysicalSizeX`` with a unit (OME schema 2016-06, default
µm), Aperio in its description (MPP), ImageJ in its description's ``unit``, others only
in TIFF's resolution tags. Those tags are often filled with a print resolution: 72 dpi
would mean 353 µm per pixel, so a value is taken only within what microscopes make.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

CREDIBLE = (0.01, 20.0)
"""Smallest and largest credible µm/px: beyond oil immersion, and below 0.5x."""

_MICROMETRES = {
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25400.0,
    "inch": 25400.0,
    "pm": 1e-6,
    "Å": 1e-4,
}


def credible(x: object, y: object) -> tuple[float, float] | None:
    """Return (x, y) µm/px as floats, or None where one is no credible pixel size."""
    try:
        values = float(str(x)), float(str(y))
    except ValueError:
        return None
    low, high = CREDIBLE
    return values if all(low <= value <= high for value in values) else None


def from_ome(description: str, series: int) -> tuple[float, float] | None:
    """Return the (x, y) µm/px of an OME-XML's image, or None.

    Parameters
    ----------
    description : the OME-XML.
    series : which ``Image`` element.
    """
    pixels = _ome_pixels(description, series)
    if pixels is None:
        return None
    sizes = []
    for axis in "XY":
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        value = pixels.get(f"PhysicalSize{axis}")
        if value is None or unit not in _MICROMETRES:
            return None
        try:
            sizes.append(float(value) * _MICROMETRES[unit])
        except ValueError:
            return None
    return credible(*sizes)


def from_imagej(
    metadata: Mapping[str, Any], resolution: tuple[float, float]
) -> tuple[float, float] | None:
    """Return the (x, y) µm/px of an ImageJ TIFF, whose tags hold pixels per ``unit``."""
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    if unit not in _MICROMETRES or not all(resolution):
        return None
    return credible(*(_MICROMETRES[unit] / value for value in resolution))


def ome_fluorescence(description: str, series: int) -> str | None:
    """Return what an OME-XML says of fluorescence in an image's channels, or None."""
    pixels = _ome_pixels(description, series)
    if pixels is None:
        return None
    for channel in pixels:
        if _local_name(channel) != "Channel":
            continue
        for attribute in ("IlluminationType", "ContrastMethod"):
            value = channel.get(attribute, "")
            if value in ("Epifluorescence", "Fluorescence"):
                return f"OME channel {channel.get('Name', channel.get('ID'))!r}: {value}"
    return None


def _ome_pixels(description: str, series: int) -> ElementTree.Element | None:
    if "<!ENTITY" in description:
        return None
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError:
        return None
    images = [element for element in root if _local_name(element) == "Image"]
    if series >= len(images):
        return None
    return next((part for part in images[series] if _local_name(part) == "Pixels"), None)


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
