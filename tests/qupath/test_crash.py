"""A process that is killed anywhere in a write leaves a project that opens and is whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixture_projects import judged_project, nuclei
from judge import assert_objects_equal

from pathosam_qupath.qupath.project import HierarchyChange, open_project

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes by signal")

WRITERS = """
import json, os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from fixture_projects import nuclei
from pathosam_qupath.qupath import atomic, classes, embedded_project
from pathosam_qupath.qupath.project import HierarchyChange, open_project

template, target = Path(sys.argv[1]), Path(sys.argv[2])
frame = nuclei(30, [None])
watched = {m.__file__ for m in (atomic, classes, embedded_project)}

def die_at(folder, deadly):
    executed = 0

    def on_line(frame, event, argument):
        nonlocal executed
        if frame.f_code.co_filename not in watched:
            return None
        if event == "line":
            executed += 1
            if executed == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    project = open_project(folder, "embedded")
    project.entries[0].annotations()
    sys.settrace(on_line)
    project.add_classes({"Lymphocyte": (1, 2, 3)})
    project.entries[0].write(HierarchyChange(add=frame))
    os._exit(0)

deaths, deadly, status = [], 0, None
while status != 0 and deadly < 3000:
    deadly += 7
    folder = target / str(deadly)
    shutil.copytree(template, folder)
    child = os.fork()
    if child == 0:
        die_at(folder, deadly)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    deaths.append(status)
print(json.dumps(deaths))
"""


def test_a_killed_write_leaves_the_old_or_the_new_project(
    tmp_path: Path, copied: Callable[[str], Path]
) -> None:
    template, target = copied("0.6.0/rois"), tmp_path / "killed"
    target.mkdir()
    for entry in ("2", "3", "4", "5"):
        shutil.rmtree(template / "data" / entry)
    script = tmp_path / "writers.py"
    script.write_text(WRITERS, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(template), str(target), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    *deaths, last = json.loads(done.stdout)
    assert last == 0
    assert len(deaths) > 20
    assert set(deaths) == {-signal.SIGKILL}

    old_data = (template / "data" / "1" / "data.qpdata").read_bytes()
    finished = target / str(7 * (len(deaths) + 1))
    new_data = (finished / "data" / "1" / "data.qpdata").read_bytes()
    old_classes = {"Tumor", "Nucleus: Tumor", "Größe/µ"}
    states = set()
    for folder in target.iterdir():
        data = (folder / "data" / "1" / "data.qpdata").read_bytes()
        with open_project(folder, "embedded") as project:
            names = set(project.classes)
        assert data in (old_data, new_data), folder.name
        assert names in (old_classes, old_classes | {"Lymphocyte"}), folder.name
        states.add((data == new_data, "Lymphocyte" in names))
    assert states == {(False, False), (False, True), (True, True)}

    judged = judged_project("0.6.0/rois")["entries"][0]["objects"]
    for folder in (target / "7", target / str(7 * len(deaths)), finished):
        with open_project(folder, "embedded") as project:
            entry = project.entries[0]
            old = [o for o in entry.objects() if o.run is None]
            assert_objects_equal(old, judged)
            entry.write(HierarchyChange(add=nuclei(3, [None], seed=9)))
