"""Tiles that neighbouring blocks share are kept from one call to the next, up to a limit."""

from cheap_model import CheapModel
from ihc_project import FIXTURES, MPP

from pathosam_qupath.segmentation.pipeline import SegmentOptions, plan_blocks, segment_blocks
from pathosam_qupath.segmentation.tile_maps import TileStore
from pathosam_qupath.slide import open_slide

TISSUE = FIXTURES / "0.6.0" / "images" / "ihc.png"
OPTIONS = SegmentOptions(seed="run/image", block=128)


def computed(store, blocks=12):
    """Anchors by block of as many calls, and the number of tiles that this took."""
    model, found = CheapModel(), {}
    with open_slide(TISSUE, mpp=MPP) as slide:
        plan = plan_blocks(slide, None, model.info, OPTIONS)
        for number in range(blocks):
            done = set(range(len(plan.blocks))) - {number}
            for result in segment_blocks(plan, model, options=OPTIONS, done=done, store=store):
                found[result.number] = result.objects.anchors.tolist()
    return found, sum(model.tiles)


def test_blocks_one_by_one_take_fewer_tiles_and_find_the_same():
    found, tiles = computed(TileStore())
    alone, tiles_alone = computed(None)
    assert found == alone
    assert len(found) == 12
    assert tiles < 0.7 * tiles_alone


def test_the_oldest_tiles_make_room():
    small = TileStore(limit=300_000)
    found, tiles = computed(small)
    alone, tiles_alone = computed(None)
    assert found == alone
    assert computed(TileStore())[1] < tiles <= tiles_alone
    assert small._bytes <= 300_000
    held = [small.get((column, row)) for column in range(20) for row in range(20)]
    assert sum(result.nbytes for result in held if result is not None) == small._bytes
