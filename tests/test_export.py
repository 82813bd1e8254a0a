"""Exports hold every object, whatever the names of images."""

import gzip
import json

import geopandas as gpd
import pytest
from ihc_project import FIXTURES

from pathosam_qupath.errors import UsageError
from pathosam_qupath.export import export_project
from pathosam_qupath.qupath.geojson import read_geojson
from pathosam_qupath.qupath.project import open_project


@pytest.fixture
def cells():
    """QuPath's project with cells, tiles, nested annotations and detections."""
    with open_project(FIXTURES / "0.6.0" / "cells", "embedded") as project:
        yield project


def test_geojson_holds_every_object_but_tma_cores(cells, tmp_path):
    for exported, entry in zip(export_project(cells, tmp_path), cells.entries, strict=True):
        [path] = exported.files
        expected = [o for o in entry.objects() if o.object_type != "tma_core"]
        found = {o.id: o for o in read_geojson(path).objects}
        assert set(found) == {o.id for o in expected}
        assert exported.annotations + exported.detections == len(expected)
        for old in expected:
            new = found[old.id]
            assert (new.object_type, new.classification) == (old.object_type, old.classification)
            assert (new.nucleus is None) == (old.nucleus is None)


def test_parquet_holds_annotations_and_detections_with_measurements(cells, tmp_path):
    [exported, *_] = export_project(cells, tmp_path, "parquet")
    annotations, detections = (gpd.read_parquet(path) for path in exported.files)
    entry = cells.entries[0]
    assert annotations["id"].tolist() == [str(a.id) for a in entry.annotations()]
    expected = entry.detections()
    assert detections["id"].tolist() == expected["id"].tolist()
    assert list(detections.columns) == list(expected.columns)
    assert detections.geometry.geom_equals(expected.geometry).all()


def test_gz_is_gzip_and_odd_names_become_safe_ones(tmp_path):
    with open_project(FIXTURES / "0.6.0" / "rois", "embedded") as project:
        exported = export_project(project, tmp_path / "deep" / "out", images=("tiled*",), gz=True)
    [path] = exported[0].files
    assert path.endswith("tiled pyramid ü.tif-3.geojson.gz")
    with gzip.open(path) as file:
        assert json.load(file)["type"] == "FeatureCollection"


def test_a_damaged_image_does_not_stop_the_others(ihc, tmp_path):
    ihc.data.write_bytes(b"\xac\xed torn")
    with ihc.open() as project:
        exported = export_project(project, tmp_path / "out")
    assert [bool(e.message) for e in exported] == [True, False, False, False, False]
    assert exported[0].exit_code == 3


def test_a_file_where_the_folder_should_be_is_an_error(cells, tmp_path):
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(UsageError, match="not a folder"):
        export_project(cells, tmp_path / "out")
