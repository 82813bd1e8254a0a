"""Nuclei by clicks, boxes and outlines, in slide pixels, with few encoder passes."""

import threading

import numpy as np
import pytest
import shapely
from drawn_slide import DrawnNetwork, DrawnSlide, drawn
from prompted_network import PromptedNetwork, nuclei_image, small_pathosam

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model.prompts import Prompt
from pathosam_qupath.segmentation.classes import ClassMap
from pathosam_qupath.segmentation.pipeline import segment
from pathosam_qupath.segmentation.prompting import PromptSession, meant_piece

WIDTH, HEIGHT = 420, 350
NUCLEI = [
    (60, 70, 12, 9, 0.3, 0),
    (100, 80, 10, 8, 1.0, 1),
    (5, 200, 11, 9, 0.0, 1),
    (415, 345, 12, 12, 0.0, 0),
    (200, 150, 60, 40, 0.4, 0),
    (330, 100, 10, 10, 0.0, 1),
]


@pytest.fixture(scope="module")
def rgb():
    return drawn(WIDTH, HEIGHT, NUCLEI)


@pytest.fixture
def network():
    return PromptedNetwork(tile=128)


def click(x, y):
    return Prompt(points=((x, y),))


def ellipse(nucleus, scale=1.0):
    x, y, a, b, angle, _ = nucleus
    circle = shapely.Point(0, 0).buffer(1, quad_segs=32)
    turned = shapely.affinity.rotate(shapely.affinity.scale(circle, a, b), np.degrees(angle))
    placed = shapely.affinity.translate(turned, x, y)
    return shapely.affinity.scale(placed, scale, scale, origin=(0, 0))


def iou(one, other):
    return one.intersection(other).area / one.union(other).area


def test_a_click_gives_the_nucleus_under_it(rgb, network):
    frame = PromptSession(DrawnSlide(rgb), network).segment([click(x, y) for x, y, *_ in NUCLEI])
    assert len(frame) == len(NUCLEI)
    slide = shapely.box(0, 0, WIDTH, HEIGHT)
    for nucleus, row in zip(NUCLEI, frame.itertuples(), strict=True):
        # The drawn network's foreground ends a little inside the drawn border.
        assert iou(row.geometry, ellipse(nucleus) & slide) > 0.7
        assert row.geometry.is_valid
        assert slide.covers(row.geometry)
    assert list(frame["classification"]) == [("round", "spindle")[n[-1]] for n in NUCLEI]
    assert (frame["Predicted IoU"] == 0.9).all()


def test_columns_are_those_of_segment_and_the_predicted_iou(rgb, network):
    slide = DrawnSlide(rgb)
    found = PromptSession(slide, network).segment([click(60, 70)])
    automatic = segment(slide, None, DrawnNetwork(tile=128))
    assert list(found.columns) == [*automatic.columns, "Predicted IoU"]
    assert found["id"].is_unique
    assert found["Area µm^2"][0] == pytest.approx(found.geometry[0].area / 16)


@pytest.mark.parametrize("mpp", [(0.25, 0.25), (0.5, 0.5), (0.2, 0.25)])
def test_prompts_and_polygons_are_in_slide_pixels_at_any_resolution(rgb, network, mpp):
    slide = DrawnSlide(rgb, mpp=mpp)
    x, y, *_ = NUCLEI[0]
    sx, sy = slide.scale
    prompts = [
        click(x * sx, y * sy),
        Prompt(box=((x - 12) * sx, (y - 12) * sy, (x + 12) * sx, (y + 12) * sy)),
        Prompt.from_geometry(
            shapely.affinity.scale(ellipse(NUCLEI[0]), sx, sy, origin=(0, 0)).buffer(2)
        ),
        Prompt(
            mask=np.ones((round(8 * sy), round(8 * sx)), bool),
            mask_origin=(round((x - 4) * sx), round((y - 4) * sy)),
        ),
    ]
    frame = PromptSession(slide, network).segment(prompts)
    expected = shapely.affinity.scale(ellipse(NUCLEI[0]), sx, sy, origin=(0, 0))
    for geometry in frame.geometry:
        assert geometry.equals(frame.geometry[0])
        assert iou(geometry, expected) > 0.7
    assert frame["Area µm^2"][0] == pytest.approx(frame.geometry[0].area * mpp[0] * mpp[1])
    assert len(network.embedded) == 1


