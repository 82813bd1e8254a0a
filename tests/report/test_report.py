"""The report is one file that shows a run's numbers and pictures without a network."""

import re
import shutil
import subprocess
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from cheap_model import treat
from ihc_project import MPP

from pathosam_qupath.errors import UsageError
from pathosam_qupath.report.checks import checks_of, doubts
from pathosam_qupath.report.findings import Sizes
from pathosam_qupath.report.page import histogram
from pathosam_qupath.report.writing import write_report
from pathosam_qupath.run_record import EntryRecord, open_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def ihc(tmp_path_factory):
    """A project with a run whose image and annotation have names that look like markup."""
    from ihc_project import IhcProject

    ihc = IhcProject(tmp_path_factory.mktemp("report"))
    treat(ihc.path, ihc.moved)
    manifest = open_run(ihc.path, "last").folder / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace('"name": "ihc.png"', '"name": "<b>ihc</b>.png"'), "utf-8")
    return ihc


@pytest.fixture(scope="module")
def report(ihc):
    with ihc.open() as project:
        return write_report(project, "last")


def test_the_tables_count_every_nucleus_of_the_run(ihc, report):
    nuclei = open_run(ihc.path, report.run).load_predictions("1")
    by_class = pd.read_csv(next(p for p in report.tables if p.name == "report-classes.csv"))
    again = pd.read_parquet(next(p for p in report.tables if p.name == "report-classes.parquet"))
    pd.testing.assert_frame_equal(by_class, again, check_dtype=False)
    tumor = by_class[by_class["region"] == "Tumor"]
    assert tumor["share"].sum() == pytest.approx(1)
    density = tumor["nuclei"] / tumor["region mm²"]
    assert tumor["per mm²"].to_numpy() == pytest.approx(density.to_numpy())
    images = pd.read_csv(next(p for p in report.tables if p.name == "report-images.csv"))
    assert images["nuclei"].tolist() == [len(nuclei)]
    medians = nuclei.geometry.area * MPP**2
    assert by_class["median µm²"].between(medians.min(), medians.max()).all()


def test_the_page_needs_nothing_else_and_names_are_not_markup(report):
    html = report.page.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert not re.search("https?:", re.sub(r"<pre>.*</pre>", "", html, flags=re.DOTALL))
    assert "<b>ihc" not in html
    assert "&lt;b&gt;ihc&lt;/b&gt;.png" in html


def test_what_was_checked_is_shown_whether_it_raises_doubt_or_not(ihc, report, tmp_path):
    images = pd.read_csv(next(p for p in report.tables if p.name == "report-images.csv"))
    nuclei = open_run(ihc.path, report.run).load_predictions("1")
    median = float(np.median(nuclei.geometry.area * MPP**2))
    assert images["check median"].tolist() == pytest.approx([median])
    assert images["check unsure"].between(0, 1).all()
    html = report.page.read_text(encoding="utf-8")
    assert f"median nucleus at {MPP} µm/px<td class=n>{median:.3g} µm²<td class=n>16 to 110" in html
    assert "what counted as tissue" not in html  # nobody asked


def test_shares_of_cut_and_doubtful_nuclei_are_flagged_where_they_are_large():
    slide = SimpleNamespace(width=100, height=100, mpp=(0.25, 0.25))
    boxes = [shapely.box(x, 10, x + 20, 30) for x in (0, 30, 60, 80)]
    nuclei = gpd.GeoDataFrame({"probability": [0.9, 0.4, np.nan, 0.9]}, geometry=boxes)
    done = EntryRecord("1", "a", state="written", tiles=10, blank=2, blurred=1, stain=3.25)
    found = checks_of(slide, nuclei, np.full(4, 25.0), done)
    assert {check.key: check.value for check in found} == {
        "median": 25.0,
        "large": 25.0,
        "stain": 3.25,
        "cut": 0.5,
        "unsure": pytest.approx(1 / 3),
        "blurred": 0.125,
        "blank": 0.2,
        "tissue": None,
    }
    assert [check.key for check in found if check.doubtful] == ["large", "stain", "cut", "unsure"]
    assert doubts(found) == [
        "50% of the nuclei are cut by the border of the image",
        "33% of the nuclei have a class of less than 50 % probability",
    ]
    empty = checks_of(slide, nuclei[:0], np.zeros(0), EntryRecord("1", "a"))
    assert not any(check.doubtful for check in empty)


