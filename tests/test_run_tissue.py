"""Glass is left out of whole images; a person's outlines and annotations are kept to."""

import json

import numpy as np
import pytest
import shapely
from ihc_project import IMAGE, MPP
from PIL import Image

from pathosam_qupath.errors import UsageError
from pathosam_qupath.run_plan import RunOptions, plan_run

HALF = shapely.box(0, 0, 256, 512)


@pytest.fixture
def glassy(ihc):
    """The project's image with tissue on its left half only."""
    path = ihc.path.parent / "images" / IMAGE
    rgb = np.array(Image.open(path).convert("RGB"))
    rgb[:, 256:] = (240, 240, 238)
    Image.fromarray(rgb).save(path)
    return ihc


def planned(ihc, **options):
    with ihc.open() as project:
        [plan] = plan_run(project, RunOptions(**{"images": (IMAGE,), "mpp": MPP, **options}))
    return plan


def written(folder, geometry):
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(geometry)}
    folder.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return str(folder)


def test_whole_images_are_looked_at_where_there_is_tissue_only(glassy):
    whole = planned(glassy, whole_image=True, tissue="off")
    plan = planned(glassy, whole_image=True)
    assert whole.tissue is None
    assert plan.tissue.covers(shapely.box(2, 2, 200, 510))
    assert plan.tissue.area < 0.6 * 512 * 512
    assert plan.area == pytest.approx(plan.tissue.area * MPP**2)


def test_annotations_are_not_second_guessed(glassy):
    assert planned(glassy).tissue is None


def test_outlines_of_a_person_are_taken_from_a_file_or_a_folder(glassy, tmp_path):
    file = written(tmp_path / "ihc.geojson", HALF)
    for given in (file, str(tmp_path)):
        plan = planned(glassy, tissue=given)
        assert plan.tissue.equals(HALF)
        assert plan.area < planned(glassy).area
    refused = planned(glassy, tissue=str(tmp_path / "none.geojson")).error
    assert isinstance(refused, UsageError)
    assert "no such file" in refused.cause


def test_a_run_leaves_a_picture_of_the_tissue_and_the_same_nuclei(glassy, segment):
    segment(glassy, whole_image=True, tissue="off")
    everything = glassy.detections()
    record = segment(glassy, whole_image=True)
    found = glassy.detections()
    assert set(shapely.to_wkb(found.geometry)) == set(shapely.to_wkb(everything.geometry))
    picture = Image.open(record.entry_folder("1") / "tissue.jpg")
    assert picture.size == (512, 512)
