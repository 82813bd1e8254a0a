"""A project that looks open in QuPath is told."""

import os
import subprocess
import sys
import time

import pytest

from pathosam_qupath.qupath.running import RECENT, signs_of_qupath


@pytest.fixture
def project(tmp_path):
    file, data = tmp_path / "project.qpproj", tmp_path / "data.qpdata"
    for path in (file, data):
        path.write_bytes(b"")
        os.utime(path, (time.time() - 10 * RECENT,) * 2)
    return file, data


def own(signs, pid):
    return [sign for sign in signs if f"process {pid})" in sign]


@pytest.mark.skipif(os.name == "nt", reason="gives a process another name by exec -a")
def test_a_running_qupath_is_seen_and_whether_it_was_given_the_project(project):
    file, data = project
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    for words, said in (([], "QuPath is running"), ([str(file)], "started with this project")):
        command = ["bash", "-c", 'exec -a /opt/QuPath/bin/QuPath "$0" "$@"', *sleep, *words]
        process = subprocess.Popen(command)
        try:
            until = time.monotonic() + 20
            found = []
            while not found and time.monotonic() < until:
                found = own(signs_of_qupath(file, [data]), process.pid)
                time.sleep(0.05)
            assert len(found) == 1
            assert said in found[0]
        finally:
            process.kill()
            process.wait()
    assert own(signs_of_qupath(file, [data]), process.pid) == []


def test_files_saved_a_moment_ago_are_a_sign_unless_this_program_did_it(project):
    file, data = project

    def saved():
        return [sign for sign in signs_of_qupath(file, [data]) if "saved" in sign]

    assert saved() == []
    data.touch()
    assert len(saved()) == 1
    assert saved()[0].startswith("data.qpdata was saved")
    signs = signs_of_qupath(file, [data], own_writes=time.time() + 1)
    assert not any("saved" in sign for sign in signs)


def test_images_that_have_no_data_yet_are_no_sign(project):
    file, data = project
    data.unlink()
    assert not any("saved" in sign for sign in signs_of_qupath(file, [data]))
