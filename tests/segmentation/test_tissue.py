"""Tissue is found on glass of any tint, pale or small as it may be; pens are not tissue."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from drawn_slide import DrawnNetwork, DrawnSlide, drawn, scattered

from pathosam_qupath.segmentation import tissue
from pathosam_qupath.segmentation.pipeline import (
    SegmentOptions,
    nuclei_frame,
    plan_blocks,
    segment,
    segment_blocks,
)

GLASS, PINK, PALE, PURPLE = (243, 242, 240), (225, 160, 195), (232, 214, 226), (110, 70, 140)


class Painted:
    """A slide that is the same picture at every resolution, 8 µm per pixel of it."""

    def __init__(self, rgb, mpp=0.5):
        self.rgb, self.mpp = rgb, (mpp, mpp)
        self.height, self.width = (round(side * 8 / mpp) for side in rgb.shape[:2])

    def at(self, mpp):
        return PaintedAt(self, mpp)


class PaintedAt:
    def __init__(self, slide, mpp):
        self.scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
        size = (round(slide.width / self.scale[0]), round(slide.height / self.scale[1]))
        self.rgb = cv2.resize(slide.rgb, size, interpolation=cv2.INTER_AREA)
        self.height, self.width = self.rgb.shape[:2]

    def read(self, x, y, width, height):
        return self.rgb[y : y + height, x : x + width]


def canvas(color=GLASS, side=700, noise=2.0):
    rng = np.random.default_rng(1)
    rgb = (
        np.array(color) + rng.normal(0, noise, (side, side, 1)) + np.linspace(-4, 4, side)[:, None]
    )
    return np.clip(rgb, 0, 255).astype(np.uint8)


def at(x, y):
    """A place of the picture, as a point of the slide."""
    return shapely.Point(x * 16, y * 16)


@pytest.mark.parametrize("glass", [GLASS, (250, 250, 250), (228, 226, 220)])
@pytest.mark.parametrize("stain", [PINK, PALE, PURPLE])
def test_tissue_is_found_and_glass_is_not(glass, stain):
    rgb = canvas(glass)
    shade = np.minimum(np.array(stain) * np.array(glass) / 243, 255)
    cv2.circle(rgb, (300, 300), 150, shade.tolist(), -1)
    cv2.circle(rgb, (600, 80), 5, shade.tolist(), -1)  # a fragment of 80 µm
    found = tissue.find_tissue(Painted(rgb))
    assert found.found
    disk = at(300, 300).buffer(150 * 16)
    assert found.geometry.buffer(1).covers(disk.buffer(-30))
    assert found.geometry.intersects(at(600, 80))
    assert found.geometry.area < 1.25 * disk.area
    assert found.share == pytest.approx(found.geometry.area / (700 * 16) ** 2)


def test_marks_of_pens_are_not_tissue_and_what_they_circle_is():
    rgb = canvas()
    cv2.circle(rgb, (350, 350), 100, PINK, -1)
    cv2.circle(rgb, (350, 350), 200, (30, 140, 60), 12)
    cv2.line(rgb, (50, 650), (650, 650), (35, 60, 180), 12)
    found = tissue.find_tissue(Painted(rgb)).geometry
    assert found.intersects(at(350, 350))
    assert not found.intersects(at(350, 150))
    assert not found.intersects(at(300, 650))


def test_a_slide_full_of_tissue_is_all_tissue_and_an_empty_one_too():
    full = canvas(PINK, noise=12)
    full[::7] = PURPLE
    assert tissue.find_tissue(Painted(full)).share > 0.99
    empty = tissue.find_tissue(Painted(canvas()))
    assert (empty.found, empty.share) == (False, 1.0)


def test_the_picture_shows_what_counts():
    rgb = canvas()
    cv2.circle(rgb, (300, 300), 150, PINK, -1)
    shown = np.asarray(tissue.drawn(tissue.find_tissue(Painted(rgb))))
    assert shown.shape == rgb.shape
    assert np.abs(shown[300, 300].astype(int) - PINK).max() < 8
    assert shown[20, 20].mean() < 200


def test_nuclei_in_the_tissue_are_the_same_with_and_without_the_mask():
    rgb = drawn(900, 500, scattered(400, 400, 60, 2))
    slide, model = DrawnSlide(rgb), DrawnNetwork()
    options = SegmentOptions(seed="x", block=128)
    everything = segment(slide, None, model, options=options)
    of_tissue = plan_blocks(slide, None, model.info, options, tissue=shapely.box(0, 0, 420, 420))
    assert 0 < of_tissue.wanted.sum() < of_tissue.wanted.size
    results = segment_blocks(of_tissue, model, options=options)
    masked = nuclei_frame([r.objects for r in results], slide.mpp, model.info, options)
    assert len(everything) > 30
    assert masked["id"].tolist() == everything["id"].tolist()
    assert masked.geometry.geom_equals_exact(everything.geometry, 0).all()


@pytest.mark.shared
def test_tissue_of_a_real_slide():
    path = Path(__file__).parents[3] / "shared" / "slides" / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip("no shared slides here")
    from pathosam_qupath.slide import open_slide

    with open_slide(path) as slide:
        found = tissue.find_tissue(slide)
    assert 0.4 < found.share < 0.6
    for inside in ((1000, 1500), (1333, 870), (290, 1090)):
        assert found.geometry.intersects(shapely.Point(inside)), inside
    for glass in ((100, 300), (300, 2500), (2100, 400)):
        assert not found.geometry.intersects(shapely.Point(glass)), glass
