"""A picture of segmented nuclei: tissue, contours in class colours, legend and scale bar.

Drawn with Pillow alone, so that a server or a headless run needs no plotting library.
Contours are drawn at twice the size and scaled down, which is what makes thin lines smooth.
"""

from __future__ import annotations

import colorsys
import contextlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont
from shapely.geometry.base import BaseGeometry

from pathosam_qupath.errors import UsageError

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.qupath.objects import PathObject
    from pathosam_qupath.slide import Slide

Box = tuple[float, float, float, float]
Color = tuple[int, int, int]

UNCLASSIFIED = "unclassified"
_NO_COLOR: Color = (0, 150, 190)
_INK: Color = (30, 30, 30)
_FONTS = (
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "Helvetica.ttc",
)
_PILLOWS_FONT = "Aileron"
_MOST_CONTOURS = 20_000
"""With more nuclei in a picture their outlines cannot be seen, and take minutes to draw."""
_FINE = 2
"""How much larger than the picture contours are drawn."""


def overlay(
    slide: Slide,
    nuclei: gpd.GeoDataFrame,
    *,
    box: Box | None = None,
    annotations: Sequence[PathObject] = (),
    colors: Mapping[str, Color] | None = None,
    title: str = "",
    width: int = 1200,
    beside: bool = False,
) -> Image.Image:
    """A picture of a region of a slide with its nuclei.

    Parameters
    ----------
    slide : an open slide.
    nuclei : detections (columns ``classification`` and ``geometry``, slide pixels).
    box : (left, top, right, bottom) in slide pixels; the whole slide where None.
    annotations : outlines to draw, with their names.
    colors : (red, green, blue) by class name; unknown classes get a colour of their own.
    width : of the tissue in the picture, pixels.
    beside : put the bare tissue to the left of the overlay.

    Raises
    ------
    UsageError : the box does not touch the slide.
    """
    box = _inside(box or (0, 0, slide.width, slide.height), slide)
    shown = _visible(nuclei, box)
    names = shown["classification"].fillna(UNCLASSIFIED)
    palette = class_palette([*names.unique()], colors or {})
    tissue, drawn = layers(
        slide, shown, box=box, annotations=annotations, colors=colors, width=width
    )
    panels = [tissue, drawn] if beside else [drawn]
    counts = {str(name): int(count) for name, count in names.value_counts().items()}
    bar = _scale_bar(slide.mpp[0] * (box[2] - box[0]) / tissue.width, tissue.width)
    return _page(panels, title, [(n, palette[n], c) for n, c in counts.items()], bar)


def layers(
    slide: Slide,
    nuclei: gpd.GeoDataFrame,
    *,
    box: Box | None = None,
    annotations: Sequence[PathObject] = (),
    colors: Mapping[str, Color] | None = None,
    width: int = 1200,
) -> tuple[Image.Image, Image.Image]:
    """The tissue of a region, and the same with its nuclei (parameters: see `overlay`)."""
    box = _inside(box or (0, 0, slide.width, slide.height), slide)
    tissue = _tissue(slide, box, width)
    scale = (tissue.width / (box[2] - box[0]), tissue.height / (box[3] - box[1]))
    shown = _visible(nuclei, box)
    names = shown["classification"].fillna(UNCLASSIFIED)
    palette = class_palette([*names.unique()], colors or {})
    of_each = [palette[name] for name in names]
    if len(shown) > _MOST_CONTOURS:
        drawn = _dots(tissue, shown.geometry.to_numpy(), of_each, box, scale)
    else:
        contours = _contours(tissue.size, shown.geometry.to_numpy(), of_each, box, scale)
        drawn = Image.alpha_composite(tissue.convert("RGBA"), contours).convert("RGB")
    _outlines(drawn, annotations, box, scale, colors or {})
    return tissue, drawn


def busiest(nuclei: gpd.GeoDataFrame, side: float) -> Box | None:
    """The square of ``side`` pixels with the most nuclei, to half a side; None without any."""
    if len(nuclei) == 0:
        return None
    centers = shapely.get_coordinates(shapely.centroid(nuclei.geometry.to_numpy()))
    cells, counts = np.unique(np.floor(centers / (side / 2)), axis=0, return_counts=True)
    grid: Counter[tuple[float, float]] = Counter()
    for (x, y), count in zip(cells.tolist(), counts.tolist(), strict=True):
        for left, top in ((x, y), (x - 1, y), (x, y - 1), (x - 1, y - 1)):
            grid[left, top] += count
    (left, top), _ = max(grid.items(), key=lambda item: (item[1], item[0]))
    left, top = max(0.0, left) * side / 2, max(0.0, top) * side / 2
    return left, top, left + side, top + side


