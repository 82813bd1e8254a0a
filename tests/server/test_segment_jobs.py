import gzip
import json
import shutil
import socket
import threading
import time

import pytest
from ihc_project import IhcProject
from live_server import REGION, rectangle, regions

from pathosam_qupath.corrections.withdrawn import read_withdrawn
from pathosam_qupath.qupath.geojson import read_geojson
from pathosam_qupath.run_record import open_run, run_ids

WHOLE = rectangle(120, 120, 240, 240)


def test_nuclei_come_back_as_qupath_reads_them(live, tmp_path):
    inner = "0b9c6a52-3c1f-4e64-9b53-3a3a0d8a2f10"
    job = live.segment(
        live.open(), regions(WHOLE, rectangle(150, 150, 100, 100, inner, name="core"))
    )
    done = live.wait(job)
    assert done["state"] == "done"
    assert done["error"] is None
    assert done["progress"]["tiles_done"] == done["progress"]["tiles_total"] > 0
    answer = live.get(f"/v1/jobs/{job}/result", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-type"] == "application/geo+json"
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.body) == done["result"]["bytes"]
    path = tmp_path / "nuclei.geojson.gz"
    path.write_bytes(answer.body)
    read = read_geojson(path)
    assert len(read.objects) == done["result"]["features"] == done["progress"]["nuclei"] > 10
    assert len({item.id for item in read.objects}) == len(read.objects)
    assert {item.object_type for item in read.objects} == {"detection"}
    assert {item.run for item in read.objects} == {done["run"]}
    assert all(item.measurements["Area µm^2"] > 0 for item in read.objects)
    counts = done["result"]["classes"]
    assert sum(counts.values()) == len(read.objects)
    assert set(counts) <= set(read.class_colors)
    for feature in json.loads(gzip.decompress(answer.body))["features"]:
        ring = feature["geometry"]["coordinates"][0]
        x = sum(p[0] for p in ring[:-1]) / (len(ring) - 1)
        y = sum(p[1] for p in ring[:-1]) / (len(ring) - 1)
        deep = 160 < x < 240 and 160 < y < 240
        outside = not (140 < x < 260 and 140 < y < 260)
        parent = feature["properties"]["parent"]
        assert parent == inner if deep else True
        assert parent == REGION if outside else parent in (REGION, inner)
        assert 0 <= feature["properties"]["probability"] <= 1


def test_the_result_is_plain_for_who_cannot_unpack_it(live):
    job = live.segment(live.open(), regions(WHOLE))
    live.wait(job)
    packed = live.get(f"/v1/jobs/{job}/result", headers={"Accept-Encoding": "gzip"})
    plain = live.get(f"/v1/jobs/{job}/result")
    assert "content-encoding" not in plain.headers
    assert plain.body == gzip.decompress(packed.body)


def test_classes_are_called_as_the_client_wants(live):
    found = []
    for connective in ("Stroma", False):
        names = {"Epithelial": "Tumor", "Inflammatory": "Tumor", "Connective": connective}
        job = live.segment(live.open(), regions(WHOLE), options={"classes": names})
        found.append(set(live.wait(job)["result"]["classes"]))
    assert {"Stroma"} <= found[0] <= {"Stroma", "Tumor"}
    assert found[1] <= {"Tumor"}
    wrong = live.segment(live.open(), regions(WHOLE), options={"classes": {"Mitosis": "x"}})
    failed = live.wait(wrong)
    assert failed["state"] == "failed"
    assert "Epithelial" in failed["error"]["remedy"]


def test_thresholds_are_heard(live):
    count = [
        live.wait(live.segment(live.open(), regions(WHOLE), options=options))["result"]["features"]
        for options in ({}, {"min_size": 300}, {"foreground_threshold": 0.95})
    ]
    assert count[0] > count[1]
    assert count[0] > count[2]


