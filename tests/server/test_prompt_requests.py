"""Prompts need a model that answers them: PathoSAM in small, as the golden data have it."""

from pathlib import Path

import pytest
from live_server import LiveServer, rectangle
from shapely.geometry import Point, shape

TINY = Path(__file__).parents[1] / "data" / "golden" / "tiny_ais.pt"


@pytest.fixture(scope="module")
def prompting(tmp_path_factory):
    server = LiveServer(tmp_path_factory.mktemp("prompting") / "state", "--model", TINY)
    yield server
    server.end()


def ask(server, *prompts, **more):
    answer = server.post("/v1/prompt", {"image": server.open(), "prompts": prompts, **more})
    assert answer.status == 200, answer.body
    return answer.json


def test_health_tells_that_it_can(prompting):
    model = prompting.get("/v1/health").json["model"]
    assert model["prompts"] is True
    assert model["modes"] == ["ais", "apg"]


def test_a_second_click_there_needs_no_encoder_pass(prompting):
    first = ask(prompting, {"points": [[250, 250]]})
    assert first["encoder_passes"] >= 1
    assert first["milliseconds"] > 0
    assert ask(prompting, {"points": [[250, 250]]})["encoder_passes"] == 0


def test_one_feature_per_prompt_in_their_order(prompting):
    answer = ask(
        prompting,
        {"points": [[100, 100]]},
        {"box": [300, 300, 340, 340]},
        {"geometry": rectangle(200, 200, 30, 30)["geometry"]},
        {"points": [[100, 100], [130, 130]], "labels": [1, 0]},
    )
    assert answer["type"] == "FeatureCollection"
    assert len(answer["features"]) == 4
    seen = [f for f in answer["features"] if f["geometry"] is not None]
    assert seen
    for feature in seen:
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["metadata"] == {"PathoSAM run": "prompt"}
        assert shape(feature["geometry"]).area > 0


def test_prompts_off_the_slide_are_named(prompting):
    prompts = [{"points": [[100, 100]]}, {"points": [[9000, 9000]]}]
    answer = prompting.post("/v1/prompt", {"image": prompting.open(), "prompts": prompts})
    assert answer.status == 422
    assert answer.json["error"]["subject"] == "prompt 2"


def test_a_prompt_is_answered_while_a_job_runs(prompting):
    ask(prompting, {"points": [[250, 250]]})
    server_image = prompting.open()
    job = prompting.segment(server_image, options={"mode": "apg"})
    before = prompting.get(f"/v1/jobs/{job}").json
    answer = prompting.post(
        "/v1/prompt", {"image": server_image, "prompts": [{"points": [[250, 250]]}]}
    )
    assert answer.status == 200
    assert before["state"] in ("queued", "running")
    ended = prompting.wait(job)
    assert ended["state"] == "done"


def test_objects_lie_where_sent_pixels_lie_on_the_slide(prompting):
    from io import BytesIO

    from live_server import IHC, MPP
    from PIL import Image

    file = BytesIO()
    Image.open(IHC).convert("RGB").save(file, format="PNG")
    where = f"x=1000&y=2000&width=1024&height=1024&mpp={MPP / 2}"
    sent = prompting.ask(
        "POST",
        f"/v1/images/pixels?{where}",
        raw=file.getvalue(),
        headers={"Content-Type": "image/png"},
    )
    request = {"image": sent.json["image"], "prompts": [{"points": [[1500, 2500]]}]}
    feature = prompting.post("/v1/prompt", request).json["features"][0]
    there = ask(prompting, {"points": [[250, 250]]})["features"][0]
    assert (feature["geometry"] is None) == (there["geometry"] is None)
    if feature["geometry"] is not None:
        assert shape(feature["geometry"]).distance(Point(1500, 2500)) < 40
        area = shape(there["geometry"]).area
        assert shape(feature["geometry"]).area == pytest.approx(4 * area, rel=0.05)
