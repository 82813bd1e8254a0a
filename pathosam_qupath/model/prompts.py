"""What a person says about an object, and what a model answers.

A prompt is a click, several clicks, a box, a rough outline, or all of them. Any model that
keeps an embedding of a tile, the costly part, can answer prompts on it: SAM with its mask
decoder (``sam_prompts``), a network of distance maps with a watershed. What the
segmentation asks of such a model is :class:`PromptableModel`; nothing here needs torch.

Coordinates are (x, y) in pixels, boxes x0, y0, x1, y1; whether of a tile, of the slide at the
model's µm/px or of the slide itself is said where prompts are taken. A pixel's corner is an
integer, its middle lies half a pixel further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model.interface import ModelInfo

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

Arrays = Mapping[str, "NDArray[np.generic]"]
"""Arrays by name, as a file of safetensors holds them."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What says which object is meant.

    Attributes
    ----------
    points : (x, y) each.
    labels : per point, True where the point lies in the object, False where it does not.
        Empty: all lie in it.
    box : x0, y0, x1, y1 around the object.
    mask : (height, width) bool, a rough outline. On a tile it is as large as the tile.
    mask_origin : x and y of the mask's first pixel (0, 0 on a tile).
    outline : polygons instead of a mask, drawn into one when the prompt comes to its tile.
    ambiguous : of a lone click, whether a model that can propose several masks shall choose
        among them; else it gives the one mask that it gives for other prompts.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[bool, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: NDArray[np.bool_] | None = None
    mask_origin: tuple[int, int] = (0, 0)
    outline: BaseGeometry | None = None
    ambiguous: bool = True

    def __post_init__(self) -> None:
        if self.labels and len(self.labels) != len(self.points):
            raise _unusable(f"found {len(self.points)} points with {len(self.labels)} labels")
        if not np.isfinite(
            [*self.points, *((self.box[:2], self.box[2:]) if self.box else ())]
        ).all():
            raise _unusable("found a coordinate that is no number")
        if self.mask is not None and self.outline is not None:
            raise _unusable("found both a mask and an outline")
        if not self.points and self.box is None and self.mask is None and self.outline is None:
            raise _unusable("found neither a point nor a box nor a mask")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise _unusable(f"found a box without area, {self.box}")
        if self.mask is not None and not self.mask.any():
            raise _unusable("found an empty mask")
        if self.outline is not None and not self.outline.area > 0:
            raise _unusable(f"found a {self.outline.geom_type} without area")

    @classmethod
    def from_geometry(
        cls,
        geometry: BaseGeometry,
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[bool] = (),
    ) -> Prompt:
        """An object that is there, as a guess: the model redraws it.

        As in the reference (``segment_from_mask``) the model gets the shape as an earlier
        mask and the box around it.

        Parameters
        ----------
        geometry : polygon or multipolygon; one that crosses itself is repaired.
        points, labels : clicks that say more.

        Raises
        ------
        UsageError
            If the geometry has no area.
        """
        import shapely

        outline = geometry if geometry.is_valid else shapely.make_valid(geometry)
        return cls(points=tuple(points), labels=tuple(labels), outline=outline)

    @property
    def is_single_click(self) -> bool:
        """One positive point and nothing else: the object's extent is ambiguous."""
        alone = self.box is None and self.mask is None and self.outline is None
        return alone and len(self.points) == 1 and self.labels in ((), (True,))

    @property
    def clicks(self) -> tuple[tuple[float, float], ...]:
        """The points that lie in the object."""
        labels = self.labels or (True,) * len(self.points)
        return tuple(p for p, label in zip(self.points, labels, strict=True) if label)

    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of all that belongs to the object (of negative points if alone)."""
        corners = [*self.clicks]
        if self.box is not None:
            corners += [self.box[:2], self.box[2:]]
        if self.mask is not None:
            left, top, right, bottom = mask_box(self.mask)
            dx, dy = self.mask_origin
            corners += [(left + dx, top + dy), (right + dx, bottom + dy)]
        if self.outline is not None:
            x0, y0, x1, y1 = self.outline.bounds
            corners += [(x0, y0), (x1, y1)]
        xs, ys = zip(*(corners or self.points), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def scaled(self, scale: tuple[float, float]) -> Prompt:
        """The same prompt in pixels of which each is ``scale`` (x, y) of the present ones."""
        sx, sy = scale
        box = None
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            box = (x0 / sx, y0 / sy, x1 / sx, y1 / sy)
        mask, origin = self.mask, self.mask_origin
        if mask is not None and scale != (1.0, 1.0):
            mask, origin = _resampled(mask, origin, scale)
        outline = self.outline
        if outline is not None:
            import shapely

            outline = shapely.transform(outline, lambda xy: xy / np.array(scale))
        return replace(
            self,
            points=tuple((x / sx, y / sy) for x, y in self.points),
            box=box,
            mask=mask,
            mask_origin=origin,
            outline=outline,
        )

    def moved(self, x: int, y: int, size: tuple[int, int]) -> Prompt:
        """The same prompt on a tile that begins at x, y and has a height and width.

        Points outside the tile are left out, boxes and masks are cut to it; an outline
        becomes a mask.
        """
        height, width = size
        labels = self.labels or (True,) * len(self.points)
        kept = [
            ((px - x, py - y), label)
            for (px, py), label in zip(self.points, labels, strict=True)
            if 0 <= px - x < width and 0 <= py - y < height
        ]
        box = None
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            box = (max(x0 - x, 0.0), max(y0 - y, 0.0), min(x1 - x, width), min(y1 - y, height))
        mask = None
        if self.mask is not None:
            mask = np.zeros(size, bool)
            _paste(self.mask, self.mask_origin[0] - x, self.mask_origin[1] - y, mask)
        elif self.outline is not None:
            mask = np.zeros(size, bool)
            drawn, left, top = _drawn(self.outline)
            _paste(drawn, left - x, top - y, mask)
        return Prompt(
            points=tuple(point for point, _ in kept),
            labels=tuple(label for _, label in kept),
            box=box,
            mask=mask,
            ambiguous=self.ambiguous,
        )


def _resampled(
    mask: NDArray[np.bool_], origin: tuple[int, int], scale: tuple[float, float]
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """A mask in larger or smaller pixels, each what its middle falls on; never empty."""
    sizes = (mask.shape[1], mask.shape[0])
    starts, at = [], []
    for start, size, step in zip(origin, sizes, scale, strict=True):
        first = int(np.floor(start / step))
        middles = np.arange(first, int(np.ceil((start + size) / step))) + 0.5
        starts.append(first)
        at.append(np.floor(middles * step).astype(np.int64) - start)
    columns, rows = at
    inside = ((rows >= 0) & (rows < sizes[1]))[:, None] & ((columns >= 0) & (columns < sizes[0]))
    taken = mask[np.clip(rows, 0, sizes[1] - 1)[:, None], np.clip(columns, 0, sizes[0] - 1)]
    result = taken & inside
    if not result.any():
        y, x = np.argwhere(mask).mean(axis=0)
        row = int((origin[1] + y) // scale[1]) - starts[1]
        result[row, int((origin[0] + x) // scale[0]) - starts[0]] = True
    return result, (starts[0], starts[1])


def _drawn(outline: BaseGeometry) -> tuple[NDArray[np.bool_], int, int]:
    """Pixels whose middle lies in polygons, and x and y of the first; never none."""
    import shapely

    x0, y0, x1, y1 = outline.bounds
    left, top = int(np.floor(x0)), int(np.floor(y0))
    columns = np.arange(left, int(np.ceil(x1))) + 0.5
    rows = np.arange(top, int(np.ceil(y1))) + 0.5
    shapely.prepare(outline)
    mask = np.asarray(shapely.contains_xy(outline, columns[None], rows[:, None]), bool)
    if not mask.any():
        inside = outline.representative_point()
        mask[int(inside.y) - top, int(inside.x) - left] = True
    return mask, left, top


def _paste(source: NDArray[np.bool_], left: int, top: int, target: NDArray[np.bool_]) -> None:
    """Put a mask at a place of a larger one; what lies outside is lost."""
    rows = slice(max(0, top), max(0, top + source.shape[0]))
    columns = slice(max(0, left), max(0, left + source.shape[1]))
    part = target[rows, columns]
    row, column = max(0, -top), max(0, -left)
    part[...] = source[row : row + part.shape[0], column : column + part.shape[1]]


def _unusable(found: str) -> UsageError:
    return UsageError(
        "prompt",
        f"expected points, a box or a mask that tell an object, {found}",
        "Click into a nucleus or draw a box around one.",
    )


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask; the ends lie behind its last pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True, eq=False)
class PromptedMask:
    """What a model takes for the object.

    Attributes
    ----------
    mask : (height, width) bool, as large as the tile; empty of True where nothing is seen.
    score : the predicted IoU of this mask with the object, about 0…1.
    stability : IoU of the masks that a higher and a lower threshold give, 0…1.
    scores : (candidates,) float32, predicted IoU of all masks that were proposed (SAM: three
        for a single click, else one); of length 0 where a model has no more to say.
    logits : (candidates, side, side) float32, log odds at low resolution; of length 0 where
        a model has none.
    """

    mask: NDArray[np.bool_]
    score: float
    stability: float = 1.0
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    logits: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))


class TileEmbedding(Protocol):
    """What an encoder made of one tile: all that later prompts need.

    Never changed, compared by identity, open to weak references.
    """

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the tile in its own pixels."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes, on whatever device."""

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it as arrays, to be kept in a file; ``embedding_from_arrays`` is the way back."""


_E = TypeVar("_E", bound=TileEmbedding)


@runtime_checkable
class PromptableModel(Protocol[_E]):
    """A model that embeds tiles and answers prompts on embeddings. Thread-safe."""

    info: ModelInfo

    def embed(self, tile: NDArray[np.uint8], /) -> _E:
        """Embedding of a tile: the one costly step.

        Parameters
        ----------
        tile : (height, width, 3) uint8 RGB at ``info.mpp``, usually of side ``info.tile``,
            sometimes a larger square, whose sides are multiples of it.
        """

    def embedding_from_arrays(self, arrays: Arrays, /) -> _E:
        """An embedding from what its ``to_arrays`` gave, on the model's device.

        Raises
        ------
        ValueError, KeyError
            If the arrays are not those of one of this model's embeddings.
        """

    def prompt(self, embedding: _E, prompts: Sequence[Prompt], /) -> list[PromptedMask]:
        """The object of each prompt, in the order of the prompts, which are in tile pixels."""

    def embedded_maps(self, embedding: _E, /) -> NDArray[np.float32]:
        """Foreground, centre and boundary distance, (3, height, width) float32, of the tile.

        Those of ``NucleusModel.predict``, of the whole tile.
        """

    def embedded_classes(self, embedding: _E, /) -> NDArray[np.float32] | None:
        """Class probabilities (classes, height, width) float32 of the tile, no second encoding.

        None for a model without classes. A second call for one embedding costs nothing.
        """


def promptable(model: object) -> PromptableModel[TileEmbedding]:
    """The model, if it answers prompts.

    Raises
    ------
    ModelError
        If it does not.
    """
    if isinstance(model, PromptableModel):
        return model
    info = getattr(model, "info", None)
    raise ModelError(
        info.name if isinstance(info, ModelInfo) else type(model).__name__,
        "it answers no prompts: it keeps no embeddings",
        "Use PathoSAM or the bundled model.",
    )