def test_the_picture_of_the_tissue_is_in_the_report_of_a_whole_image(ihc, tmp_path):
    record = treat(ihc.path, ihc.moved, options={"whole_image": True})
    assert (record.entry_folder("1") / "tissue.jpg").is_file()
    with ihc.open() as project:
        written = write_report(project, record.manifest.run, tmp_path / "whole.html")
    assert "what counted as tissue" in written.page.read_text(encoding="utf-8")
    images = pd.read_parquet(tmp_path / "whole-images.parquet")
    assert 0 < images["check tissue"].item() <= 1


def test_pictures_of_hundreds_of_images_take_no_more_room_than_those_of_some():
    def pixels(images):
        sizes = Sizes.of(images)
        return images * 2 * (sizes.whole**2 + sizes.details * sizes.detail**2)

    assert Sizes.of(1) == Sizes.of(60) == Sizes()
    assert pixels(200) < pixels(400) < pixels(60)
    assert Sizes.of(5000).whole == 480


def test_failed_images_are_in_the_report_with_their_reason(ihc, tmp_path):
    record = open_run(ihc.path, "last")
    before = record.manifest.entries[0]
    record.update(EntryRecord("1", before.name, state="failed", message="the disk <burnt>"))
    try:
        with ihc.open() as project:
            written = write_report(project, "last", tmp_path / "x.html")
    finally:
        record.update(before)
    assert "the disk &lt;burnt&gt;" in written.page.read_text(encoding="utf-8")
    assert len(pd.read_parquet(tmp_path / "x-classes.parquet")) == 0


def test_a_place_that_cannot_be_is_refused(ihc, tmp_path):
    with ihc.open() as project, pytest.raises(UsageError, match="there is no folder"):
        write_report(project, "last", tmp_path / "none" / "x.html")


def test_a_histogram_shows_every_class_and_survives_odd_areas():
    drawn = histogram(
        {"a": np.full(5, 30.0), "b": np.array([60.0])}, dict.fromkeys("ab", (1, 2, 3))
    )
    assert drawn.count("<rect") == 2
    assert "median 30 µm²" in drawn
    assert histogram({}, {}) == ""
    assert histogram({"a": np.zeros(3)}, {"a": (0, 0, 0)}).count("<rect") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found (apt install chromium)")
def test_a_browser_shows_it_without_a_complaint(report, tmp_path):
    page = tmp_path / "probe.html"
    probe = (
        "<script>addEventListener('error', e => document.title += ' ERROR ' + e.message);"
        "addEventListener('load', () => {"
        "const views = document.querySelector('.views'), figure = document.querySelector('figure');"
        "document.querySelector('input.toggle').click();"
        "const bare = views.classList.contains('bare');"
        "figure.click(); const open = figure.classList.contains('open');"
        "figure.dispatchEvent(new WheelEvent('wheel', {deltaY: -400, cancelable: true}));"
        "const zoomed = figure.firstElementChild.style.transform.includes('scale(2.7');"
        "const images = [...document.images].every(i => i.naturalWidth > 0);"
        "document.body.dataset.seen = JSON.stringify({bare, open, zoomed, images});"
        "});</script>"
    )
    html = report.page.read_text(encoding="utf-8")
    page.write_text(html.replace("<main>", probe + "<main>"), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "ERROR" not in done.stdout.split("</title>")[0]
    seen = re.search(r'data-seen="([^"]*)"', done.stdout).group(1).replace("&quot;", '"')
    assert seen == '{"bare":true,"open":true,"zoomed":true,"images":true}'
