"""An image that a client has opened, and where its pixels lie on the client's slide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathosam_qupath.slide import Slide

Pair = tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """Where an image's own pixels lie on the slide.

    Attributes
    ----------
    offset : slide pixels of the image's upper left corner.
    scale : slide pixels per pixel of the image.
    """

    offset: Pair = (0.0, 0.0)
    scale: Pair = (1.0, 1.0)

    @property
    def is_identity(self) -> bool:
        """Whether the image is the slide itself."""
        return self.offset == (0.0, 0.0) and self.scale == (1.0, 1.0)

    def to_slide(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) coordinates of the image in slide pixels."""
        return np.asarray(xy * self.scale + np.array(self.offset), np.float64)

    def to_image(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) slide pixels in coordinates of the image."""
        return np.asarray((xy - np.array(self.offset)) / self.scale, np.float64)

    def shapes_to_slide(self, shapes: NDArray[np.object_]) -> NDArray[np.object_]:
        """Shapes of the image on the slide."""
        return shapes if self.is_identity else np.asarray(shapely.transform(shapes, self.to_slide))


@dataclass(eq=False)
class OpenImage:
    """An image that a client has opened.

    Attributes
    ----------
    slide : its pixels, in coordinates of its own.
    placement : of these on the slide that the client talks about.
    size : (width, height) of the client's slide in pixels; ``mpp`` likewise µm/px.
    label : what to call it on a page.
    nbytes : decoded pixels that it holds in memory.
    """

    id: str
    slide: Slide
    placement: Placement
    size: tuple[int, int]
    mpp: Pair
    source: Literal["file", "pixels"]
    label: str
    nbytes: int = 0
    users: int = field(default=0, repr=False)
    gone: bool = field(default=False, repr=False)
