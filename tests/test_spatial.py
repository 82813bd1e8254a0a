"""Nuclei become a table of scanpy's kind, and survive its file."""

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
