"""Pictures: contours where the nuclei are, in class colours, with a legend and a scale bar."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from pathosam_qupath.errors import UsageError
from pathosam_qupath.picture import UNCLASSIFIED, busiest, class_palette, nice_length, overlay
from pathosam_qupath.slide import open_slide

GREEN, BLUE = (0, 200, 0), (0, 0, 250)


@pytest.fixture
def slide(tmp_path):
    """A pale slide of 800 × 400 px with a dark mark at (600, 100), 0.5 µm/px."""
    pixels = np.full((400, 800, 3), 230, np.uint8)
    pixels[90:110, 590:610] = 20
    tifffile.imwrite(tmp_path / "pale.tif", pixels, photometric="rgb", tile=(256, 256))
    with open_slide(tmp_path / "pale.tif", mpp=0.5) as opened:
        yield opened


def nuclei(*places):
    return gpd.GeoDataFrame(
        {"classification": [kind for *_, kind in places]},
        geometry=[shapely.Point(x, y).buffer(20) for x, y, _ in places],
    )


def colored(picture, color, tolerance=40):
    """Bounding box (left, top, right, bottom) of the pixels near a colour."""
    distance = np.abs(np.asarray(picture).astype(int) - color).max(axis=2)
    rows, columns = np.nonzero(distance <= tolerance)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_contours_lie_where_the_nuclei_are(slide):
    picture = overlay(slide, nuclei((200, 100, "A")), colors={"A": GREEN}, width=400).crop(
        (0, 0, 400, 200)
    )
    assert colored(picture, GREEN) == pytest.approx((90, 40, 110, 60), abs=2)


def test_a_box_shows_that_part_of_the_slide(slide):
    found = nuclei((600, 100, "A"), (100, 300, "B"))
    picture = overlay(
        slide, found, box=(500, 50, 700, 150), colors={"A": GREEN, "B": BLUE}, width=800
    )
    tissue = picture.crop((0, 0, 800, 400))
    assert colored(tissue, GREEN) == pytest.approx((320, 120, 480, 280), abs=4)
    dark = np.asarray(tissue.convert("L")).astype(int) < 60
    rows, columns = np.nonzero(dark)
    assert (columns.min(), columns.max() + 1) == pytest.approx((360, 440), abs=3)
    assert (rows.min(), rows.max() + 1) == pytest.approx((160, 240), abs=3)
    assert not _near(tissue, BLUE).any()


def test_the_legend_has_every_class_of_the_picture_and_the_bar_a_round_length(slide):
    found = nuclei((100, 100, "A"), (300, 100, "B"), (500, 300, None))
    picture = overlay(slide, found, colors={"A": GREEN, "B": BLUE}, width=800, title="title")
    below = picture.crop((0, picture.height - 40, 800, picture.height))
    for color in (GREEN, BLUE, class_palette([UNCLASSIFIED], {})[UNCLASSIFIED]):
        assert _near(below, color, 8).sum() > 50
    black = np.asarray(below.convert("L")) < 60
    assert black[:, 500:].sum(axis=1).max() >= 100  # 50 µm at 0.5 µm per pixel


def test_bare_tissue_can_stand_beside(slide):
    found = nuclei((200, 100, "A"))
    alone = overlay(slide, found, colors={"A": GREEN}, width=400)
    both = overlay(slide, found, colors={"A": GREEN}, width=400, beside=True)
    assert both.width == 2 * alone.width + 8
    assert not _near(both.crop((0, 0, 400, 190)), GREEN).any()
    assert _near(both.crop((408, 0, 808, 190)), GREEN).any()


def test_a_box_outside_the_slide_is_an_error(slide):
    with pytest.raises(UsageError, match="does not touch"):
        overlay(slide, nuclei((1, 1, "A")), box=(900, 0, 1000, 100))


def test_no_nuclei_give_a_picture_all_the_same(slide):
    assert overlay(slide, nuclei(), width=300).width == 300


def test_known_classes_keep_their_colour_and_others_get_a_lasting_one():
    palette = class_palette(["A", "B", UNCLASSIFIED], {"A": GREEN})
    assert palette["A"] == GREEN
    assert palette["B"] == class_palette(["B"], {})["B"] != palette[UNCLASSIFIED]


@pytest.mark.parametrize(("most", "length"), [(9.9, 5), (10, 10), (49, 20), (0.3, 0.2), (999, 500)])
def test_scale_bars_have_round_lengths(most, length):
    assert nice_length(most) == pytest.approx(length)


def test_the_busiest_square_holds_the_crowd():
    rng = np.random.default_rng(3)
    crowd = rng.uniform(1000, 1040, (50, 2))
    others = rng.uniform(0, 3000, (40, 2))
    points = [(x, y, "A") for x, y in np.concatenate([crowd, others])]
    left, top, right, bottom = busiest(nuclei(*points), 100)
    assert (left <= 1000, top <= 1000, right >= 1040, bottom >= 1040) == (True,) * 4
    assert busiest(nuclei(), 100) is None


def _near(picture: Image.Image, color, tolerance=40):
    return np.abs(np.asarray(picture).astype(int) - color).max(axis=2) <= tolerance
