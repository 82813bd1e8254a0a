"""Polygons cover the masks that they come from, and are valid where QuPath reads them."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from drawn_slide import DrawnNetwork, drawn, scattered
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from pathosam_qupath.segmentation.polygons import outlines, polygons
from pathosam_qupath.segmentation.watershed import instances

NUCLEI = Path(__file__).parents[2].parent / "shared" / "nuclei"
FAR = (199_000, 187_000)


def largest_piece_filled(mask):
    pieces, count = ndimage.label(mask, np.ones((3, 3)))
    if count > 1:
        sizes = np.bincount(ndimage.label(mask, np.ones((3, 3)))[0].ravel())[1:]
        mask = pieces == 1 + sizes.argmax()
    return ndimage.binary_fill_holes(mask)


def rasterised(polygon, x0, y0, width, height):
    """Pixels whose centre the polygon holds."""
    y, x = np.mgrid[y0 : y0 + height, x0 : x0 + width]
    return shapely.contains_xy(polygon, x.ravel() + 0.5, y.ravel() + 0.5).reshape(height, width)


def overlap(labels, found):
    """IoU of each label's mask and its polygon, and both areas."""
    rows = []
    for label, (box, polygon) in enumerate(
        zip(ndimage.find_objects(labels), found, strict=True), start=1
    ):
        mask = np.pad(largest_piece_filled(labels[box] == label), 3)
        drawn_mask = rasterised(
            polygon, box[1].start - 3, box[0].start - 3, mask.shape[1], mask.shape[0]
        )
        iou = (mask & drawn_mask).sum() / (mask | drawn_mask).sum()
        rows.append((iou, polygon.area, mask.sum()))
    return np.array(rows).T


def assert_good(labels, found):
    iou, area, pixels = overlap(labels, found)
    assert np.median(iou) >= 0.95
    assert np.mean(iou >= 0.90) >= 0.99
    assert abs(np.mean(area / pixels) - 1) < 0.01
    assert np.median(shapely.get_num_coordinates(found) - 1) <= 32
    assert_valid(found)


def assert_valid(found):
    assert shapely.is_valid(found).all()
    assert (shapely.get_type_id(found) == shapely.GeometryType.POLYGON).all()
    assert not shapely.get_num_interior_rings(found).any()
    coordinates = shapely.get_coordinates(found)
    assert np.array_equal(coordinates, coordinates.astype(np.float32))


def renumbered(labels):
    ids, inverse = np.unique(labels, return_inverse=True)
    return (inverse.reshape(labels.shape) + (ids[0] != 0)).astype(np.int32)


def test_drawn_nuclei_are_covered():
    maps = DrawnNetwork().predict(drawn(900, 900, scattered(900, 900, 700, 1))[None])[0]
    labels = instances(maps)
    assert_good(labels, polygons(labels))


@pytest.mark.shared
def test_nuclei_drawn_by_pathologists_are_covered():
    files = sorted(NUCLEI.glob("*/labels/*.png"))[::12]
    if not files:
        pytest.skip(f"no label images under {NUCLEI}")
    from skimage.io import imread

    totals = []
    for file in files:
        labels = renumbered(imread(file))
        found = polygons(labels)
        assert_valid(found)
        totals.append(np.vstack([overlap(labels, found), shapely.get_num_coordinates(found) - 1]))
    iou, area, pixels, vertices = np.hstack(totals)
    assert np.median(iou) >= 0.95
    assert np.mean(iou >= 0.90) >= 0.99
    assert abs(np.mean(area / pixels) - 1) < 0.01
    assert np.median(vertices) <= 32


@settings(max_examples=150, deadline=None)
@given(
    mask=arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 0.5), (2.0, 1.9), (0.131, 0.129)]),
)
def test_any_mask_gives_a_valid_polygon_far_from_the_origin(mask, scale):
    labels = ndimage.label(mask, np.ones((3, 3)))[0].astype(np.int32)
    near = polygons(labels, scale=scale)
    origin = (int(FAR[0] / scale[0]), int(FAR[1] / scale[1]))
    far = polygons(labels, origin=origin, scale=scale)
    for found in (near, far):
        assert len(found) == labels.max()
        assert_valid(found)
        assert (shapely.area(found) > 0).all()


def test_pixels_of_one_label_in_every_shape_have_their_area():
    for pattern in range(1, 512):
        mask = np.array([pattern >> i & 1 for i in range(9)], bool).reshape(3, 3)
        labels = largest_piece_filled(mask).astype(np.int32)
        polygon = polygons(labels, tolerance=0.01)[0]
        outline = outlines(labels)
        assert np.isclose(polygon.area, (labels > 0).sum(), atol=0.51)
        assert len(outline.corners) == 1


def test_holes_are_filled_and_the_largest_piece_is_taken():
    labels = np.zeros((40, 60), np.int32)
    labels[5:30, 5:30] = 1
    labels[12:20, 12:20] = 0
    labels[35:38, 50:53] = 1
    (polygon,) = polygons(labels)
    assert polygon.area == pytest.approx(25 * 25, rel=0.01)
    assert polygon.bounds == pytest.approx((5, 5, 30, 30), abs=0.6)


def test_a_polygon_does_not_depend_on_where_its_label_image_was_cut():
    labels = instances(DrawnNetwork().predict(drawn(200, 200, scattered(200, 200, 30, 3))[None])[0])
    whole = polygons(labels, origin=(70_001, 90_003), scale=(0.5, 0.5))
    x0, y0 = 37, 21
    crop = renumbered(labels[y0:150, x0:160])
    inside = [
        i
        for i, box in enumerate(ndimage.find_objects(labels))
        if box[0].start > y0 and box[0].stop < 150 and box[1].start > x0 and box[1].stop < 160
    ]
    cut = polygons(crop, origin=(70_001 + x0, 90_003 + y0), scale=(0.5, 0.5))
    assert len(inside) > 3
    assert set(shapely.to_wkb(whole[inside])) <= set(shapely.to_wkb(cut))


def test_scaled_pixels_cover_their_slide_pixels():
    labels = np.zeros((20, 20), np.int32)
    labels[4:12, 6:18] = 1
    (polygon,) = polygons(labels, origin=(100, 200), scale=(0.5, 2.0))
    assert polygon.bounds == pytest.approx((53, 408, 59, 424), abs=1.2)
    assert polygon.area == pytest.approx(8 * 12, rel=1e-5)


def test_no_labels_give_no_polygons():
    assert len(polygons(np.zeros((5, 5), np.int32))) == 0


def test_a_missing_label_is_refused():
    labels = np.zeros((5, 5), np.int32)
    labels[1, 1] = 2
    with pytest.raises(ValueError, match="label 1 has no pixel"):
        polygons(labels)
