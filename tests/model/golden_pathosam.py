"""The reference's small PathoSAM and its results, as the tests read them."""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SIDE = 256
TILE, HALO = 96, 16


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        found = {key: file[key] for key in file.files}
    found["META"] = json.loads(str(found["META"]))
    return found


def tiny_model(*, semantic=False, exact=True, bn="tile", tile=128, halo=16):
    """The golden model behind the interface of all models, for square tiles of ``tile``."""
    from pathosam_qupath.model.checkpoints import read_checkpoint
    from pathosam_qupath.model.pathosam import PathosamModel
    from pathosam_qupath.model.sam import build_sam
    from pathosam_qupath.model.unetr import build_unetr

    files = read_checkpoint(GOLDEN / "tiny_ais.pt")
    classes = None
    if semantic:
        classes = build_unetr(read_checkpoint(GOLDEN / "tiny_semantic_decoder.pt").decoder)
    return PathosamModel(
        build_sam(files.sam),
        build_unetr(files.decoder),
        classes,
        name="tiny",
        weights_hash="",
        exact=exact,
        bn=bn,
        tile=tile,
        halo=halo,
    )


def reference_tiles(shape):
    """Outer and inner slices of the reference's tiles: clipped at the image's border."""
    tiles = []
    for y in range(0, shape[0], TILE):
        for x in range(0, shape[1], TILE):
            inner, outer = [], []
            for start, length in ((y, shape[0]), (x, shape[1])):
                end = min(start + TILE, length)
                inner.append(slice(start, end))
                outer.append(slice(max(0, start - HALO), min(end + HALO, length)))
            within = tuple(
                slice(i.start - o.start, i.stop - o.start)
                for i, o in zip(inner, outer, strict=True)
            )
            tiles.append((tuple(outer), tuple(inner), within))
    return tiles


def stitched(image, maps_of):
    """Maps of an image from those of the reference's tiles."""
    whole = None
    for outer, inner, within in reference_tiles(image.shape[:2]):
        maps = maps_of(image[outer])
        if whole is None:
            whole = np.zeros((len(maps), *image.shape[:2]), np.float32)
        whole[(slice(None), *inner)] = maps[(slice(None), *within)]
    return whole


def same_up_to_ids(labels, expected):
    """Whether two label images show the same objects."""
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]).astype(np.int64), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1] and bool(
        ((pairs[0] == 0) == (pairs[1] == 0)).all()
    )


def matched_share(labels, expected, iou=0.9):
    """Share of the expected objects that one found object overlaps by more than ``iou``."""
    matched = 0
    ids = np.unique(expected)[1:]
    for i in ids:
        region = expected == i
        found, counts = np.unique(labels[region], return_counts=True)
        best = found[counts.argmax()]
        union = np.count_nonzero(region | (labels == best))
        matched += best != 0 and counts.max() / union > iou
    return matched / len(ids)
