"""Nuclei as AnnData, the table that scanpy, squidpy and SpatialData work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pathosam_qupath.errors import UsageError

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame

_TOLD = ("id", "classification", "probability", "geometry")


def to_anndata(nuclei: GeoDataFrame, mpp: tuple[float, float] | None = None) -> AnnData:
    """Nuclei as AnnData.

    Parameters
    ----------
    nuclei : as :func:`pathosam_qupath.segment` or ``export --format parquet`` gives them.
    mpp : µm per slide pixel; None takes ``nuclei.attrs["mpp"]``.

    Returns
    -------
    table : ``X`` has the measurements, ``obs`` class and probability by the nucleus' id,
        ``obsm["spatial"]`` the centroids in µm from the slide's left top corner, and
        ``uns["nuclei"]`` the model.

    Raises
    ------
    UsageError : anndata is not installed, or the pixel size is not known.
    """
    try:
        from anndata import AnnData
    except ImportError as error:
        raise UsageError(
            "anndata", "it is not installed", "`pip install 'pathosam-qupath[spatial]'`."
        ) from error
    mpp = mpp or nuclei.attrs.get("mpp")
    if mpp is None:
        raise UsageError("mpp", "the pixel size is not known", "Give (x, y) in µm per pixel.")
    numbers = nuclei.select_dtypes("number")
    measured = numbers[[name for name in numbers.columns if name not in _TOLD]]
    observed = nuclei[["classification", "probability"]].set_index(nuclei["id"].astype(str))
    observed["classification"] = observed["classification"].astype("category")
    centres = shapely.get_coordinates(shapely.centroid(nuclei.geometry.to_numpy()))
    told: dict[str, Any] = {
        key: nuclei.attrs[key] for key in ("model", "weights_hash") if key in nuclei.attrs
    }
    return AnnData(
        X=measured.to_numpy(np.float64),
        obs=observed,
        var=measured.columns.to_frame(name="measurement").set_index("measurement"),
        obsm={"spatial": centres * np.asarray(mpp)},
        uns={"nuclei": told},
    )
