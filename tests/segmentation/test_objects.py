"""What a block's first look leaves open is looked at in windows that are not larger together."""

from functools import reduce

from hypothesis import given, settings
from hypothesis import strategies as st

from pathosam_qupath.segmentation.objects import _area, _around, _together
from pathosam_qupath.segmentation.tiling import Box

MARGIN = 180


@st.composite
def boxes(draw):
    x, y = draw(st.integers(0, 1000)), draw(st.integers(0, 1000))
    return Box(x, y, x + draw(st.integers(1, 60)), y + draw(st.integers(1, 60)))


def looked_at(targets):
    return sum(_area(target.grown(MARGIN)) for target in targets)


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=40))
def test_every_box_is_in_a_target_and_one_window_would_not_be_smaller(left):
    targets = _together(left, MARGIN)
    for box in left:
        assert any(_around(target, box) == target for target in targets)
    assert looked_at(targets) <= looked_at([reduce(_around, left)])


def test_near_ones_share_a_window_and_far_ones_do_not():
    near = [Box(0, 0, 20, 20), Box(60, 10, 80, 30)]
    far = Box(900, 900, 920, 920)
    assert _together([*near, far], MARGIN) == [Box(0, 0, 80, 30), far]
