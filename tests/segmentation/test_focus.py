"""Tiles that show nothing or are out of focus are known as such."""

import cv2
import numpy as np
import pytest
from skimage.data import immunohistochemistry

from pathosam_qupath.segmentation.focus import is_blank, is_blurred
from pathosam_qupath.segmentation.pipeline import SegmentOptions, plan_blocks, segment_blocks

MPP = 0.5


@pytest.mark.parametrize("enlarged", [1, 2])
def test_defocus_is_seen_whatever_the_stain_strength_and_resolution(enlarged):
    tissue = immunohistochemistry()
    pale = (255 - (255 - tissue.astype(float)) * 0.4).astype(np.uint8)
    for rgb in (tissue, pale):
        blurred = cv2.GaussianBlur(rgb, (0, 0), 1.5 / MPP)
        seen = [
            cv2.resize(i, None, fx=enlarged, fy=enlarged, interpolation=2) for i in (rgb, blurred)
        ]
        assert not is_blurred(seen[0], MPP / enlarged)
        assert is_blurred(seen[1], MPP / enlarged)


def test_empty_tiles_are_blank_and_not_out_of_focus():
    glass = np.random.default_rng(0).integers(235, 245, (64, 64, 3)).astype(np.uint8)
    for rgb in (glass, np.zeros_like(glass), np.full_like(glass, 200)):
        assert not is_blurred(rgb, 0.25)
    assert is_blank(glass)
    assert is_blank(np.zeros_like(glass))
    assert not is_blank(immunohistochemistry())


def test_blocks_say_which_of_their_tiles_are_blank_or_blurred():
    from drawn_slide import DrawnNetwork, DrawnSlide

    tissue = immunohistochemistry()
    rgb = np.full((256, 512, 3), 250, np.uint8)
    rgb[:, :256] = cv2.GaussianBlur(tissue[:256, :256], (0, 0), 8)
    options = SegmentOptions(block=128)
    slide, model = DrawnSlide(rgb), DrawnNetwork(tile=160)
    plan = plan_blocks(slide, None, model.info, options)
    quality = {}
    for result in segment_blocks(plan, model, options=options):
        quality.update(result.quality)
    grid = plan.grid
    left, right = 256 // grid.step, (256 + grid.halo) // grid.step + 1
    rows = range(grid.rows)
    assert "blurred" in {quality.get((column, row)) for column in range(left) for row in rows}
    assert all(quality[c, row] == "blank" for c in range(right, grid.columns) for row in rows)
