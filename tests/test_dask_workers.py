"""Blocks computed by two worker processes of a real cluster, as this process computes them."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import shapely
from cheap_model import CheapLoader, CheapModel
from ihc_project import FIXTURES, MPP
from PIL import Image

import pathosam_qupath
from pathosam_qupath import dask_cluster
from pathosam_qupath.block_workers import ImageBlocks, InProcess
from pathosam_qupath.dask_cluster import connected
from pathosam_qupath.dask_roster import Roster
from pathosam_qupath.dask_tasks import usable_cores
from pathosam_qupath.dask_workers import DaskWorkers
from pathosam_qupath.errors import ImageError, RunError, SchedulerError, UsageError
from pathosam_qupath.segmentation.pipeline import SegmentOptions, plan_blocks
from pathosam_qupath.slide import SlideFile

dask = pytest.importorskip("dask", reason="needs Dask; install the extra `dask`")
distributed = pytest.importorskip("distributed", reason="needs Dask; install the extra `dask`")

WAIT = 240
"""Seconds in which a process has surely started, on whatever machine."""
DASK = [sys.executable, "-m", "dask"]
TISSUE = FIXTURES / "0.6.0" / "images" / "ihc.png"
OPTIONS = SegmentOptions(seed="run/image", block=128)


@pytest.fixture(scope="module")
def client():
    """Of a cluster of two worker processes, as it may run anywhere."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
        ) as cluster,
        connected(cluster.scheduler_address, 2) as client,
    ):
        yield client


@pytest.fixture
def fresh(client):
    """The same; its workers are new after a test that loses one."""
    yield client
    client.wait_for_workers(2, timeout=WAIT)


@contextmanager
def workers(client, seconds=0.0, **changes):
    with DaskWorkers(client, CheapLoader(seconds), CheapModel().info, **changes) as found:
        yield found


@contextmanager
def image(path=TISSUE, regions=None, **changes):
    """An image of tissue, ready to be computed."""
    file = SlideFile(Path(path), mpp=MPP)
    options = dataclasses.replace(OPTIONS, **changes)
    with file.open() as slide:
        yield ImageBlocks(
            "tissue", file, plan_blocks(slide, regions, CheapModel().info, options), options
        )


def content(results):
    """Blocks by number, as bytes that say everything of them."""
    return {
        r.number: (
            r.objects.anchors.tolist(),
            shapely.to_wkb(r.objects.polygons).tolist(),
            r.objects.class_sums.tolist(),
            dict(r.quality),
        )
        for r in results
    }


@pytest.fixture(scope="module")
def expected():
    with image() as wanted:
        found = content(InProcess(CheapModel()).results(wanted))
    assert len(found) > 20
    assert sum(len(anchors) for anchors, *_ in found.values()) > 100
    return found


def test_two_workers_find_what_one_process_finds(client, expected):
    with workers(client, 0.01) as found, image() as wanted:
        assert content(found.results(wanted)) == expected
        assert len(found.computed) == 2
        assert sum(found.computed.values()) == len(expected)
        assert found.model.info == CheapModel().info
        assert found.model.device == "cpu"
        assert found.notes == ()


def test_a_trial_on_the_workers_says_how_fast_they_are_together(client):
    alone = InProcess(CheapModel(seconds=0.2)).rate()
    assert alone.source == "a short trial of the network"
    with workers(client, 0.2) as found:
        rate = found.rate()
    assert rate.source == "a short trial on the 2 workers that are there"
    assert rate.info == CheapModel().info
    cores = len(usable_cores())
    assert 0.2 / (2 * cores) < rate.seconds < 10 * 0.2  # each has its part of the cores


def sampled(dask_worker):
    """What of Dask's profiler a worker runs; in Python 3.11 it stops workers for good."""
    return [name for name in dask_worker.periodic_callbacks if name.startswith("profile")]


def test_workers_are_not_sampled_while_they_compute(lonely):
    with joining(lonely, "first"):
        assert set(*lonely.run(sampled).values()) == {"profile", "profile-cycle"}
        with workers(lonely):
            assert [*lonely.run(sampled).values()] == [[]]


def test_regions_are_the_same_too(client):
    region = shapely.box(100, 50, 300, 400)
    with workers(client) as found, image(regions=[region]) as wanted:
        one = content(found.results(wanted))
        assert one == content(InProcess(CheapModel()).results(wanted))


def test_blocks_that_are_done_are_not_computed(client, expected):
    done = set(range(5, len(expected)))
    with workers(client) as found, image() as wanted:
        again = content(found.results(wanted, done=done))
        assert again == {number: expected[number] for number in range(5)}
        assert sum(found.computed.values()) == 5