def test_clicks_near_each_other_share_one_embedding(rgb, network):
    session = PromptSession(DrawnSlide(rgb), network)
    session.segment([click(60, 70)])
    session.segment([click(100, 80)])
    session.segment([Prompt(box=(90, 70, 112, 90)), Prompt(((60, 70), (100, 80)), (True, False))])
    assert len(network.embedded) == 1
    # One call of the model per tile, whatever the prompts.
    assert [len(prompts) for prompts in network.asked] == [1, 1, 2]


def test_prepared_places_need_no_encoder(rgb, network):
    session = PromptSession(DrawnSlide(rgb), network)
    session.prepare(70, 75)
    assert len(network.embedded) == 1
    session.segment([click(60, 70), click(100, 80)])
    assert len(network.embedded) == 1


def test_a_batch_across_the_slide_takes_a_tile_per_place(rgb, network):
    session = PromptSession(DrawnSlide(rgb), network)
    session.segment([click(x, y) for x, y, *_ in NUCLEI if (x, y) != (200, 150)])
    assert len(network.embedded) == 4


def test_a_nucleus_larger_than_the_tile_is_whole(rgb, network):
    for session in (
        PromptSession(DrawnSlide(rgb), network),
        PromptSession(DrawnSlide(rgb), PromptedNetwork(tile=64)),
    ):
        session.segment([click(150, 150)])
        found = session.segment([click(200, 150)]).geometry[0]
        assert iou(found, ellipse(NUCLEI[4])) > 0.7


def test_an_object_that_a_shared_tile_cuts_is_looked_at_again(rgb):
    network = PromptedNetwork(tile=128)
    session = PromptSession(DrawnSlide(rgb), network)
    session.prepare(224, 150)
    alone = PromptSession(DrawnSlide(rgb), PromptedNetwork(tile=128)).segment([click(180, 140)])
    shared = session.segment([click(180, 140)])
    assert shared.geometry[0].equals(alone.geometry[0])
    assert len(network.embedded) > 1


def test_a_slide_smaller_than_a_tile_is_mirrored_to_one(rgb):
    network = PromptedNetwork(tile=128)
    frame = PromptSession(DrawnSlide(rgb[30:130, 30:120]), network).segment([click(30, 40)])
    assert network.embedded[0].shape == (128, 128, 3)
    assert iou(frame.geometry[0], ellipse((30, 40, 12, 9, 0.3, 0))) > 0.7
    assert shapely.box(0, 0, 90, 100).covers(frame.geometry[0])


def test_where_nothing_is_seen_the_row_is_empty(rgb, network):
    frame = PromptSession(DrawnSlide(rgb), network).segment([click(250, 40), click(60, 70)])
    assert frame.geometry[0] is None
    assert frame["classification"].isna()[0]
    assert np.isnan(
        frame[["probability", "Area µm^2", "Predicted IoU"]].iloc[0].to_numpy(float)
    ).all()
    assert frame.geometry[1] is not None
    alone = PromptSession(DrawnSlide(rgb), network).segment([click(250, 40)])
    assert alone.geometry[0] is None
    assert len(PromptSession(DrawnSlide(rgb), network).segment([])) == 0


def test_classes_take_the_projects_names(rgb, network):
    names = ClassMap({"round": "Tumor"}, frozenset({"spindle"}))
    session = PromptSession(DrawnSlide(rgb), network, class_map=names)
    frame = session.segment([click(60, 70), click(100, 80)])
    assert frame["classification"][0] == "Tumor"
    assert frame["classification"].isna()[1]
    assert frame.geometry.notna().all()


