"""A small project of QuPath's own with an image of real tissue, copied for a test.

The fixture's other images are not in the repository, so its other entries are ones whose
file is missing, and one that is fluorescence.
"""

import shutil
from pathlib import Path

from pathosam_qupath.qupath.project import PathMap, open_project

FIXTURES = Path(__file__).parent / "data" / "fixtures"
IMAGE = "ihc.png"
MPP = 0.6
SEGMENT = ["--images", IMAGE, "--mpp", str(MPP), "--device", "cpu"]
"""Arguments of ``segment`` for the image."""


class IhcProject:
    """A copy of the project, opened anew at every step, as commands do."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(FIXTURES / "0.6.0" / "rois", folder / "rois")
        shutil.copytree(FIXTURES / "0.6.0" / "images", folder / "images")
        self.path = folder / "rois"
        self.moved = f"/slides/fixtures/0.6.0={folder}"
        self.data = self.path / "data" / "1" / "data.qpdata"

    def open(self, backend="embedded"):
        return open_project(self.path, backend, path_map=PathMap.parse([self.moved]))

    def detections(self):
        with self.open() as project:
            return project.entries[0].detections()

    def objects(self):
        with self.open() as project:
            return project.entries[0].objects()

    def change(self, change):
        """Save something into the image's data, as another program would."""
        with self.open() as project:
            project.entries[0].write(change)

    @property
    def words(self) -> list[str]:
        """Arguments of a command that opens this project."""
        return [str(self.path), "--backend", "embedded", "--path-map", self.moved]
