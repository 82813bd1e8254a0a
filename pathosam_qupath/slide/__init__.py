"""Pixels of a slide at a wanted resolution, whatever the file.

The frame is QuPath's: full-resolution pixels of the whole level 0 (QuPath's OpenSlide
server ignores the bounds of the scanned region by default, and so does this), after the
crop and the rotation that a QuPath project may lay on the file.

Examples
--------
>>> with open_slide("slide.svs") as slide:          # doctest: +SKIP
...     at_40x = slide.at(mpp=0.25)
...     tile = at_40x.read(1024, 2048, 512, 512)
"""

from __future__ import annotations

from pathosam_qupath.slide.opening import check, open_slide
from pathosam_qupath.slide.slide import ScaledSlide, Slide
from pathosam_qupath.slide.slide_file import SlideFile
from pathosam_qupath.slide.source import Level

__all__ = ["Level", "ScaledSlide", "Slide", "SlideFile", "check", "open_slide"]
