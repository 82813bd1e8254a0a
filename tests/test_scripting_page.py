"""The cells of docs/scripting.md run as a notebook runs them: in their order, in one place."""

import re
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scripting.md"
NEEDS = {"nuclei.plot": "matplotlib", "to_anndata": "anndata", "to_spatialdata": "spatialdata"}
"""Libraries that cells need and this package does not; a cell without its library is left out."""


def test_the_cells_of_the_page_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "projects_example").symlink_to(ROOT / "projects_example")
    _, notebook = PAGE.read_text(encoding="utf-8").split("\n## One region\n")
    cells = re.findall(r"```python\n(.*?)```", notebook, re.DOTALL)
    assert len(cells) == 8
    names: dict[str, object] = {}
    for cell in cells:
        needed = [library for word, library in NEEDS.items() if word in cell]
        if all(map(find_spec, needed)):
            exec(cell, names)
    assert len(names["nuclei"]) > 50
    assert names["summary"]["size"].sum() == names["nuclei"]["classification"].notna().sum()
    assert list(names["in_tumor"].columns) == list(names["nuclei"].columns)
    assert names["neighbours"].sum() == len(names["pairs"]) - len(names["nuclei"]) > 0
    assert (tmp_path / "nuclei.h5ad").is_file() == bool(find_spec("anndata"))
