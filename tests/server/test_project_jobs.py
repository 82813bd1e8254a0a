import time
from dataclasses import replace
from uuid import uuid4

import pytest
from ihc_project import IhcProject

from pathosam_qupath.qupath.project import HierarchyChange
from pathosam_qupath.run_record import open_run, run_ids


@pytest.fixture
def project(slides, tmp_path):
    """A project whose image is found beside it."""
    folder = slides / tmp_path.name
    folder.mkdir()
    ihc = IhcProject(folder)
    path = ihc.path / "project.qpproj"
    stored = path.read_text().replace("/slides/fixtures/0.6.0", str(folder))
    path.write_text(stored)
    return ihc


def submit(live, **request):
    answer = live.post("/v1/jobs", request)
    assert answer.status == 202, answer.body
    return answer.json["id"]


def test_a_project_is_segmented_and_the_run_undone(live, project):
    before = project.data.read_bytes()
    words = {"images": ["ihc.png"], "annotations": ["all"], "mpp": 0.6}
    classes = dict.fromkeys(("Epithelial", "Inflammatory", "Connective"), "Tumor")
    job = submit(live, kind="project", project=str(project.path), classes=classes, **words)
    done = live.wait(job)
    assert done["state"] == "done", done
    assert done["result"]["entries"][0]["state"] == "written"
    assert live.get(f"/v1/jobs/{job}/result").json == done["result"]
    assert run_ids(project.path) == [done["run"]]
    assert "Tumor" in open_run(project.path, "last").manifest.class_colors
    assert project.data.read_bytes() != before

    undone = live.wait(submit(live, kind="rollback", project=str(project.path), run="last"))
    assert undone["state"] == "done", undone
    assert undone["result"][0]["action"] == "restored"
    assert project.data.read_bytes() == before

    again = live.wait(submit(live, kind="rollback", project=str(project.path), run="last"))
    assert again["state"] == "failed"
    assert "undone already" in again["error"]["cause"]


def test_the_loop_of_corrections_says_how_far_it_is(live, project):
    words = {"images": ["ihc.png"], "annotations": ["all"], "mpp": 0.6}
    assert live.wait(submit(live, kind="project", project=str(project.path), **words))["run"]

    before = {str(o.id) for o in project.objects()}
    job = submit(live, kind="suggest", project=str(project.path), count=2)
    stages, done = watched(live, job)
    assert done["state"] == "done", done
    suggested = {s["annotation"] for s in done["result"]["suggestions"]}
    assert {str(o.id) for o in project.objects()} - before == suggested
    assert len(suggested) == 2

    job = submit(live, kind="rerun", project=str(project.path))
    _, done = watched(live, job)
    assert done["state"] == "done", done
    assert done["result"]["changes"][0]["changed"] == 0  # the same model
    assert done["run"] is None

    learn = {"kind": "finetune", "project": str(project.path), "name": "from-here"}
    stages, done = watched(live, submit(live, **learn))
    assert done["state"] == "failed"  # nothing was reviewed
    assert "reviewed" in done["error"]["remedy"]
    for one in project.objects():
        if str(one.id) in suggested:
            project.change(
                HierarchyChange(annotations=(replace(one, id=uuid4(), name="reviewed"),))
            )
    stages, done = watched(live, submit(live, **learn))
    assert done["result"]["name"] == "from-here", done
    assert any(stage.startswith("step ") for stage in stages)


def watched(live, job):
    """The stages of a job until it ends, and its last state."""
    stages, seen = set(), 0
    while True:
        now = live.get(f"/v1/jobs/{job}?wait=10&seen={seen}").json
        seen = now["progress"]["change"]
        stages.add(now["progress"]["stage"])
        if now["state"] not in ("queued", "running"):
            return stages, now


def test_a_command_is_cancelled(live, project):
    job = submit(
        live,
        kind="project",
        project=str(project.path),
        images=["ihc.png"],
        mpp=0.05,
        whole_image=True,
    )
    while live.get(f"/v1/jobs/{job}").json["state"] == "queued":
        time.sleep(0.05)
    time.sleep(1)
    live.ask("DELETE", f"/v1/jobs/{job}")
    assert live.wait(job)["state"] == "cancelled"


def test_a_project_that_is_a_link_out_of_the_roots_is_refused(live, project, slides):
    outside = slides.parent / "forbidden" / "project"
    project.path.rename(outside)
    linked = slides / "linked"
    linked.mkdir()
    (linked / "project.qpproj").symlink_to(outside / "project.qpproj")
    for path in (linked, linked / "project.qpproj", outside):
        for more in ({"kind": "project"}, {"kind": "rollback", "run": "last"}, {"kind": "collect"}):
            assert live.post("/v1/jobs", {"project": str(path), **more}).code == "outside_roots"
        nothing = {"type": "FeatureCollection", "features": []}
        asked = {"project": str(path), "entry": "1", "objects": nothing}
        assert live.post("/v1/untouched", asked).code == "outside_roots"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"project": "/etc"}, 403),
        ({"project": "{}/nothing"}, 422),
        ({"model": "/tmp/evil.pt"}, 404),
        ({"model": "--help"}, 404),
        ({"kind": "rollback", "run": "--help"}, 422),
        ({"kind": "finetune", "name": "../../x"}, 422),
        ({"out": "/tmp"}, 422),
    ],
)
def test_commands_get_nothing_but_what_they_may(live, project, change, status):
    request = {"kind": "project", "project": str(project.path), **change}
    request["project"] = request["project"].format(project.path)
    if request["kind"] == "finetune":
        request.pop("images", None)
    assert live.post("/v1/jobs", request).status == status


def test_words_that_look_like_options_stay_values(live, project):
    job = submit(live, kind="project", project=str(project.path), images=["--dry-run"])
    failed = live.wait(job)
    assert failed["state"] == "failed"
    assert "--dry-run" in failed["error"]["subject"]
    assert run_ids(project.path) == []