def class_palette(names: Iterable[str], known: Mapping[str, Color]) -> dict[str, Color]:
    """A colour per class: the known one, else one that depends on the name alone."""
    palette: dict[str, Color] = {}
    for name in names:
        if name in known:
            palette[name] = known[name]
        elif name == UNCLASSIFIED:
            palette[name] = _NO_COLOR
        else:
            hue = sum(ord(c) * (i + 7) for i, c in enumerate(name)) % 256
            red, green, blue = colorsys.hsv_to_rgb(hue / 256, 0.8, 0.85)
            palette[name] = (round(255 * red), round(255 * green), round(255 * blue))
    return palette


def nice_length(most: float) -> float:
    """The largest of 1, 2, 5, 10, 20, … that is not above ``most`` (of any unit)."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))


def _inside(box: Box, slide: Slide) -> Box:
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(slide.width), box[2]), min(float(slide.height), box[3])
    if right - left < 1 or bottom - top < 1:
        raise UsageError(
            f"box {box}",
            f"it does not touch the slide, which is {slide.width} × {slide.height} px",
            "Give left, top, right, bottom in full-resolution pixels of the slide.",
        )
    return left, top, right, bottom


def _tissue(slide: Slide, box: Box, width: int) -> Image.Image:
    """The tissue of a box, ``width`` pixels wide; read no larger than it is shown."""
    across = box[2] - box[0]
    scaled = slide.at(slide.mpp[0] * max(1.0, across / width))
    sx, sy = scaled.scale
    left, top = math.floor(box[0] / sx), math.floor(box[1] / sy)
    right, bottom = math.ceil(box[2] / sx), math.ceil(box[3] / sy)
    pixels = Image.fromarray(scaled.read(left, top, right - left, bottom - top))
    shape = (box[3] - box[1]) * slide.mpp[1] / (across * slide.mpp[0])
    size = (width, max(1, round(width * shape)))
    exact = (box[0] / sx - left, box[1] / sy - top, box[2] / sx - left, box[3] / sy - top)
    return pixels.resize(size, Image.Resampling.BICUBIC, box=exact)


def _visible(nuclei: gpd.GeoDataFrame, box: Box) -> gpd.GeoDataFrame:
    bounds = shapely.bounds(nuclei.geometry.to_numpy())
    seen = (bounds[:, 0] < box[2]) & (bounds[:, 2] > box[0])
    seen &= (bounds[:, 1] < box[3]) & (bounds[:, 3] > box[1])
    return nuclei[seen]


def _contours(
    size: tuple[int, int],
    shapes: np.ndarray[Any, Any],
    colors: Sequence[Color],
    box: Box,
    scale: tuple[float, float],
) -> Image.Image:
    """The nuclei as a transparent layer: faint filling, solid outline."""
    layer = Image.new("RGBA", (size[0] * _FINE, size[1] * _FINE))
    draw = ImageDraw.Draw(layer)
    parts, owner = shapely.get_parts(shapes, return_index=True)
    for part, index in zip(parts, owner, strict=True):
        points = _points(part.exterior, box, scale, _FINE)
        color = colors[index]
        draw.polygon(points, fill=(*color, 60))
        draw.line([*points, *points[:2]], fill=(*color, 255), width=_FINE + 1, joint="curve")
    return layer.resize(size, Image.Resampling.BOX)


def _dots(
    tissue: Image.Image,
    shapes: np.ndarray[Any, Any],
    colors: Sequence[Color],
    box: Box,
    scale: tuple[float, float],
) -> Image.Image:
    """The nuclei as a pixel each: all that can be seen of very many."""
    pixels = np.array(tissue.convert("RGB"))
    at = (shapely.get_coordinates(shapely.centroid(shapes)) - box[:2]) * scale
    column = np.clip(at[:, 0].astype(int), 0, tissue.width - 1)
    row = np.clip(at[:, 1].astype(int), 0, tissue.height - 1)
    pixels[row, column] = np.array(colors, np.uint8)
    return Image.fromarray(pixels)


def _outlines(
    picture: Image.Image,
    annotations: Sequence[PathObject],
    box: Box,
    scale: tuple[float, float],
    colors: Mapping[str, Color],
) -> None:
    """Annotations' outlines with their names, drawn onto the picture."""
    draw = ImageDraw.Draw(picture)
    font = _font(max(12, picture.width // 70))
    frame = shapely.box(*box)
    for annotation in annotations:
        shape = annotation.geometry
        if shape.is_empty or not shapely.intersects(shapely.box(*shape.bounds), frame):
            continue
        name = annotation.name or annotation.classification or ""
        color = annotation.color or class_palette(
            [annotation.classification or UNCLASSIFIED], colors
        ).get(annotation.classification or "", _NO_COLOR)
        for line in shapely.get_parts(shapely.boundary(shape)):
            if line.geom_type in ("LineString", "LinearRing"):
                points = _points(line, box, scale, 1)
                draw.line(points, fill=(255, 255, 255), width=5, joint="curve")
                draw.line(points, fill=color, width=3, joint="curve")
        if name:
            _label(draw, name, _points(shapely.Point(shape.bounds[:2]), box, scale, 1)[0], font)


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    font: ImageFont.FreeTypeFont,
) -> None:
    text = _drawable(text, font)
    at = (max(3.0, corner[0] + 4), max(3.0, corner[1] + 4))
    left, top, right, bottom = draw.textbbox(at, text, font=font)
    draw.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=(255, 255, 255))
    draw.text(at, text, fill=_INK, font=font)


