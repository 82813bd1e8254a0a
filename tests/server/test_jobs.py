import threading

import pytest

from pathosam_qupath.server.job import Job, new_job_id
from pathosam_qupath.server.jobs import Jobs
from pathosam_qupath.server.limits import Limits
from pathosam_qupath.server.problems import ProblemError


@pytest.fixture
def jobs():
    made = []

    def make(**limits):
        made.append(Jobs(Limits(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def job(work, about="image", lane="device"):
    return Job(new_job_id(), "segment", lane, about, about, work)


def wait_for(state, one):
    ended = threading.Event()
    for _ in range(1000):
        if one.state == state:
            return
        ended.wait(0.01)
    raise AssertionError(f"{one.state}, not {state}")


def test_turns_go_round_by_what_jobs_are_about(jobs):
    queue, go, order = jobs(), threading.Event(), []
    gate = queue.submit(job(lambda j: go.wait(10) and None, "gate"))
    wait_for("running", gate)
    waiting = [
        queue.submit(job(lambda j: order.append(j.about), about)) for about in ("a", "a", "a", "b")
    ]
    assert [queue.position(one) for one in waiting] == [1, 3, 4, 2]
    go.set()
    for one in waiting:
        wait_for("done", one)
    assert order == ["a", "b", "a", "a"]


def test_a_run_over_a_project_does_not_hold_up_an_open_image(jobs):
    queue, go = jobs(), threading.Event()
    long = queue.submit(job(lambda j: go.wait(10) and None, "project", "project"))
    wait_for("running", long)
    wait_for("done", queue.submit(job(lambda j: {"features": 1})))
    assert long.state == "running"
    go.set()
    wait_for("done", long)


def test_what_waits_is_bounded(jobs):
    queue, go = jobs(queued_jobs=3), threading.Event()
    gate = queue.submit(job(lambda j: go.wait(10) and None))
    wait_for("running", gate)
    waiting = [queue.submit(job(lambda j: None)) for _ in range(3)]
    with pytest.raises(ProblemError) as refused:
        queue.submit(job(lambda j: None))
    assert refused.value.status == 429
    queue.cancel(waiting[0])
    queue.submit(job(lambda j: None))
    go.set()


def test_ended_jobs_are_forgotten_in_time():
    gone = []
    queue = Jobs(Limits(ended_jobs=2), forgotten=gone.append)
    try:
        submitted = []
        for _ in range(4):
            submitted.append(queue.submit(job(lambda j: None)))
            wait_for("done", submitted[-1])
        assert gone == submitted[:2]
        with pytest.raises(ProblemError):
            queue.get(submitted[0].id)
    finally:
        queue.close()


def test_an_error_that_nobody_foresaw_ends_one_job_only(jobs):
    queue = jobs()

    def broken(one):
        raise ZeroDivisionError("oh")

    failed = queue.submit(job(broken))
    wait_for("failed", failed)
    assert failed.error.code == "unexpected"
    wait_for("done", queue.submit(job(lambda j: None)))


def test_closing_ends_what_runs_and_what_waits(jobs):
    queue, looks = jobs(), threading.Event()

    def patient(one):
        looks.set()
        while True:
            one.cancelled.wait(10)
            queue.update(one, stage="still there")

    running = queue.submit(job(patient))
    waiting = queue.submit(job(lambda j: None))
    looks.wait(10)
    queue.close()
    assert (running.state, waiting.state) == ("cancelled", "cancelled")
    with pytest.raises(ProblemError) as refused:
        queue.submit(job(lambda j: None))
    assert refused.value.code == "stopping"