def test_ignored_areas_are_cut_out(live):
    ignored = rectangle(100, 100, 300, 200, None, classification={"name": "Ignore*"})
    job = live.segment(live.open(), regions(WHOLE, ignored))
    assert live.wait(job)["state"] == "done"
    for feature in live.features(job):
        assert max(y for _, y in feature["geometry"]["coordinates"][0]) > 300


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"regions": regions(rectangle(5000, 5000, 10, 10))}, 422),
        ({"regions": regions(rectangle(10, 10, 0, 0))}, 422),
        ({"regions": regions()}, 422),
        ({"regions": {"type": "FeatureCollection"}}, 422),
        ({"image": "img-0"}, 404),
        ({"image": "../../etc"}, 404),
        ({"options": {"mode": "amg"}}, 422),
        ({"options": {"foreground_threshold": 2}}, 422),
        ({"options": {"weights": "http://evil.example/x.pt"}}, 422),
        ({"model": "/tmp/x.pt"}, 422),
        ({"kind": "shell"}, 422),
    ],
)
def test_requests_that_cannot_be_met_say_why(live, change, status):
    request = {"kind": "segment", "image": live.open(), "regions": regions(WHOLE), **change}
    answer = live.post("/v1/jobs", request)
    assert answer.status == status
    assert all(answer.json["error"].values())


def test_too_many_vertices_are_refused(live):
    ring = [[float(i % 500), float(i // 500)] for i in range(100_001)]
    feature = {**WHOLE, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    answer = live.post(
        "/v1/jobs", {"kind": "segment", "image": live.open(), "regions": regions(feature)}
    )
    assert answer.status == 413
    assert "vertices" in answer.json["error"]["cause"]


def test_outlines_that_cross_themselves_are_treated(live):
    bow = {
        **WHOLE,
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[100, 100], [400, 400], [400, 100], [100, 400], [100, 100]]],
        },
    }
    assert live.wait(live.segment(live.open(), regions(bow)))["result"]["features"] > 0


def test_a_job_is_cancelled_within_a_second(live, large):
    image = live.open(large)
    job = live.segment(image)
    running = live.get(f"/v1/jobs/{job}").json
    while running["progress"]["tiles_done"] == 0:
        assert running["state"] in ("queued", "running")
        running = live.get(f"/v1/jobs/{job}?wait=10&seen={running['progress']['change']}").json
    assert running["state"] == "running"
    assert running["progress"]["eta_seconds"] > 0
    waiting = live.segment(image)
    assert live.ask("DELETE", f"/v1/jobs/{waiting}").json["state"] == "cancelled"
    live.ask("DELETE", f"/v1/jobs/{job}")
    ended = live.wait(job)
    assert ended["state"] == "cancelled"
    assert 0 < ended["progress"]["tiles_done"] < ended["progress"]["tiles_total"]
    assert live.ask("DELETE", f"/v1/jobs/{job}").json["state"] == "cancelled"
    assert live.get(f"/v1/jobs/{job}/result").code == "no_result"
    # The device is free again, and an image may go while its job is remembered.
    assert live.wait(live.segment(live.open(), regions(WHOLE)))["state"] == "done"


def test_progress_only_goes_forward(live, large):
    job = live.segment(live.open(large), regions(rectangle(0, 0, 900, 700)))
    seen, looks = 0, []
    while True:
        found = live.get(f"/v1/jobs/{job}?wait=10&seen={seen}").json
        looks.append(found)
        seen = found["progress"]["change"]
        if found["state"] not in ("queued", "running"):
            break
    tiles = [look["progress"]["tiles_done"] for look in looks]
    assert tiles == sorted(tiles)
    assert len(set(tiles)) > 3
    assert looks[-1]["progress"]["fraction"] == 1
    early = live.get(f"/v1/jobs/{job}/picture")
    deadline = time.monotonic() + 20
    while early.status == 404 and time.monotonic() < deadline:
        time.sleep(0.1)
        early = live.get(f"/v1/jobs/{job}/picture")
    assert early.headers["content-type"] == "image/png"


def test_a_result_is_not_there_before_its_time(live, large):
    job = live.segment(live.open(large))
    assert live.get(f"/v1/jobs/{job}/result").code == "not_finished"
    live.ask("DELETE", f"/v1/jobs/{job}")
    assert live.get("/v1/jobs/job-none/result").code == "not_found"
    live.wait(job)


def test_a_client_that_vanishes_leaves_its_job_in_a_clear_state(live, large):
    image = live.open(large)
    job = live.segment(image, regions(rectangle(0, 0, 600, 400)))
    host, _, port = live.host.partition(":")
    for path in (f"/v1/jobs/{job}?wait=30", "/v1/jobs", f"/v1/jobs/{job}/result"):
        gone = socket.create_connection((host, int(port)))
        gone.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {live.host}\r\n"
            f"Authorization: Bearer {live.state['token']}\r\n\r\n".encode()
        )
        gone.close()
    half = socket.create_connection((host, int(port)))
    half.sendall(
        f"POST /v1/jobs HTTP/1.1\r\nHost: {live.host}\r\nContent-Length: 1000\r\n"
        f"Authorization: Bearer {live.state['token']}\r\n\r\n{{".encode()
    )
    half.close()
    assert live.wait(job)["state"] == "done"
    assert len(live.features(job)) > 0
    assert "Traceback" not in live.said()