def _points(
    line: BaseGeometry, box: Box, scale: tuple[float, float], fine: int
) -> list[tuple[float, float]]:
    xy = shapely.get_coordinates(line)
    xy = (xy - (box[0], box[1])) * scale * fine
    return [(float(x), float(y)) for x, y in xy]


def _scale_bar(mpp: float, width: int) -> tuple[int, str]:
    """Length in picture pixels, and text, of a bar of at most a fifth of the width."""
    length = nice_length(mpp * width / 5)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    return max(1, round(length / mpp)), text


def _page(
    panels: Sequence[Image.Image],
    title: str,
    legend: Sequence[tuple[str, Color, int]],
    bar: tuple[int, str],
) -> Image.Image:
    """Panels in a row, a title above, the legend and the scale bar below."""
    gap = 8
    width = sum(p.width for p in panels) + gap * (len(panels) - 1)
    font = _font(max(13, panels[0].width // 60))
    line = round(font.size * 1.9)
    entries = [(_drawable(f"{name}  {count:,}", font), color) for name, color, count in legend]
    rows = _rows([font.getlength(text) + 2.2 * line for text, _ in entries], width - bar[0] - 160)
    head = line if title else 0
    page = Image.new(
        "RGB", (width, head + panels[0].height + line * max(1, len(rows)) + gap), "white"
    )
    draw = ImageDraw.Draw(page)
    draw.text((gap, head / 2), _drawable(title, font), fill=_INK, font=font, anchor="lm")
    x = 0
    for panel in panels:
        page.paste(panel, (x, head))
        x += panel.width + gap
    below = head + panels[0].height + gap // 2
    for row, places in enumerate(rows):
        middle = below + row * line + line / 2
        for index, left in places:
            text, color = entries[index]
            draw.rectangle((left + gap, middle - 6, left + gap + 18, middle + 6), fill=color)
            draw.text((left + gap + 26, middle), text, fill=_INK, font=font, anchor="lm")
    middle = below + line / 2
    right = width - gap
    draw.rectangle((right - bar[0], middle - 3, right, middle + 3), fill=_INK)
    draw.text(
        (right - bar[0] - gap, middle), _drawable(bar[1], font), fill=_INK, font=font, anchor="rm"
    )
    return page


def _rows(widths: Sequence[float], room: float) -> list[list[tuple[int, float]]]:
    """Break legend entries into rows: lists of (index, left)."""
    rows: list[list[tuple[int, float]]] = []
    left = 0.0
    for index, width in enumerate(widths):
        if not rows or left + width > room:
            rows.append([])
            left = 0.0
        rows[-1].append((index, left))
        left += width
    return rows


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font of the system, which has every letter that names of classes have, or Pillow's."""
    for name in _FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UsageError("Pillow", "it was built without FreeType", "`pip install pillow`.")
    return font


def _drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """A text in letters that the font has: Pillow's own has ASCII only."""
    if font.getname()[0] != _PILLOWS_FONT:
        return text
    plain = unicodedata.normalize("NFKD", text.replace("µ", "u").replace("ß", "ss"))
    return "".join(c for c in plain if c.isascii())