def test_tiles_that_the_next_blocks_need_too_are_kept(client):
    with workers(client) as found, image() as wanted:
        list(found.results(wanted))
        each_for_itself = sum(len(block.tiles) for block in wanted.plan.blocks)
        assert int(wanted.plan.wanted.sum()) <= found.tiles < 0.3 * each_for_itself


def test_an_image_ahead_is_computed_meanwhile(client, expected):
    with workers(client) as found, image() as one, image() as other:
        found.ahead(other)
        assert content(found.results(one)) == expected
        assert content(found.results(other)) == expected


def test_progress_grows_to_all_tiles_and_nuclei(client, expected):
    seen = []
    with workers(client, 0.02) as found, image() as wanted:
        list(found.results(wanted, progress=seen.append))
        assert seen[-1].tiles_done == seen[-1].tiles_total == int(wanted.plan.wanted.sum())
    assert [p.tiles_done for p in seen] == sorted(p.tiles_done for p in seen)
    assert seen[-1].nuclei == sum(len(anchors) for anchors, *_ in expected.values())
    assert seen[-1].seconds_network > 0


def test_asked_to_stop_workers_finish_the_blocks_at_hand(client, expected):
    some = {}
    with workers(client, 0.05) as found, image() as wanted:
        for result in found.results(wanted, stop=lambda: len(some) >= 3):
            some.update(content([result]))
        assert 3 <= len(some) < len(expected)
        assert some.items() <= expected.items()
        rest = content(found.results(wanted, done=frozenset(some)))
    assert {**some, **rest} == expected


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_worker_that_is_killed_costs_its_blocks_only(fresh, expected):
    found, notes = {}, []
    victim = next(iter(fresh.run(os.getpid).values()))
    with workers(fresh, 0.02) as computing, image() as wanted:
        for result in computing.results(wanted, tell=notes.append):
            if len(found) == 4:
                os.kill(victim, signal.SIGKILL)
            assert result.number not in found
            found.update(content([result]))
    assert found == expected


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_who_has_gone_and_come_is_told(fresh):
    roster = Roster(fresh, CheapLoader(), CheapModel().info)
    roster.begin()
    assert roster.look() == []
    address, pid = next(iter(fresh.run(os.getpid).items()))
    os.kill(pid, signal.SIGKILL)
    notes = []
    until(lambda: notes.extend(roster.look()) or any("has gone" in n for n in notes))
    assert address not in roster.addresses
    until(lambda: notes.extend(roster.look()) or any("has come" in n for n in notes))
    assert len(roster.workers) == 2


def until(happened, seconds=WAIT):
    """Wait for something that takes its time."""
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < seconds
        time.sleep(0.1)


def test_a_slide_that_workers_cannot_read_is_told_with_the_remedy(client, tmp_path, monkeypatch):
    shutil.copy(TISSUE, tmp_path / "here.png")
    monkeypatch.chdir(tmp_path)  # workers have another working folder
    with workers(client) as found, image("here.png") as wanted:
        with pytest.raises(ImageError, match=r"here\.png: worker .* cannot read it") as error:
            list(found.results(wanted))
        assert "same path" in error.value.remedy
        with image() as readable:
            assert len(list(found.results(readable))) == len(readable.plan.blocks)


def test_another_slide_under_the_same_path_is_refused(client, tmp_path, monkeypatch):
    here = Path(os.path.relpath(TISSUE, client.run(os.getcwd).popitem()[1]))
    if ".." in here.parts:
        pytest.skip("the tests run outside the repository")
    (tmp_path / here).parent.mkdir(parents=True)
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / here)
    monkeypatch.chdir(tmp_path)
    with (
        workers(client) as found,
        image(here) as wanted,
        pytest.raises(ImageError, match="another file under this path"),
    ):
        list(found.results(wanted))


