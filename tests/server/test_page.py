import shutil
import subprocess
import time

import pytest
from live_server import rectangle, regions

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found; on Debian: apt install chromium"
)


def chromium(tmp_path, url, *words):
    """Open a page as a person's browser does; what it wrote to stdout.

    Chromium's virtual time now and then never ends on a page that keeps a request open, so it
    is started anew when it takes too long.
    """
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"]
    command += ["--disable-dev-shm-usage", "--virtual-time-budget=6000", *words, url]
    for attempt in range(4):
        profile = f"--user-data-dir={tmp_path / f'profile{attempt}'}"
        try:
            return subprocess.run(
                [*command, profile], capture_output=True, text=True, timeout=45
            ).stdout
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"Chromium did not end four times in a row: {' '.join(command)}")


def finished(live):
    job = live.segment(live.open(), regions(rectangle(120, 120, 240, 240)))
    done = live.wait(job)
    until = time.monotonic() + 30
    while not live.get(f"/v1/jobs/{job}").json["picture"] and time.monotonic() < until:
        time.sleep(0.1)
    return done


@browser
def test_the_page_shows_jobs_the_model_and_pictures(live, tmp_path):
    done = finished(live)
    page = (live.folder / "page.html").as_uri()
    shown = chromium(tmp_path, page, "--dump-dom")
    assert '<span id="state" class="pill ready">ready</span>' in shown
    assert "Epithelial" in shown
    assert f'id="{done["id"]}"' in shown
    assert f"{done['result']['features']} nuclei" in shown
    assert f"/v1/jobs/{done['id']}/picture" in shown
    assert live.state["token"] not in shown
    picture = tmp_path / "page.png"
    chromium(tmp_path, page, f"--screenshot={picture}")
    assert picture.stat().st_size > 20_000


@browser
def test_a_stranger_sees_how_to_get_in(live, tmp_path):
    shown = chromium(tmp_path, live.state["url"] + "/", "--dump-dom")
    assert "page.html" in shown
    assert "Epithelial" not in shown


def test_the_documentation_shows_routes_and_examples(live):
    shown = live.get("/docs").body.decode()
    assert "/v1/images/pixels" in shown
    assert "&quot;annotations&quot;: [" in shown
    assert "<script" not in shown
