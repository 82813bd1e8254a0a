"""Fixtures for tests about QuPath projects: copies of the fixture projects, backends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fixture_projects import FIXTURES

from pathosam_qupath.qupath.jvm import find_installation


@pytest.fixture(params=["embedded", pytest.param("paquo", marks=pytest.mark.qupath)])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn; paquo's turn is skipped where no QuPath is found."""
    if request.param == "paquo" and find_installation() is None:
        pytest.skip("no QuPath found; install QuPath 0.5 or newer and set PAQUO_QUPATH_DIR")
    return request.param


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a fixture project ("0.6.0/rois") and returns the copy's folder."""

    def copy(name: str) -> Path:
        target = tmp_path / Path(name).name
        shutil.copytree(FIXTURES / name, target)
        return target

    return copy
