"""The client's classes, compiled once, and what a run of them against real servers gave."""

import os
import sys
from pathlib import Path

import groovy_tools
import pytest


@pytest.fixture(scope="session")
def groovy():
    """Groovy and Java are there; else the test is skipped, or fails where they are required."""
    reason = groovy_tools.why_not()
    if reason is not None and "PATHOSAM_REQUIRE_GROOVY" in os.environ:
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def client_classes(groovy, tmp_path_factory):
    """The classes that are free of QuPath, compiled with nothing but Groovy on the class path."""
    folder = tmp_path_factory.mktemp("classes")
    groovy_tools.compile_groovy(groovy_tools.FREE_OF_QUPATH, folder)
    return folder


@pytest.fixture(scope="session")
def executable():
    """The installed command."""
    name = "pathosam-qupath.exe" if os.name == "nt" else "pathosam-qupath"
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.skip("the command pathosam-qupath is not installed beside this Python")
    return found


@pytest.fixture(scope="session")
def run_script(client_classes):
    """Run a Groovy script of this folder; its results by name."""

    def run(name, *words, timeout):
        script = Path(__file__).with_name(name)
        return groovy_tools.results(
            groovy_tools.java(
                "groovy.ui.GroovyMain",
                script,
                *words,
                class_path=[groovy_tools.groovy_jar(), client_classes],
                timeout=timeout,
            )
        )

    return run


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder for a server's state; a server that is left there at the end is ended."""
    folder = tmp_path_factory.mktemp("home") / "state"
    yield folder
    groovy_tools.end_server(folder)