def test_eight_clients_at_once(live):
    ended = []

    def client(number):
        image = live.open()
        for _ in range(2):
            job = live.segment(image, regions(rectangle(50 * number, 100, 120, 120)))
            if number % 4 == 3:
                live.ask("DELETE", f"/v1/jobs/{job}")
            ended.append(live.wait(job)["state"])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert len(ended) == 16
    assert set(ended) <= {"done", "cancelled"}
    assert ended.count("done") >= 12


def test_a_project_remembers_the_run_of_its_open_image(live, slides, command):
    folder = slides / "project"
    folder.mkdir()
    ihc = IhcProject(folder)
    job = live.segment(live.open(), regions(WHOLE), record={"project": str(ihc.path), "entry": "1"})
    done = live.wait(job)
    assert done["recorded"] is True
    assert run_ids(ihc.path) == [done["run"]]
    record = open_run(ihc.path, done["run"])
    kept = record.load_predictions("1")
    sent = {f["id"]: f for f in live.features(job)}
    assert set(kept["id"]) == set(sent)
    model = live.get("/v1/health").json["model"]
    assert record.manifest.model["weights_hash"] == model["weights_hash"]
    assert record.manifest.finished is not None
    entry = record.manifest.entry("1")
    assert (entry.state, entry.nuclei) == ("predicted", len(sent))
    assert set(record.manifest.class_colors) == set(done["result"]["classes"])

    number, name = kept["id"][0], kept["classification"][0]
    features = [
        {
            **sent[i],
            "properties": {"run": done["run"], "classification": c, "name": None, "locked": False},
        }
        for i, c in zip(kept["id"], kept["classification"], strict=True)
    ]
    features[1]["properties"]["classification"] = "Other"
    features[2]["properties"]["locked"] = True
    features[3]["geometry"]["coordinates"][0] = [
        [x + 3, y] for x, y in features[3]["geometry"]["coordinates"][0]
    ]
    features[4]["properties"]["run"] = "20200101-000000-0000"
    features[5]["properties"]["children"] = True
    answer = live.post(
        "/v1/untouched",
        {"project": str(ihc.path), "entry": "1", "objects": regions(*features)},
    )
    assert answer.status == 200
    assert name is not None
    assert set(answer.json["untouched"]) == {number, *kept["id"][6:]}

    taken = {"project": str(ihc.path), "entry": "1", "ids": [kept["id"][0]], "undone": False}
    route = f"/v1/runs/{done['run']}/withdrawn"
    assert live.post(route, taken).status == 204
    assert read_withdrawn(record, "1").ids == {kept["id"][0]}
    assert live.post(route, {**taken, "entry": "9"}).status == 404
    assert live.post("/v1/runs/20200101-000000-0000/withdrawn", taken).status == 404
    assert live.post("/v1/runs/..%2Fx/withdrawn", taken).status in (404, 422)
    assert live.post(route, {**taken, "project": "/etc"}).code == "outside_roots"
    assert live.post(route, {**taken, "ids": ["x"]}).status == 422

    code, out, _ = command("rollback", *ihc.words, "--run", "last", "--json")
    assert code == 0
    assert json.loads(out)[0]["action"] == "nothing"  # QuPath never saved the nuclei
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("project", "entry", "why"),
    [("{}/rois", "99", "no image with id"), ("/etc", "1", "outside"), ("{}", "1", "recorded")],
)
def test_a_project_that_cannot_remember_costs_no_nuclei(
    live, slides, tmp_path, project, entry, why
):
    folder = slides / tmp_path.name
    folder.mkdir()
    IhcProject(folder)
    record = {"project": project.format(folder), "entry": entry}
    done = live.wait(live.segment(live.open(), regions(WHOLE), record=record))
    assert done["state"] == "done"
    assert done["recorded"] is False
    assert why in done["note"]
    assert done["result"]["features"] > 0


