"""A plan tells tiles, time and disk before anything is done."""

from cheap_model import CheapModel, treat
from ihc_project import IMAGE, MPP

from pathosam_qupath.estimates import calibrated_rate, earlier_rate, estimate
from pathosam_qupath.run_plan import RunOptions, plan_run
from pathosam_qupath.tables import plan_text


def planned(ihc, **options):
    with ihc.open() as project:
        return plan_run(project, RunOptions(**{"images": (IMAGE,), "mpp": MPP, **options}))


def test_tiles_are_counted_as_the_run_will_see_them_and_time_follows_an_earlier_run(ihc):
    assert earlier_rate(ihc.path, "cheap") is None
    [done] = treat(ihc.path, ihc.moved).manifest.entries
    rate = earlier_rate(ihc.path, "cheap", "cpu")
    assert rate.info == CheapModel().info
    [expected] = estimate(planned(ihc), rate)
    assert expected.tiles == done.tiles
    assert abs(expected.seconds - done.seconds) < 1e-6
    assert earlier_rate(ihc.path, "cheap", "cuda") is None
    assert earlier_rate(ihc.path, "another") is None


def test_a_trial_stands_in_where_there_was_no_run(ihc):
    rate = calibrated_rate(CheapModel(seconds=0.1))
    assert 0.02 < rate.seconds < 5
    plans = planned(ihc, images=())
    found = estimate(plans, rate)
    assert [e.tiles is None for e in found] == [p.error is not None for p in plans]
    said = plan_text(found)
    assert said.startswith("1 of 5 images")
    assert "estimated from a short trial" in said
    assert found[0].disk >= 2 * ihc.data.stat().st_size


def test_without_a_rate_only_area_and_disk_are_told(ihc):
    [found] = estimate(planned(ihc), None)
    assert (found.tiles, found.seconds) == (None, None)
    assert found.summary()["area"] > 0
    assert "tiles" not in plan_text([found])