def started(address, name, **environment):
    """A worker process of its own."""
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), *sys.path])
    command = [*DASK, "worker", address, "--name", name]
    return subprocess.Popen(
        [*command, "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=Path(__file__).parent,  # -m looks here first
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def joining(client, name, **environment):
    """A worker process that joins a cluster, and may be ended before the context is."""
    there = len(client.scheduler_info()["workers"])
    process = started(client.scheduler.address, name, **environment)
    try:
        client.wait_for_workers(there + 1, timeout=WAIT)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=WAIT)
        until(lambda: len(client.scheduler_info()["workers"]) == there)


def test_another_version_of_the_package_is_refused(client, tmp_path):
    """A copy of the package that differs in its version."""
    here = Path(pathosam_qupath.__file__).parent
    copy = tmp_path / here.name
    copy.mkdir()
    for path in here.iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (copy / path.name).symlink_to(path)
    text = (here / "__init__.py").read_text(encoding="utf-8")
    old = text.replace(pathosam_qupath.__version__, "0.0.1")
    (copy / "__init__.py").write_text(old, encoding="utf-8")
    roster = Roster(client, CheapLoader(), CheapModel().info)
    roster.begin()
    with joining(client, "old", PYTHONPATH=str(tmp_path)):
        with pytest.raises(SchedulerError, match=r"worker old on .*: it has version 0\.0\.1"):
            DaskWorkers(client, CheapLoader(), CheapModel().info)
        [note] = roster.look()
        assert note.startswith("worker old on")
        assert "is given nothing" in note
        assert len(roster.workers) == 2
        assert roster.look() == []


def test_other_weights_are_refused(client):
    with (
        joining(client, "other", CHEAP_WEIGHTS="1"),
        pytest.raises(SchedulerError, match=r"its weights are 1… on .*, and 0… where"),
    ):
        DaskWorkers(client, CheapLoader(), CheapModel().info)


def test_a_model_that_a_worker_cannot_load_is_told_with_the_worker(client, tmp_path):
    from pathosam_qupath.block_workers import ModelChoice

    choice = ModelChoice(tmp_path / "nowhere.pt", "cpu")
    with pytest.raises(
        SchedulerError, match=r"worker . on .* cannot load the model: .*nowhere\.pt"
    ):
        DaskWorkers(client, choice, CheapModel().info)


class Deadly:
    """A model that ends every process in which it computes."""

    def __call__(self):
        return DeadlyModel()


class DeadlyModel(CheapModel):
    def predict(self, tiles):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_blocks_that_end_every_worker_fail_their_image():
    with (
        connected("local", 1, "cpu") as client,
        DaskWorkers(client, Deadly(), CheapModel().info) as found,
        image() as wanted,
    ):
        with pytest.raises(RunError, match=r"image 'tissue': .* ended every worker") as error:
            list(found.results(wanted))
        assert "--retry-failed" in error.value.remedy


@pytest.fixture
def lonely():
    """A client of a cluster that has no workers yet."""
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def end_when_asked(dask_worker):
    """Let a worker end as soon as somebody wants a result of it."""
    dask_worker.handlers["get_data"] = lambda *_, **__: os._exit(1)


def test_a_worker_that_ends_while_its_result_is_fetched_is_not_waited_for(lonely, expected):
    with joining(lonely, "first"):
        lonely.run(end_when_asked)
        with workers(lonely, 0.02, patience=0.5) as computing, image() as wanted:
            with pytest.raises(SchedulerError, match="no worker for 0 s") as error:
                list(computing.results(wanted))
            assert "it goes on from here" in error.value.remedy
    assert lonely.status == "running"
    with joining(lonely, "second"), workers(lonely) as computing, image() as wanted:
        assert content(computing.results(wanted)) == expected


def test_results_that_are_lost_with_the_only_worker_are_computed_by_the_next(lonely, expected):
    found, notes = {}, []
    with joining(lonely, "first") as first, workers(lonely, 0.02) as computing, image() as wanted:
        results = computing.results(wanted, tell=notes.append)
        found.update(content([next(results)]))
        time.sleep(1.5)  # portions are finished, and nobody fetches them
        first.kill()
        first.wait(timeout=WAIT)
        with joining(lonely, "second"):
            for result in results:
                assert result.number not in found
                found.update(content([result]))
            assert computing.computed["second"] > computing.computed["first"] > 0
    assert found == expected
    assert [note.split()[1] for note in notes] == ["first", "second"]


def test_a_scheduler_that_ends_ends_the_run(tmp_path):
    file = tmp_path / "scheduler.json"
    command = [*DASK, "scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard"]
    scheduler = subprocess.Popen(
        [*command, "--scheduler-file", str(file)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    processes = [scheduler]
    try:
        until(lambda: file.exists() and file.read_text().endswith("}"))
        processes.append(started(json.loads(file.read_text())["address"], "one"))
        with (
            connected(str(file), 1) as client,
            workers(client, 0.02) as computing,
            image() as wanted,
        ):
            results = computing.results(wanted)
            next(results)
            scheduler.kill()
            with pytest.raises(SchedulerError, match="the connection is lost"):
                list(results)
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=WAIT)


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(dask_cluster, "_ANSWER", 1.0)
    with pytest.raises(SchedulerError, match="does not answer"), connected("tcp://127.0.0.1:1"):
        pass
    missing = str(tmp_path / "missing.json")
    with pytest.raises(UsageError, match="neither `local`, nor an address"), connected(missing):
        pass


def test_too_few_workers_are_told(client):
    with (
        pytest.raises(SchedulerError, match="fewer than 7 workers came"),
        connected(client.scheduler.address, 7, wait=0.2),
    ):
        pass
