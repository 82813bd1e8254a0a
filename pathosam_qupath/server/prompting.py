"""Answers to prompts: a session per image, so that a second click near the first is quick."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.interrupting import interruptible
from pathosam_qupath.qupath.objects import FRAME_COLUMNS
from pathosam_qupath.segmentation.classes import class_colors
from pathosam_qupath.server.geometry import check_vertices, shape_of
from pathosam_qupath.server.images import Images
from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.open_image import OpenImage
from pathosam_qupath.server.pacing import Device
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.prompt_models import WatchedModel
from pathosam_qupath.server.schemas import PromptModel, PromptRequest, PromptResponse
from pathosam_qupath.server.segment_job import class_map_of
from pathosam_qupath.server.warm_model import WarmModel

if TYPE_CHECKING:
    import geopandas as gpd

    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.model.prompts import Prompt
    from pathosam_qupath.segmentation.prompting import PromptSession

_MODEL_SECONDS = 30.0

PROMPT_RUN = "prompt"
"""What the objects of prompts bear in place of a run's id: no record knows them, so that no
later run replaces them, and that they are corrections can be told."""


class Prompts:
    """Sessions of the images that were prompted last."""

    def __init__(self, limits: Limits, images: Images, warm: WarmModel, device: Device) -> None:
        self._limits, self._images, self._warm, self._device = limits, images, warm, device
        self._lock = threading.Lock()
        self._sessions: OrderedDict[tuple[str, str], tuple[WatchedModel, PromptSession]]
        self._sessions = OrderedDict()
        self._model: NucleusModel | None = None
        self._closed = threading.Event()

    def answer(self, request: PromptRequest, gone: threading.Event) -> PromptResponse:
        """The object of each prompt.

        Parameters
        ----------
        gone : set once nobody waits for the answer any more.

        Raises
        ------
        ProblemError : no such image, a model that is not ready or answers no prompts, a prompt
            that says nothing, or nobody waits any more.
        """

        def check() -> None:
            if gone.is_set() or self._closed.is_set():
                raise ProblemError(503, "stopping", "prompts", "they were given up", "Ask again.")

        began = time.perf_counter()
        image = self._images.get(request.image)
        areas = [p.geometry for p in request.prompts if p.geometry is not None]
        check_vertices(areas, self._limits.vertices)
        prompts = [_prompt(i, p, image) for i, p in enumerate(request.prompts, start=1)]
        self._warm.check()
        with self._images.hold(image), self._device.prompting(), interruptible(check):
            check()
            model = self._warm.get(seconds=_MODEL_SECONDS)
            classes = class_map_of(request.options.classes, model.info)
            watched, session = self._session(image, model, request)
            before = watched.passes
            frame = session.segment(prompts)
            passes = watched.passes - before
        colors = class_colors(model.info.classes, model.info.colors, classes)
        return PromptResponse(
            type="FeatureCollection",
            features=_features(frame, image, colors),
            encoder_passes=passes,
            milliseconds=round(1000 * (time.perf_counter() - began), 1),
        )

    def forget(self, image: str) -> None:
        """Drop the sessions of an image."""
        with self._lock:
            for key in [key for key in self._sessions if key[0] == image]:
                del self._sessions[key]

    def close(self) -> None:
        """Give up what is being answered, and drop all sessions."""
        self._closed.set()
        self.clear()

    def clear(self) -> None:
        """Drop all sessions and what they hold in memory."""
        with self._lock:
            self._sessions.clear()
            self._model = None

    def _session(
        self, image: OpenImage, model: NucleusModel, request: PromptRequest
    ) -> tuple[WatchedModel, PromptSession]:
        from pathosam_qupath.model.prompts import promptable
        from pathosam_qupath.segmentation.prompting import PromptSession

        classes = request.options.classes
        key = (image.id, json.dumps(classes, sort_keys=True))
        with self._lock:
            if self._model is not model:
                self._sessions.clear()
                self._model = model
            if key in self._sessions:
                self._sessions.move_to_end(key)
                return self._sessions[key]
            try:
                watched = WatchedModel(promptable(model))
            except ModelError as error:
                raise ProblemError(
                    409, "no_prompts", error.subject, error.cause, error.remedy
                ) from error
            session = PromptSession(
                image.slide,
                watched,
                memory=self._limits.embedding_bytes,
                class_map=class_map_of(classes, model.info),
            )
            self._sessions[key] = watched, session
            while len(self._sessions) > self._limits.sessions:
                self._sessions.popitem(last=False)
            return watched, session


def _prompt(number: int, given: PromptModel, image: OpenImage) -> Prompt:
    """A prompt in coordinates of the image."""
    from pathosam_qupath.errors import PathosamError
    from pathosam_qupath.model.prompts import Prompt

    to_image = image.placement.to_image
    points = tuple((float(x), float(y)) for x, y in to_image(np.array(given.points).reshape(-1, 2)))
    labels = tuple(bool(label) for label in given.labels)
    box = None
    if given.box is not None:
        x0, y0, x1, y1 = to_image(np.array(given.box).reshape(2, 2)).ravel().tolist()
        box = (x0, y0, x1, y1)
    try:
        outline = None
        if given.geometry is not None:
            outline = shapely.transform(shapely.make_valid(shape_of(given.geometry)), to_image)
        return Prompt(points=points, labels=labels, box=box, outline=outline)
    except (PathosamError, ValueError) as error:
        raise ProblemError(
            422,
            "usage",
            f"prompt {number}",
            getattr(error, "cause", str(error)),
            "Give points with as many labels, a box with an area, or a polygon.",
        ) from error


def _features(
    frame: gpd.GeoDataFrame, image: OpenImage, colors: dict[str, tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """One GeoJSON feature per row; without geometry where nothing was seen."""
    from pathosam_qupath.qupath.geojson import detection_features

    shapes = frame.geometry.to_numpy()
    seen = np.array([shape is not None and not shape.is_empty for shape in shapes], bool)
    found = frame[seen].assign(object_type="detection", run=PROMPT_RUN)
    found = found.set_geometry(image.placement.shapes_to_slide(shapes[seen]))
    columns = [c for c in FRAME_COLUMNS if c in found.columns]
    found = found[[*columns, *(c for c in found.columns if c not in FRAME_COLUMNS)]]
    written = iter(detection_features(found, class_colors=colors))
    nothing: dict[str, Any] = {"type": "Feature", "geometry": None, "properties": {}}
    return [json.loads(next(written)) if one else dict(nothing) for one in seen]
