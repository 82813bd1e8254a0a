"""Blocks are handed out once each, as compactly as can be, whoever asks when."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathosam_qupath.lanes import MOST, Lanes
from pathosam_qupath.segmentation.tiling import Block, Box


def grid(columns, rows, side=100):
    return [
        Block(Box(x * side, y * side, (x + 1) * side, (y + 1) * side), ())
        for y in range(rows)
        for x in range(columns)
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    columns=st.integers(1, 9),
    rows=st.integers(1, 9),
    workers=st.lists(st.sampled_from("abcdef"), unique=True, max_size=6),
    asking=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 100)), max_size=40),
    data=st.data(),
)
def test_every_block_is_handed_out_once_to_whoever_asks(columns, rows, workers, asking, data):
    blocks = grid(columns, rows)
    numbers = data.draw(st.sets(st.integers(0, len(blocks) - 1)))
    lanes = Lanes(blocks, numbers, workers)
    assert len(lanes) == len(numbers)
    given_out = [lanes.take(worker, most) for worker, most in asking]
    assert all(len(g) <= min(most, MOST) for g, (_, most) in zip(given_out, asking, strict=True))
    while portion := lanes.take("a", 3):
        given_out.append(portion)
    found = [number for portion in given_out for number in portion]
    assert sorted(found) == sorted(numbers)
    assert all(list(portion) == sorted(portion) for portion in given_out)
    assert len(lanes) == 0
    assert lanes.take("b", 3) == ()


def test_each_worker_has_a_part_of_the_slide_of_its_own():
    blocks = grid(8, 4)
    lanes = Lanes(blocks, range(32), ["left", "right"])
    for _ in range(3):
        assert all(blocks[n].inner.x1 <= 400 for n in lanes.take("left", 4))
        assert all(blocks[n].inner.x0 >= 400 for n in lanes.take("right", 4))


def test_one_whose_lane_is_empty_takes_half_of_what_another_has_left():
    blocks = grid(4, 10)
    lanes = Lanes(blocks, range(40), ["a", "b"])
    mine = set()
    while len(mine) < 20:
        mine.update(lanes.take("a", 4))
    assert max(mine) == 19
    portion = lanes.take("a", 4)
    assert min(portion) >= 30
    assert lanes.take("b", 4)[0] == 20


def test_portions_get_small_towards_the_end():
    lanes = Lanes(grid(10, 10), range(100), ["a", "b"])
    sizes = []
    while portion := lanes.take("ab"[len(sizes) % 2], 50):
        sizes.append(len(portion))
    assert sizes[0] == 25
    assert max(sizes[-5:]) <= 2


def test_what_is_put_back_is_handed_out_first_and_as_it_was():
    lanes = Lanes(grid(4, 4), range(16), ["a", "b"])
    lost, ahead = lanes.take("a", 3), lanes.take("a", 3)
    for numbers in (lost, ahead):
        lanes.put_back(numbers)
    assert len(lanes) == 16
    assert [lanes.take("b", 1), lanes.take("c", 1)] == [lost, ahead]
    assert not {*lanes.take("a", 9)} & {*lost, *ahead}


def test_nothing_is_left_of_lanes_that_were_cleared():
    lanes = Lanes(grid(3, 3), range(9), ["a"])
    lanes.put_back(lanes.take("a", 2))
    lanes.clear()
    assert len(lanes) == 0
    assert lanes.take("a", 4) == ()
