"""The images that clients have opened, each under an id; the longest unused is closed."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.open_image import OpenImage, Pair, Placement
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.sent_pixels import PixelRectangle, decode, pixel_image
from pathosam_qupath.slide import Slide, open_slide


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
            pixel_image(key, decode(content, self._limits.pixels), rectangle)
        )

    def get(self, image: str) -> OpenImage:
        """An image by its id.

        Raises
        ------
        ProblemError : there is none (any more).
        """
        found = self._kept(image)
        if found is None:
            raise _not_open(image)
        return found

    @contextmanager
    def hold(self, image: OpenImage) -> Iterator[None]:
        """Keep an image's file open, even where the image is let go of meanwhile.

        Raises
        ------
        ProblemError : it has been let go of already.
        """
        with self._lock:
            if image.gone:
                raise _not_open(image.id)
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


def _not_open(image: str) -> ProblemError:
    return ProblemError(
        404, "not_found", image, "no such image is open (any more)", "Open it again."
    )


def _file_image(key: str, slide: Slide, label: str) -> OpenImage:
    return OpenImage(key, slide, Placement(), (slide.width, slide.height), slide.mpp, "file", label)


def _key(*parts: object) -> str:
    return "img-" + hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
