"""Networks that answer prompts: one that reads drawn nuclei off their colours, a small SAM."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from drawn_slide import DrawnNetwork
from scipy import ndimage

from pathosam_qupath.model.prompts import PromptedMask

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@dataclass(frozen=True, eq=False)
class DrawnMaps:
    """An embedding that is the maps."""

    maps: np.ndarray

    @property
    def original_size(self):
        return self.maps.shape[1:]

    @property
    def nbytes(self):
        return self.maps.nbytes

    def to_arrays(self):
        return {"maps": self.maps}


@dataclass(frozen=True)
class PromptedNetwork(DrawnNetwork):
    """The drawn network, whose answer is the piece of foreground that a prompt meets most."""

    embedded: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    threshold: float = 0.75

    def embed(self, tile):
        self.embedded.append(tile)
        return DrawnMaps(self.predict(tile[None])[0])

    def embedding_from_arrays(self, arrays):
        if arrays["maps"].shape[0] != 5:
            raise ValueError("expected five maps")
        return DrawnMaps(arrays["maps"])

    def prompt(self, embedding, prompts):
        self.asked.append(list(prompts))
        pieces, count = ndimage.label(embedding.maps[0] > self.threshold)
        return [self._answer(pieces, count, prompt) for prompt in prompts]

    def _answer(self, pieces, count, prompt):
        meant = np.zeros(pieces.shape, bool)
        for x, y in prompt.clicks:
            meant[int(y), int(x)] = True
        if prompt.mask is not None:
            meant |= prompt.mask
        elif prompt.box is not None:
            x0, y0, x1, y1 = (round(v) for v in prompt.box)
            meant[y0:y1, x0:x1] = True
        met = np.bincount(pieces[meant], minlength=count + 1)
        met[0] = 0
        mask = (pieces == met.argmax()) & (met.any())
        return PromptedMask(mask, score=0.9 if mask.any() else 0.0)

    def embedded_maps(self, embedding):
        return embedding.maps[:3]

    def embedded_classes(self, embedding):
        return embedding.maps[3:]


def small_pathosam(*, semantic=True):
    """The reference's small PathoSAM, for tiles of 128 pixels."""
    from pathosam_qupath.model.checkpoints import read_checkpoint
    from pathosam_qupath.model.pathosam import PathosamModel
    from pathosam_qupath.model.sam import build_sam
    from pathosam_qupath.model.unetr import build_unetr

    files = read_checkpoint(GOLDEN / "tiny_ais.pt")
    classes = read_checkpoint(GOLDEN / "tiny_semantic_decoder.pt").decoder
    return PathosamModel(
        build_sam(files.sam),
        build_unetr(files.decoder),
        build_unetr(classes) if semantic else None,
        name="small",
        weights_hash="0",
        exact=True,
        tile=128,
        halo=16,
    )


def nuclei_image():
    """The image that the small PathoSAM was tested with, (300, 260, 3)."""
    with np.load(GOLDEN / "ais.npz") as file:
        return file["image_u8"]
