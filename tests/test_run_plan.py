"""Which images a run takes, and how it opens them."""

import json
from dataclasses import dataclass

import pytest

from pathosam_qupath.run_plan import is_chosen, open_entry


@dataclass(frozen=True)
class Named:
    name: str
    id: str = "7"


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("LuCa_[13860,52919].tif", "LuCa_[13860,52919].tif", True),
        ("LuCa_[13860,52919].tif", "LuCa_*", True),
        ("slide 1.svs", "slide ?.svs", True),
        ("slide 1.svs", "slide", False),
        ("slide 1.svs", "7", True),
    ],
)
def test_images_are_chosen_by_name_pattern_or_id(name, pattern, fits):
    assert is_chosen(Named(name), [pattern]) is fits


@pytest.mark.parametrize(
    ("rotation", "mpp", "size"),
    [("ROTATE_90", (0.7, 0.6), (360, 480)), ("ROTATE_180", (0.6, 0.7), (480, 360))],
)
def test_a_turned_images_pixel_sizes_turn_with_it(ihc, rotation, mpp, size):
    """The stored sizes are the file's; width and height of a pixel swap in a quarter turn."""
    file = ihc.path / "project.qpproj"
    document = json.loads(file.read_text(encoding="utf-8"))
    builder = document["images"][0]["serverBuilder"]
    builder["metadata"]["pixelCalibration"] |= {
        "pixelWidth": {"value": 0.6, "unit": "µm"},
        "pixelHeight": {"value": 0.7, "unit": "µm"},
    }
    document["images"][0]["serverBuilder"] = {
        "builderType": "rotated",
        "builder": {
            "builderType": "cropped",
            "builder": builder,
            "region": {"x": 8, "y": 16, "width": 480, "height": 360, "z": 0, "t": 0},
        },
        "rotation": rotation,
    }
    file.write_text(json.dumps(document), encoding="utf-8")
    with ihc.open() as project, open_entry(project.entries[0]) as slide:
        assert slide.mpp == pytest.approx(mpp)
        assert (slide.width, slide.height) == size
