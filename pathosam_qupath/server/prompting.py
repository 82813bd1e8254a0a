"""Answers to prompts: a session per image, so that a second click near the first is quick."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pathosam_qupath.errors import ModelError
from pathosam_qupath.qupath.objects import FRAME_COLUMNS
from pathosam_qupath.segmentation.classes import class_colors
from pathosam_qupath.server.geometry import check_vertices, shape_of
from pathosam_qupath.server.images import Images, OpenImage
from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.schemas import PromptModel, PromptRequest, PromptResponse
from pathosam_qupath.server.segment_job import class_map_of
from pathosam_qupath.server.warm_model import Device, WarmModel

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.model.prompts import (
        Arrays,
        Prompt,
        PromptableModel,
        PromptedMask,
        TileEmbedding,
    )
    from pathosam_qupath.segmentation.prompting import PromptSession

_MODEL_SECONDS = 30.0

PROMPT_RUN = "prompt"
"""What the objects of prompts bear in place of a run's id: no record knows them, so that no
later run replaces them, and that they are corrections can be told."""


class _CountingModel:
    """A promptable model that counts how often its encoder works."""

    def __init__(self, model: PromptableModel[TileEmbedding]) -> None:
        self.info = model.info
        self.passes = 0
        self._model = model

    def embed(self, tile: NDArray[np.uint8], /) -> TileEmbedding:
        self.passes += 1
        return self._model.embed(tile)

    def embedding_from_arrays(self, arrays: Arrays, /) -> TileEmbedding:
        return self._model.embedding_from_arrays(arrays)

    def prompt(self, embedding: TileEmbedding, prompts: Sequence[Prompt], /) -> list[PromptedMask]:
        return self._model.prompt(embedding, prompts)

    def embedded_maps(self, embedding: TileEmbedding, /) -> NDArray[np.float32]:
        return self._model.embedded_maps(embedding)

    def embedded_classes(self, embedding: TileEmbedding, /) -> NDArray[np.float32] | None:
        return self._model.embedded_classes(embedding)


class Prompts:
    """Sessions of the images that were prompted last."""

    def __init__(self, limits: Limits, images: Images, warm: WarmModel, device: Device) -> None:
        self._limits, self._images, self._warm, self._device = limits, images, warm, device
        self._lock = threading.Lock()
        self._sessions: OrderedDict[tuple[str, str], tuple[_CountingModel, PromptSession]]
        self._sessions = OrderedDict()
        self._model: NucleusModel | None = None

    def answer(self, request: PromptRequest) -> PromptResponse:
        """The object of each prompt.

        Raises
        ------
        ProblemError : no such image, a model that is not ready or answers no prompts, a prompt
            that says nothing.
        """
        began = time.perf_counter()
        image = self._images.get(request.image)
        areas = [p.geometry for p in request.prompts if p.geometry is not None]
        check_vertices(areas, self._limits.vertices)
        prompts = [_prompt(i, p, image) for i, p in enumerate(request.prompts, start=1)]
        self._warm.check()
        with self._images.hold(image), self._device.prompting():
            model = self._warm.get(seconds=_MODEL_SECONDS)
            classes = class_map_of(request.options.classes, model.info)
            counting, session = self._session(image, model, request)
            before = counting.passes
            frame = session.segment(prompts)
            passes = counting.passes - before
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

    def clear(self) -> None:
        """Drop all sessions and what they hold in memory."""
        with self._lock:
            self._sessions.clear()

    def _session(
        self, image: OpenImage, model: NucleusModel, request: PromptRequest
    ) -> tuple[_CountingModel, PromptSession]:
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
                counting = _CountingModel(promptable(model))
            except ModelError as error:
                raise ProblemError(
                    409, "no_prompts", error.subject, error.cause, error.remedy
                ) from error
            session = PromptSession(
                image.slide,
                counting,
                memory=self._limits.embedding_bytes,
                class_map=class_map_of(classes, model.info),
            )
            self._sessions[key] = counting, session
            while len(self._sessions) > self._limits.sessions:
                self._sessions.popitem(last=False)
            return counting, session


def answers_prompts(model: object) -> bool:
    """Whether a model can be prompted."""
    from pathosam_qupath.model.prompts import PromptableModel

    return isinstance(model, PromptableModel)


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
