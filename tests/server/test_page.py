import io

import pytest
from browser import CHROMIUM, Browser
from live_server import LiveServer, rectangle, regions
from PIL import Image

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found; on Debian: apt install chromium"
)


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as one:
        yield one


def entered(browser, live):
    """Open the page as a person does, by the file in the state folder."""
    browser.open((live.folder / "page.html").as_uri())
    browser.wait_until("location.pathname === '/' && document.querySelector('.pill.ready')")


@needs_browser
def test_the_page_shows_jobs_the_model_and_pictures(live, browser):
    job = live.segment(live.open(), regions(rectangle(120, 120, 240, 240)))
    done = live.wait(job)
    entered(browser, live)
    picture = f"img[src='/v1/jobs/{job}/picture']"
    browser.wait_until(f'document.querySelector("{picture}")?.naturalWidth > 100')
    shown = browser.text()
    assert "Epithelial" in shown
    assert "0.25 µm/px" in shown
    assert f"{done['result']['features']} nuclei" in shown
    assert done["run"] in shown
    assert browser.evaluate(f"document.querySelector('#{job} .pill').textContent") == "done"
    assert live.state["token"] not in browser.html()
    assert browser.evaluate("location.search") == ""
    assert live.state["token"] not in browser.evaluate("document.cookie")
    shot = Image.open(io.BytesIO(browser.screenshot())).convert("L")
    assert min(shot.size) > 500
    assert len(shot.getcolors(256)) > 100
    assert browser.said == []


@needs_browser
def test_progress_is_shown_and_a_job_cancelled_with_its_button(live, large, browser):
    entered(browser, live)
    job = live.segment(live.open(large))
    browser.wait_until(f"document.querySelector('#{job} .bar > i')")
    browser.wait_until(f"/tile \\d+ of \\d+/.test(document.querySelector('#{job}').innerText)")
    assert "left" in browser.text() or "tile 0" in browser.text()
    browser.evaluate(f"document.querySelector('#{job} button').click()")
    assert live.wait(job)["state"] == "cancelled"
    browser.wait_until(f"document.querySelector('#{job} .pill.cancelled')")
    assert not browser.evaluate(f"Boolean(document.querySelector('#{job} button'))")
    assert browser.said == []


@needs_browser
def test_a_failed_job_says_what_to_do(live, browser):
    options = {"classes": {"Mitosis": "x"}}
    failed = live.wait(live.segment(live.open(), options=options))
    entered(browser, live)
    browser.wait_until(f"document.querySelector('#{failed['id']} .error')")
    assert failed["error"]["remedy"] in browser.text()


@needs_browser
def test_a_stranger_sees_how_to_get_in(live, browser):
    browser.open(live.state["url"] + "/")
    browser.wait_until("document.body?.innerText.includes('page.html')")
    assert "Epithelial" not in browser.text()


@needs_browser
def test_a_server_that_has_ended_is_missed(tmp_path, browser):
    server = LiveServer(tmp_path / "state", wait_for_model=False)
    browser.open((server.folder / "page.html").as_uri())
    browser.wait_until("document.querySelector('#state')?.textContent === 'loading'")
    hidden = "getComputedStyle(document.querySelector('#lost')).display === 'none'"
    assert browser.evaluate(hidden)
    server.end()
    browser.wait_until(f"!({hidden})")


def test_the_documentation_shows_routes_and_examples(live):
    shown = live.get("/docs").body.decode()
    assert "/v1/images/pixels" in shown
    assert "&quot;annotations&quot;: [" in shown
    assert "<script" not in shown
