"""What several parts of the tests use: a real project to work on, the bundled model."""

import threading

import pytest
from download_server import Server
from ihc_project import IMAGE, MPP, IhcProject


@pytest.fixture
def ihc(tmp_path):
    """A fresh copy of a project with an image of real tissue."""
    return IhcProject(tmp_path)


@pytest.fixture(scope="session")
def bundled_model():
    """The model that comes with the package, on the CPU."""
    from pathosam_qupath.model import load_model

    return load_model(device="cpu")


@pytest.fixture
def segment(bundled_model):
    """Run over the tissue image of a project: ``segment(ihc, policy="keep")``."""
    from pathosam_qupath.batch import run
    from pathosam_qupath.run_plan import RunOptions, plan_run

    def segment_project(ihc, report=None, **options):
        chosen = RunOptions(**{"images": (IMAGE,), "mpp": MPP, **options})
        with ihc.open() as project:
            plans = plan_run(project, chosen)
            return run(project, bundled_model, chosen, plans, report=report)

    return segment_project


@pytest.fixture
def command(capsys):
    """Run a command line; (exit code, stdout, stderr)."""

    from pathosam_qupath.cli import main

    def run(*words):
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return leaving.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of model files, and an empty cache for what is downloaded from it."""
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path / "cache"))
    monkeypatch.delenv("PATHOSAM_OFFLINE", raising=False)
    served = Server()
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
