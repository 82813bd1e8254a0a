"""Nuclei become a table of scanpy's kind, and SpatialData, and survive their files."""

import sys

import numpy as np
import pytest
from cheap_model import CheapModel
from ihc_project import FIXTURES, MPP

import pathosam_qupath as pq
from pathosam_qupath.errors import UsageError

anndata = pytest.importorskip("anndata", reason="anndata is not installed")


def test_measurements_classes_and_places_come_along(tmp_path):
    tissue = FIXTURES / "0.6.0" / "images" / "ihc.png"
    nuclei = pq.segment(tissue, (60, 80, 220, 200), CheapModel(), mpp=MPP)
    nuclei.to_parquet(tmp_path / "n.parquet")
    table = pq.to_anndata(nuclei)
    table.write_h5ad(tmp_path / "n.h5ad")
    again = anndata.read_h5ad(tmp_path / "n.h5ad")
    assert again.obs_names.tolist() == nuclei["id"].tolist()
    assert again.obs["classification"].astype(str).tolist() == nuclei["classification"].tolist()
    assert again[:, "Area µm^2"].X[:, 0] == pytest.approx(nuclei["Area µm^2"].to_numpy())
    x = nuclei.geometry.centroid.x.to_numpy() * MPP
    assert again.obsm["spatial"][:, 0] == pytest.approx(x)
    assert again.uns["nuclei"]["model"] == "cheap"
    assert np.isfinite(again.X).all()


def test_without_a_pixel_size_it_is_refused():
    nuclei = pq.segment(
        FIXTURES / "0.6.0" / "images" / "ihc.png", (60, 80, 120, 120), CheapModel(), mpp=MPP
    )
    nuclei.attrs = {}
    with pytest.raises(UsageError, match="pixel size"):
        pq.to_anndata(nuclei)
    assert pq.to_anndata(nuclei, (MPP, MPP)).n_obs == len(nuclei)


def test_outlines_and_table_make_spatial_data(tmp_path):
    spatialdata = pytest.importorskip("spatialdata", reason="spatialdata is not installed")
    tissue = FIXTURES / "0.6.0" / "images" / "ihc.png"
    nuclei = pq.segment(tissue, (60, 80, 220, 200), CheapModel(), mpp=MPP)
    pq.to_spatialdata(nuclei).write(tmp_path / "nuclei.zarr")
    again = spatialdata.read_zarr(tmp_path / "nuclei.zarr")
    assert set(again.coordinate_systems) == {"global", "um"}
    outlines, table = again["nuclei"], again["measurements"]
    assert outlines.index.tolist() == nuclei["id"].tolist() == table.obs["nucleus"].tolist()
    assert outlines.geometry.geom_equals(nuclei.set_index("id").geometry).all()
    in_um = spatialdata.transform(outlines, to_coordinate_system="um")
    assert in_um.geometry.area.to_numpy() == pytest.approx(nuclei["Area µm^2"].to_numpy())
    assert in_um.geometry.centroid.x.to_numpy() == pytest.approx(table.obsm["spatial"][:, 0])
    joined = spatialdata.join_spatialelement_table(
        sdata=again, spatial_element_names="nuclei", table_name="measurements"
    )
    assert len(joined[1]) == len(nuclei)


def test_without_spatialdata_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(UsageError, match=r"pathosam-qupath\[spatialdata\]"):
        pq.to_spatialdata(None)
