"""Numbers that cannot be right are told, with what to do."""

import numpy as np
import pytest

from pathosam_qupath.disk_space import bytes_needed, check_room, size_text
from pathosam_qupath.errors import RunError
from pathosam_qupath.plausibility import warnings_of

NUCLEI = np.random.default_rng(0).lognormal(np.log(45), 0.5, 500)
"""Areas as a tissue has them, µm²."""


def said(areas=NUCLEI, mpp=0.25, tiles=100, blank=0, blurred=0, magnification=None, stain=None):
    return warnings_of(
        np.asarray(areas),
        (mpp, mpp),
        tiles=tiles,
        blank=blank,
        blurred=blurred,
        magnification=magnification,
        stain=stain,
    )


def test_a_pixel_size_wrong_by_two_is_told_with_the_one_to_try():
    assert said() == ()
    [small] = said(NUCLEI / 4)
    assert "20x read as 40x" in small
    assert "--mpp 0.5" in small
    [large] = said(NUCLEI * 4)
    assert "--mpp 0.125" in large
    assert said(NUCLEI[:5] / 4) == ()


def test_nuclei_that_are_small_throughout_are_told_though_their_median_is_one_of_lymphocytes():
    placenta = np.random.default_rng(0).lognormal(np.log(76), 0.5, 500)
    assert said(placenta) == ()
    assert 17 < np.median(placenta / 4) < 25
    [small] = said(placenta / 4)
    assert "nearly all less than 4" in small
    lymphocytes = np.random.default_rng(0).lognormal(np.log(18), 0.4, 500)
    assert said(np.concatenate([lymphocytes, NUCLEI[:100]])) == ()


@pytest.mark.parametrize(
    ("mpp", "magnification", "told"),
    [(0.25, 40, False), (0.23, 40, False), (0.5, 20, False), (0.25, 20, True), (0.5, 40, True)],
)
def test_a_pixel_size_against_the_files_objective_is_told(mpp, magnification, told):
    found = said(mpp=mpp, magnification=magnification)
    assert bool(found) is told
    assert not told or f"scanned at {magnification}x" in found[0]


def test_tiles_out_of_focus_and_blank_ones_are_told():
    [blurred] = said(blank=40, blurred=20)
    assert blurred.startswith("20 of 60 tiles look out of focus")
    assert said(blank=40, blurred=5) == ()
    [blank] = said(areas=[], blank=100)
    assert "every tile is blank" in blank


def test_a_strange_stain_is_told_and_a_usual_or_unknown_one_is_not():
    [strange] = said(stain=1.34)
    assert "1.3 times as far" in strange
    assert said(stain=0.99) == said(stain=None) == ()


def test_a_disk_without_room_is_an_error_before_anything_is_written(tmp_path):
    data = tmp_path / "data.qpdata"
    assert bytes_needed(data, 1000) > 1000 * 500
    data.write_bytes(bytes(10_000))
    assert bytes_needed(data, 0) == 20_000
    check_room(tmp_path, 1000)
    with pytest.raises(RunError, match=r"are needed\. Make room"):
        check_room(tmp_path, 1 << 60)
    assert size_text(1_234_000) == "1.23 MB"
