"""Nuclei as AnnData, the table that scanpy and squidpy work on, and as SpatialData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pathosam_qupath.errors import UsageError

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

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


def to_spatialdata(nuclei: GeoDataFrame, mpp: tuple[float, float] | None = None) -> SpatialData:
    """Nuclei as SpatialData: their outlines, and the table of :func:`to_anndata` about them.

    Parameters
    ----------
    nuclei, mpp : as for :func:`to_anndata`.

    Returns
    -------
    data : ``data["nuclei"]`` has the outlines by the nucleus' id, in pixels of the slide
        (coordinate system "global") and in µm (coordinate system "um");
        ``data["measurements"]`` the table, whose column ``nucleus`` names the outline.

    Raises
    ------
    UsageError : spatialdata is not installed, or the pixel size is not known.
    """
    try:
        from spatialdata import SpatialData
        from spatialdata.models import ShapesModel, TableModel
        from spatialdata.transformations import Identity, Scale
    except ImportError as error:
        raise UsageError(
            "spatialdata",
            f"it cannot be imported ({error})",
            "`pip install 'pathosam-qupath[spatialdata]'`.",
        ) from error
    table = to_anndata(nuclei, mpp)
    table.obs["region"] = "nuclei"
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["nucleus"] = table.obs_names.to_numpy()
    outlines = nuclei[["geometry"]].set_index(nuclei["id"].astype(str)).rename_axis(None)
    scale = Scale(np.asarray(mpp or nuclei.attrs["mpp"]), axes=("x", "y"))
    outlines.attrs = {}
    return SpatialData(
        shapes={
            "nuclei": ShapesModel.parse(
                outlines, transformations={"global": Identity(), "um": scale}
            )
        },
        tables={
            "measurements": TableModel.parse(
                table, region="nuclei", region_key="region", instance_key="nucleus"
            )
        },
    )
