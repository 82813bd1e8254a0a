"""The package in a script: what it offers, what it gives back, what it costs to import."""

import doctest
import subprocess
import sys

import geopandas as gpd
import numpy as np
import pytest
import shapely
from cheap_model import CheapModel
from ihc_project import FIXTURES, MPP
from PIL import Image

import pathosam_qupath as pq
from pathosam_qupath.errors import UsageError

TISSUE = FIXTURES / "0.6.0" / "images" / "ihc.png"
BOX = (60, 80, 300, 260)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, pathosam_qupath; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert not {"torch", "numpy", "shapely", "geopandas", "paquo"} & set(loaded.split())
    assert {"segment", "open_slide", "open_project", "load_model"} <= set(dir(pq))
    with pytest.raises(AttributeError, match="no attribute 'segmentate'"):
        pq.segmentate  # noqa: B018


@pytest.fixture(scope="module")
def nuclei():
    return pq.segment(TISSUE, BOX, CheapModel(), mpp=MPP)


def test_nuclei_of_a_region_come_as_a_frame_that_knows_its_slide(nuclei):
    assert isinstance(nuclei, gpd.GeoDataFrame)
    assert len(nuclei) > 10
    assert shapely.intersects(shapely.box(*BOX), nuclei.geometry.centroid).all()
    assert nuclei.attrs == {"mpp": (MPP, MPP), "model": "cheap", "weights_hash": "0"}
    area = nuclei.geometry.area * MPP**2
    assert nuclei["Area µm^2"].to_numpy() == pytest.approx(area.to_numpy())


def test_a_region_may_be_written_in_several_ways(nuclei):
    box = shapely.box(*BOX)
    halves = [shapely.box(60, 80, 180, 260), shapely.box(180, 80, 300, 260)]
    for region in (box, halves, gpd.GeoDataFrame(geometry=halves), gpd.GeoSeries([box])):
        with pq.open_slide(TISSUE, mpp=MPP) as slide:
            again = pq.segment(slide, region, CheapModel())
        assert again.geometry.geom_equals_exact(nuclei.geometry, 0).all()


@pytest.mark.parametrize("region", [[1, 2, 3], ["a"], shapely.Point(3, 3), []])
def test_what_is_no_region_is_refused(region):
    with pytest.raises(UsageError):
        pq.segment(TISSUE, region, CheapModel(), mpp=MPP)


def test_without_a_region_glass_is_left_out(tmp_path):
    rgb = np.full((900, 900, 3), 242, np.uint8)
    rgb[:300, :300] = np.array(Image.open(TISSUE).convert("RGB"))[:300, :300]
    Image.fromarray(rgb).save(tmp_path / "slide.png")
    careful, thorough = CheapModel(), CheapModel()
    seen = pq.segment(tmp_path / "slide.png", None, careful, mpp=MPP)
    everything = pq.segment(tmp_path / "slide.png", None, thorough, mpp=MPP, tissue=False)
    assert seen.geometry.geom_equals_exact(everything.geometry, 0).all()
    assert len(seen) > 10


def test_the_example_in_the_documentation_runs(monkeypatch):
    from pathlib import Path

    from pathosam_qupath import api

    monkeypatch.chdir(Path(__file__).parents[1])
    failed, tried = doctest.testmod(api)
    assert (failed, tried) == (0, 3)