def test_models_are_chosen_by_name_only(live, tmp_path):
    weights = tmp_path / "evil.pt"
    weights.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for name in (str(weights), "http://evil.example/x.pt", "../bundled", "vit_t_lm", "", "BUNDLED"):
        answer = live.post("/v1/model", {"name": name})
        assert answer.status in (404, 422)
    assert live.get("/v1/health").json["model"]["name"] == "bundled"
    names = [model["name"] for model in live.get("/v1/models").json]
    assert "bundled" in names
    loading = live.post("/v1/model", {"name": "bundled"})
    assert loading.status == 202
    assert live.wait_for_model()["state"] == "ready"


def test_a_prompt_is_answered_or_refused_with_a_remedy(live):
    image = live.open()
    request = {"image": image, "prompts": [{"points": [[256, 256]]}]}
    answer = live.post("/v1/prompt", request)
    if not live.get("/v1/health").json["model"]["prompts"]:
        assert answer.status == 409
        assert answer.code == "no_prompts"
        assert "PathoSAM" in answer.json["error"]["remedy"]
    else:
        assert answer.status == 200
        assert len(answer.json["features"]) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"points": [[1]]},
        {"points": [[1, 2]], "labels": [1, 1]},
        {"points": [[1, 2]], "labels": [2]},
        {"box": [10, 10, 5, 5]},
        {"box": [1, 2, 3]},
        {"points": [[float("nan"), 1]]},
        {"mask": "/tmp/x.npy"},
    ],
)
def test_prompts_that_say_nothing_are_refused(live, prompt):
    answer = live.post("/v1/prompt", {"image": live.open(), "prompts": [prompt]})
    assert answer.status in (400, 422)


def test_geometries_of_prompts_are_bounded(live):
    ring = [[float(i % 500), float(i // 500)] for i in range(100_001)]
    prompt = {"geometry": {"type": "Polygon", "coordinates": [ring]}}
    answer = live.post("/v1/prompt", {"image": live.open(), "prompts": [prompt]})
    assert answer.status == 413
    many = {"points": [[1, 2]] * 1001}
    assert live.post("/v1/prompt", {"image": live.open(), "prompts": [many]}).status == 422
    wide = {"box": [0, 0, 1e9, 1e9]}
    assert live.post("/v1/prompt", {"image": live.open(), "prompts": [wide]}).status == 422


def test_an_image_that_is_closed_stays_open_for_the_jobs_that_wait(live, large):
    before = live.segment(live.open(large))
    image = live.open(mpp=0.55)
    job = live.segment(image, regions(WHOLE))
    assert live.ask("DELETE", f"/v1/images/{image}").status == 204
    assert live.post("/v1/jobs", {"kind": "segment", "image": image}).code == "not_found"
    live.ask("DELETE", f"/v1/jobs/{before}")
    done = live.wait(job)
    assert done["state"] == "done", done["error"]
    assert done["result"]["features"] > 0


def test_prompts_are_counted(live):
    many = [{"points": [[1, 2]]}] * 1001
    assert live.post("/v1/prompt", {"image": live.open(), "prompts": many}).status == 422