def test_prompts_that_cannot_be_answered_are_refused_by_number(rgb, network):
    session = PromptSession(DrawnSlide(rgb, mpp=(0.5, 0.5)), network)
    with pytest.raises(UsageError, match=r"prompt 2: it lies at 211, 40, the slide has 210 x 175"):
        session.segment([click(5, 5), click(211, 40)])
    ragged = DrawnSlide(rgb, mpp=(0.24, 0.24))
    last = ragged.width - 0.3, ragged.height - 0.3
    assert len(PromptSession(ragged, PromptedNetwork(tile=128)).segment([click(*last)])) == 1
    with pytest.raises(UsageError, match="prompt 1: it is 150 µm long, the model sees 128 µm"):
        PromptSession(DrawnSlide(np.zeros((1200, 1200, 3), np.uint8)), network).segment(
            [Prompt(box=(0, 0, 600, 9))]
        )
    assert not network.embedded


def test_a_model_without_prompts_is_refused(rgb):
    with pytest.raises(ModelError, match="drawn: it answers no prompts"):
        PromptSession(DrawnSlide(rgb), DrawnNetwork())


def test_threads_share_the_encoder_pass(rgb, network):
    session = PromptSession(DrawnSlide(rgb), network)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(session.segment([click(60, 70)])))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(network.embedded) == 1
    assert len({frame.geometry[0].wkb for frame in found}) == 1


def test_the_piece_that_is_meant():
    mask = np.zeros((60, 60), bool)
    mask[5:25, 5:25] = True
    mask[12:16, 12:16] = False
    mask[40:45, 40:45] = True
    assert meant_piece(mask, click(42, 42)).sum() == 25
    filled = meant_piece(mask, click(14, 14))
    assert filled.sum() == 400, "a click into a hole means the object around it"
    assert meant_piece(mask, click(48, 42)).sum() == 25, "a click just beside"
    assert meant_piece(mask, click(50, 10)) is None
    assert meant_piece(mask, Prompt(box=(35, 35, 50, 50))).sum() == 25
    assert meant_piece(mask, Prompt(mask=~np.eye(60, dtype=bool))).sum() == 400
    assert meant_piece(mask, Prompt(((50, 10), (42, 42)), (False, True))).sum() == 25
    assert meant_piece(np.zeros((9, 9), bool), click(3, 3)) is None


@pytest.fixture(scope="module")
def pathosam():
    return small_pathosam()


@pytest.fixture
def encoded(pathosam, monkeypatch):
    """The inputs of every real pass of SAM's image encoder."""
    inputs = []
    original = pathosam.sam.encode

    def counted(pixels):
        inputs.extend(pixels)
        return original(pixels)

    monkeypatch.setattr(pathosam.sam, "encode", counted)
    return inputs


def test_pathosam_answers_many_prompts_with_one_encoder_pass(pathosam, encoded):
    # The small PathoSAM's mask decoder never learned to keep to a nucleus: it may fill the
    # slide, which is one tile here, so that nothing is asked for again on a larger tile.
    slide = DrawnSlide(nuclei_image()[:128, :128])
    chosen = segment(slide, None, pathosam).head(8)
    assert len(chosen) == 8
    encoded.clear()
    session = PromptSession(slide, pathosam)
    prompts = [click(*np.array(p.centroid.coords)[0]) for p in chosen.geometry]
    prompts += [Prompt(box=p.bounds) for p in chosen.geometry]
    prompts += [Prompt.from_geometry(p) for p in chosen.geometry]
    session.prepare(64, 64)
    frame = session.segment(prompts)
    assert len(encoded) == 1
    assert frame.geometry.notna().mean() > 0.9
    assert frame["classification"].dropna().isin(pathosam.info.classes).all()
    assert frame["classification"].notna().sum() == frame.geometry.notna().sum()
    session.segment(prompts[::-1])
    assert len(encoded) == 1


def test_segment_and_its_classes_take_one_encoder_pass_per_tile(pathosam, encoded):
    image = nuclei_image()[:192, :192]
    with_classes = segment(DrawnSlide(image), None, pathosam)
    assert len(encoded) == 4  # 192 pixels in tiles of 128 - 2 * 16
    encoded.clear()
    without = segment(DrawnSlide(image), None, small_pathosam(semantic=False))
    assert not encoded
    assert [p.wkb for p in with_classes.geometry] == [p.wkb for p in without.geometry]
    shares = with_classes[[f"Probability: {name}" for name in pathosam.info.classes]]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1)
    assert with_classes["probability"].to_numpy() == pytest.approx(shares.max(axis=1).to_numpy())
