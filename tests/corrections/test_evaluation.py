from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from synthetic_nuclei import synthetic_image, write_samples

from pathosam_qupath.corrections.evaluation import (
    evaluate,
    predict_image,
    segment_image,
    types_of_classes,
)
from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.corrections.targets import target_maps
from pathosam_qupath.model.interface import ModelInfo, Postprocessing


class Oracle:
    """Knows the synthetic nuclei: dark is nucleus, darkest is inflammatory."""

    device = "cpu"

    def __init__(self, mpp=0.4, stride=0, tile=96, halo=16):
        self.info = ModelInfo(
            name="oracle",
            weights_hash="",
            mpp=mpp,
            tile=tile,
            halo=halo,
            classes=("Epithelial", "Inflammatory"),
            colors=((0, 0, 0), (1, 1, 1)),
            stride=stride,
            postprocessing=Postprocessing(
                foreground_smoothing=0.5, distance_smoothing=0.5, min_size=4
            ),
        )

    def predict(self, tiles):
        from scipy import ndimage

        maps = np.zeros((len(tiles), 5, *tiles.shape[1:3]), np.float32)
        for tile, out in zip(tiles, maps, strict=True):
            red = ndimage.median_filter(tile[..., 0].astype(float), 3)
            labels, _ = ndimage.label(red < 170)
            out[:3] = target_maps(labels.astype(np.int32))
            out[3] = red > 95
            out[4] = 1 - out[3]
        return maps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("samples"), 3)


def test_a_good_model_scores_high_and_the_report_has_its_form(folder):
    seen = []
    report = evaluate(Oracle(), folder, progress=seen.append)
    source = report["sources"]["Synthetic"]
    assert list(source) == ["images", "nuclei", "f1_50", "msa", "aji", "pq", "class_accuracy"]
    assert list(report["mean"]) == list(source)
    assert source["images"] == 3
    assert source["nuclei"] == sum(s.labels.max() for s in read_samples(folder))
    assert source["f1_50"] > 0.9
    assert source["class_accuracy"] > 0.95
    assert report["mean"]["msa"] == source["msa"]
    assert [result.name for result in seen] == ["image_0", "image_1", "image_2"]


def test_another_resolution_is_scored_at_the_images_own(folder):
    report = evaluate(Oracle(mpp=0.3), folder)
    assert report["mean"]["f1_50"] > 0.9


def test_an_absent_pixel_size_falls_back_to_the_given_one(tmp_path):
    folder = write_samples(tmp_path, 1, types=False)
    manifest = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(manifest.replace("~0.4 (made)", ""))
    assert evaluate(Oracle(), folder, mpp=0.4)["mean"]["f1_50"] > 0.9
    report = evaluate(Oracle(), folder, mpp=1.6)
    assert report["mean"]["class_accuracy"] is None


def test_sources_are_averaged_one_by_one(tmp_path):
    folder = write_samples(tmp_path, 3)
    text = (folder / "manifest.csv").read_text().splitlines()
    text[3] = text[3].replace("Synthetic ellipses", "Inverted images")
    (folder / "manifest.csv").write_text("\n".join(text))
    report = evaluate(Oracle(), folder)
    both = report["sources"]
    assert both.keys() == {"Synthetic", "Inverted"}
    expected = (both["Synthetic"]["msa"] + both["Inverted"]["msa"]) / 2
    assert report["mean"]["msa"] == pytest.approx(expected)
    assert report["mean"]["images"] == 3


def test_tiles_and_whole_images_give_the_same_maps_away_from_borders():
    image, _, _ = synthetic_image(1, 200, 30)
    tiled = predict_image(Oracle(tile=96, halo=16), image)
    assert tiled.shape == (5, 200, 200)
    whole = predict_image(Oracle(stride=16), image)
    assert whole.shape == (5, 200, 200)
    # The oracle's objects are cut at tile borders, its colours are not.
    np.testing.assert_array_equal(tiled[3, 8:-8, 8:-8], whole[3, 8:-8, 8:-8])


def test_classes_belong_to_labels():
    image, labels, types = synthetic_image(2)
    found, classes = segment_image(Oracle(stride=16), image, 0.4)
    assert classes.size == found.max()
    right = 0
    for label in range(1, int(found.max()) + 1):
        inside = types[(found == label) & (labels > 0)]
        right += (np.median(inside) == 2) == (classes[label - 1] == 1)
    assert right / found.max() > 0.9


def test_classes_stand_for_types():
    assert types_of_classes(("Epithelial", "Inflammatory", "Connective")) == [{1, 5, 6}, {2}, {3}]
    assert types_of_classes(("neoplastic", "epithelial", "dead")) == [{1, 6}, {5, 6}, {4}]
    assert types_of_classes(("Other",)) == [set()]


def test_types_that_no_class_stands_for_are_left_out(folder):
    oracle = Oracle()
    oracle.info = dataclasses.replace(oracle.info, classes=("Dead", "Other"))
    assert evaluate(oracle, folder)["mean"]["class_accuracy"] is None
