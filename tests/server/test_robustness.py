import errno
import shutil
import signal
import subprocess
import sys
import time

import pytest
from ihc_project import IhcProject
from live_server import IHC, IMAGES, MPP, LiveServer, rectangle, regions

from pathosam_qupath.errors import ProjectError
from pathosam_qupath.run_record import open_run, run_ids
from pathosam_qupath.server.app import Server, Settings
from pathosam_qupath.server.problems import as_problem
from pathosam_qupath.server.schemas import SegmentJob
from pathosam_qupath.server.segment_job import segment_job
from pathosam_qupath.server.state import read_state
from pathosam_qupath.server.warm_model import WarmModel

REGION = regions(rectangle(120, 120, 240, 240))
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")


def small_files():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, resource.RLIM_INFINITY))


@posix
def test_a_full_disk_fails_the_job_and_not_the_server(tmp_path):
    """A bound on the size of files makes every longer write fail as on a full disk."""
    (tmp_path / "slides").mkdir()
    ihc = IhcProject(tmp_path / "slides")
    server = LiveServer(
        tmp_path / "state", roots=(IMAGES, tmp_path / "slides"), preexec_fn=small_files
    )
    try:
        image = server.open()
        failed = server.wait(server.segment(image, REGION))
        assert failed["state"] == "failed"
        assert failed["error"]["code"] == "disk_full"
        assert "space" in failed["error"]["remedy"]
        assert list((tmp_path / "state" / "results").iterdir()) == []
        few = regions(rectangle(200, 200, 20, 20))
        assert server.wait(server.segment(image, few))["state"] == "done"
        record = {"project": str(ihc.path), "entry": "1"}
        failed = server.wait(server.segment(image, few, record=record))
        assert failed["error"]["code"] == "disk_full"
        assert run_ids(ihc.path) == [failed["run"]]
        assert open_run(ihc.path, failed["run"]).manifest.entry("1").state == "failed"
        assert server.get("/v1/health").json["state"] == "ready"
    finally:
        server.end()


def mounting(folder, size):
    """Words before a command that give it a disk of its own of so many bytes."""
    mount = f'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    for unshare in (("unshare", "-Urm"), ("unshare", "-m")):
        words = [*unshare, "sh", "-c", mount, str(folder)]
        if shutil.which("unshare") and not subprocess.run([*words, "true"]).returncode:
            return words
    pytest.skip("this machine lets no program have a disk of its own (unshare)")


@posix
def test_a_disk_without_room_fails_the_job_and_not_the_server(tmp_path):
    results = tmp_path / "state" / "results"
    results.mkdir(parents=True)
    results.parent.chmod(0o700)
    server = LiveServer(results.parent, wrapper=mounting(results, 8192))
    try:
        image = server.open()
        failed = server.wait(server.segment(image))
        assert failed["state"] == "failed"
        assert failed["error"]["code"] == "disk_full"
        few = server.segment(image, regions(rectangle(200, 200, 20, 20)))
        assert server.wait(few)["state"] == "done"
        assert server.get(f"/v1/jobs/{few}/result").status == 200
        assert server.get("/v1/health").json["state"] == "ready"
    finally:
        server.end()


class Exhausting:
    """The bundled model on a device that has too little memory."""

    def __init__(self, model):
        self.info, self.device = model.info, model.device

    def predict(self, tiles):
        import torch

        return torch.empty(1 << 55).numpy()


def test_too_little_memory_fails_the_job_and_drops_what_is_cached(tmp_path, bundled_model):
    (tmp_path / "results").mkdir()
    server = Server(Settings((IMAGES,), tmp_path / "results"), WarmModel("cpu", "bundled"))
    try:
        image = server.images.open_file(IHC, mpp=(MPP, MPP))
        request = SegmentJob.model_validate(
            {"kind": "segment", "image": image.id, "regions": REGION}
        )

        def outcome(model):
            server.warm._model, server.warm.state = model, "ready"
            job = server.jobs.submit(segment_job(request, server.bench))
            until = time.monotonic() + 100
            while not job.ended and time.monotonic() < until:
                time.sleep(0.02)
            return job

        server.prompts._sessions["held", ""] = None
        failed = outcome(Exhausting(bundled_model))
        assert failed.state == "failed"
        assert failed.error.code == "out_of_memory"
        assert "smaller model" in failed.error.remedy
        assert not server.prompts._sessions
        assert outcome(bundled_model).state == "done"
    finally:
        server.close()


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_ended_mid_job_leaves_the_next_a_clean_start(tmp_path, large, number):
    server = LiveServer(tmp_path / "state", roots=(large.parent,))
    job = server.segment(server.open(large))
    while server.get(f"/v1/jobs/{job}").json["progress"]["tiles_done"] == 0:
        time.sleep(0.1)
    began = time.monotonic()
    code = server.end(number)
    if number == signal.SIGTERM:
        assert code == 0
        assert time.monotonic() - began < 20
        assert read_state(server.folder) is None
        assert "Traceback" not in (tmp_path / "state.log").read_text()
    again = LiveServer(tmp_path / "state", roots=(large.parent,), wait_for_model=False)
    try:
        assert again.get("/v1/jobs").json["jobs"] == []
        assert list((tmp_path / "state" / "results").iterdir()) == []
    finally:
        again.end()


def test_old_results_make_room(tmp_path):
    from pathosam_qupath.server.limits import Limits
    from pathosam_qupath.server.problems import ProblemError
    from pathosam_qupath.server.results import Results

    results = Results(tmp_path, Limits(results=2))
    for name in ("a", "b", "c"):
        results.path(name).write_bytes(b"x")
        results.keep(name)
    with pytest.raises(ProblemError) as gone:
        results.find("a")
    assert gone.value.status == 410
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["b", "c"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_lack_of_room_is_seen_through_wrapping(number):
    wrapped = ProjectError("file", "cannot be written", "Check.")
    wrapped.__cause__ = OSError(number, "full", "/x")
    assert as_problem(wrapped).code == "disk_full"
    assert as_problem(ProjectError("file", "is none", "Check.")).code == "project"


def test_a_model_that_cannot_be_loaded_is_told_by_health(tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"nothing")
    server = LiveServer(tmp_path / "state", "--model", weights, wait_for_model=False)
    try:
        health = server.wait_for_model()
        assert health["state"] == "failed"
        assert all(health["error"].values())
        answer = server.post("/v1/jobs", {"kind": "segment", "image": server.open()})
        assert answer.code == "model_failed"
        assert server.post("/v1/model", {"name": "bundled"}).status == 202
        assert server.wait_for_model()["state"] == "ready"
    finally:
        server.end()
