"""The images that clients have opened, each under an id; the longest unused is closed.

An image is a file that the server reads, or pixels that a client sent because the server
cannot read the file. Such pixels show a rectangle of a slide at some downsample; they are
a small slide of their own here, and a :class:`Placement` takes coordinates to and fro.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pathosam_qupath.errors import ImageError
from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.slide import Level, Slide, open_slide
from pathosam_qupath.slide.illumination import check_illumination
from pathosam_qupath.slide.slide import Frame

Pixels = NDArray[np.uint8]
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


@dataclass(frozen=True)
class PixelRectangle:
    """What pixels that a client sends show.

    Attributes
    ----------
    x, y, width, height : of the rectangle, in slide pixels.
    mpp : (x, y) µm per slide pixel.
    slide_size : (width, height) of the slide, for the client's own use; None: up to the
        rectangle's far corner.
    """

    x: float
    y: float
    width: float
    height: float
    mpp: Pair
    slide_size: tuple[int, int] | None = None


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


class Images:
    """Open images by id. Thread-safe.

    Parameters
    ----------
    closed : called with the id of each image that is let go of.
    """

    def __init__(self, limits: Limits, closed: Callable[[str], None] = lambda image: None) -> None:
        self._limits, self._closed = limits, closed
        self._lock = threading.Lock()
        self._images: OrderedDict[str, OpenImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def open_file(
        self,
        path: Path,
        *,
        series: int = 0,
        rotation: int = 0,
        crop: tuple[int, int, int, int] | None = None,
        mpp: Pair | None = None,
    ) -> OpenImage:
        """Open a slide, or return the one that the same request opened.

        Raises
        ------
        ImageError, PixelSizeError, UsageError : see :func:`pathosam_qupath.slide.open_slide`.
        """
        try:
            found = path.stat()
            version = (found.st_size, found.st_mtime_ns)
        except OSError:
            version = (0, 0)  # open_slide says what is wrong with it
        key = _key("file", path, version, series, rotation, crop, mpp)
        return self._kept(key) or self._keep(
            _file_image(
                key,
                open_slide(path, series=series, rotation=rotation, crop=crop, mpp=mpp),
                path.name,
            )
        )

    def open_pixels(self, content: bytes, rectangle: PixelRectangle) -> OpenImage:
        """Keep pixels of a slide's rectangle.

        Raises
        ------
        ImageError : not a PNG or JPEG of 8-bit RGB, or fluorescence.
        ProblemError : too many pixels, or their shape is not the rectangle's.
        """
        key = _key("pixels", hashlib.blake2b(content, digest_size=16).hexdigest(), rectangle)
        return self._kept(key) or self._keep(
            _pixel_image(key, decode(content, self._limits.pixels), rectangle)
        )

    def get(self, image: str) -> OpenImage:
        """An image by its id.

        Raises
        ------
        ProblemError : there is none (any more).
        """
        found = self._kept(image)
        if found is None:
            raise ProblemError(
                404, "not_found", image, "no such image is open (any more)", "Open it again."
            )
        return found

    @contextmanager
    def hold(self, image: OpenImage) -> Iterator[None]:
        """Keep an image's file open, even where the image is let go of meanwhile."""
        with self._lock:
            image.users += 1
        try:
            yield
        finally:
            with self._lock:
                image.users -= 1
                last = image.gone and image.users == 0
            if last:
                image.slide.close()

    def drop(self, image: str) -> None:
        """Let go of an image; jobs that use it keep it until they end."""
        self.get(image)
        with self._lock:
            found = self._images.pop(image, None)
        if found is not None:
            self._release([found])

    def close(self) -> None:
        """Let go of all images."""
        with self._lock:
            every = list(self._images.values())
            self._images.clear()
        self._release(every)

    def _kept(self, key: str) -> OpenImage | None:
        with self._lock:
            found = self._images.get(key)
            if found is not None:
                self._images.move_to_end(key)
            return found

    def _keep(self, image: OpenImage) -> OpenImage:
        """Take an image in; another request may have been faster."""
        with self._lock:
            found = self._images.setdefault(image.id, image)
            self._images.move_to_end(image.id)
            leaving = [] if found is image else [image]
            leaving += self._surplus()
        self._release(leaving)
        return found

    def _surplus(self) -> list[OpenImage]:
        leaving: list[OpenImage] = []
        held = sum(image.nbytes for image in self._images.values())
        while len(self._images) > 1 and (
            len(self._images) > self._limits.images or held > self._limits.image_bytes
        ):
            _, oldest = self._images.popitem(last=False)
            held -= oldest.nbytes
            leaving.append(oldest)
        return leaving

    def _release(self, images: list[OpenImage]) -> None:
        for image in images:
            with self._lock:
                image.gone = True
                unused = image.users == 0
            if unused:
                image.slide.close()
            if image.id not in self._images:
                self._closed(image.id)


def decode(content: bytes, most: int) -> Pixels:
    """(height, width, 3) uint8 of a PNG or JPEG; its size is looked at before it is decoded.

    Raises
    ------
    ImageError : damaged, another format, or not 8-bit colour.
    ProblemError : more than ``most`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                width, height = image.size
                if width * height > most:
                    raise ProblemError(
                        413,
                        "too_large",
                        "pixels",
                        f"{width} x {height} pixels are more than {most:,}",
                        "Send a smaller rectangle, or a coarser one.",
                    )
                if image.mode not in ("RGB", "RGBA", "P"):
                    raise ImageError(
                        "pixels", f"their colours are {image.mode}, not RGB", "Send 8-bit RGB."
                    )
                return np.array(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ProblemError(
            413, "too_large", "pixels", str(error), "Send a smaller rectangle."
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            "pixels", f"they cannot be decoded as PNG or JPEG ({error})", "Send them again."
        ) from error


class _ArraySource:
    """Pixels in memory as a slide's reader gives them."""

    mpp: tuple[float, float] | None = None
    magnification: float | None = None
    fluorescence: str | None = None

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self.levels: tuple[Level, ...] = (Level(pixels.shape[1], pixels.shape[0]),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A window of the pixels."""
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing is open; memory goes with the last user."""


def _file_image(key: str, slide: Slide, label: str) -> OpenImage:
    return OpenImage(key, slide, Placement(), (slide.width, slide.height), slide.mpp, "file", label)


def _pixel_image(key: str, pixels: Pixels, rectangle: PixelRectangle) -> OpenImage:
    height, width = pixels.shape[:2]
    scale = rectangle.width / width, rectangle.height / height
    # Rounding to whole pixels makes the two differ by about one pixel of the sent image.
    if abs(scale[0] / scale[1] - 1) > 2 / min(width, height) + 0.01:
        raise ProblemError(
            422,
            "invalid_request",
            "pixels",
            f"{width} x {height} pixels do not have the shape of the rectangle of "
            f"{rectangle.width:g} x {rectangle.height:g} slide pixels",
            "Send the pixels of exactly that rectangle.",
        )
    source = _ArraySource(pixels)
    check_illumination(Path("pixels"), source)
    own = rectangle.mpp[0] * scale[0], rectangle.mpp[1] * scale[1]
    far = round(rectangle.x + rectangle.width), round(rectangle.y + rectangle.height)
    return OpenImage(
        key,
        Slide(source, Frame((0, 0, width, height)), own),
        Placement((rectangle.x, rectangle.y), scale),
        rectangle.slide_size or far,
        rectangle.mpp,
        "pixels",
        f"pixels at {rectangle.x:g}, {rectangle.y:g}",
        pixels.nbytes,
    )


def _key(*parts: object) -> str:
    return "img-" + hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
