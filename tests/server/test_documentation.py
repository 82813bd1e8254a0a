import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile
from live_server import IHC
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "server.md"


def test_the_client_of_the_documentation_works(live, slides, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    tissue = np.asarray(Image.open(IHC).convert("RGB"))
    slide = slides / "documented.tif"
    resolution = (10_000 / 0.5,) * 2
    tifffile.imwrite(
        slide,
        tissue,
        photometric="rgb",
        tile=(256, 256),
        resolution=resolution,
        resolutionunit="CENTIMETER",
    )
    (tmp_path / ".pathosam-qupath").symlink_to(live.folder)
    code = code.replace("/home/me/a.svs", str(slide)).replace("1200, 840", "256, 256")
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint(len(nuclei), len(clicked['features']))"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found, clicked = map(int, done.stdout.split())
    assert found > 10
    assert clicked == 1
