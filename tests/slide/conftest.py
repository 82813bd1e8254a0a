"""Small slides of real tissue, written for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.data import immunohistochemistry
from written_slides import HEIGHT, WIDTH, write_pyramid

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def tissue() -> np.ndarray:
    """(777, 1003, 3) uint8: the colon section of scikit-image, mirrored to that size."""
    one = immunohistochemistry()
    wide = np.concatenate([one, one[:, ::-1]], axis=1)
    return np.ascontiguousarray(np.concatenate([wide, wide[::-1]])[:HEIGHT, :WIDTH])


@pytest.fixture(scope="session")
def pyramid(tissue: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless pyramid of three halved levels, 0.5 µm/px."""
    return write_pyramid(tmp_path_factory.mktemp("slides") / "pyramid.tif", tissue)


@pytest.fixture(scope="session")
def shared_slides() -> Path:
    """The folder of real slides, where it is at hand."""
    folder = SHARED / "slides"
    if not folder.is_dir():
        pytest.skip(f"needs real slides in {folder}")
    return folder
