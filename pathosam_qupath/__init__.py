"""Nuclei in QuPath projects, segmented by PathoSAM and written back as detections.

From a script or a notebook::

    import pathosam_qupath as pq

    nuclei = pq.segment("slide.svs", (2000, 3000, 6000, 7000))

What the package offers there is imported when it is first used: :func:`segment`,
:func:`open_slide`, :func:`open_project`, :func:`load_model`, :func:`to_anndata`,
:func:`to_spatialdata`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathosam_qupath.api import segment
    from pathosam_qupath.model import load_model
    from pathosam_qupath.qupath.project import open_project
    from pathosam_qupath.slide import open_slide
    from pathosam_qupath.spatial import to_anndata, to_spatialdata

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "load_model",
    "open_project",
    "open_slide",
    "segment",
    "to_anndata",
    "to_spatialdata",
]

_WHERE = {
    "segment": "api",
    "load_model": "model",
    "open_project": "qupath.project",
    "open_slide": "slide",
    "to_anndata": "spatial",
    "to_spatialdata": "spatial",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
