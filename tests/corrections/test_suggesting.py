"""Regions to review are written as annotations, beside everything that is there."""

import json

import shapely
from recorded_project import record_run

from pathosam_qupath.corrections.suggesting import FIELD, REVIEW, field_windows


def state(ihc):
    return {o.id: (o.classification, o.name, o.locked, o.geometry.wkb) for o in ihc.objects()}


def suggested(command, ihc, *words):
    code, out, _ = command(
        *["corrections", "suggest", *ihc.words, "--images", "ihc.png", "--device", "cpu"],
        *[*words, "--json"],
    )
    return code, json.loads(out)


def test_suggestions_are_added_and_nothing_else_changes(ihc, command):
    record_run(ihc)
    before = state(ihc)
    code, report = suggested(command, ihc, "-n", 3)
    assert code == 0
    after = state(ihc)
    new = {str(i): after[i] for i in after.keys() - before.keys()}
    assert {i: after[i] for i in before} == before
    assert {s["annotation"] for s in report["suggestions"]} == set(new)
    assert {(kind, locked) for kind, _, locked, _ in new.values()} == {(REVIEW, False)}
    assert {name for _, name, _, _ in new.values()} == {"review 1", "review 2", "review 3"}
    shapes = [shapely.from_wkb(wkb) for *_, wkb in new.values()]
    assert shapely.union_all(shapes).area > 0.99 * sum(s.area for s in shapes)
    scores = [s["score"] for s in report["suggestions"]]
    assert scores[0] == max(scores)
    with ihc.open() as project:
        assert REVIEW in project.classes


def test_what_was_suggested_or_reviewed_is_not_suggested_again(ihc, command):
    record_run(ihc)
    _, first = suggested(command, ihc, "-n", 2)
    _, second = suggested(command, ihc, "-n", 9)
    boxes = [shapely.box(*s["box"]) for s in (*first["suggestions"], *second["suggestions"])]
    for number, box in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert box.intersection(other).area < 0.45 * box.area
    code, said = suggested(command, ihc, "--reviewed", "all")
    assert code == 2
    assert "already" in said["error"]["cause"]


def test_a_dry_run_writes_nothing_and_the_seed_decides(ihc, command):
    record_run(ihc)
    content = ihc.data.read_bytes()
    words = ("-n", 2, "--dry-run", "--fields", 4)
    reports = [suggested(command, ihc, *words, "--seed", seed)[1] for seed in (0, 0, 1)]
    assert ihc.data.read_bytes() == content
    boxes = [[s["box"] for s in report["suggestions"]] for report in reports]
    assert boxes[0] == boxes[1] != boxes[2]
    assert reports[0]["looked_at"] == 4 < reports[0]["fields"]
    assert not reports[0]["written"]


def test_a_project_without_runs_says_so(ihc, command):
    code, said = suggested(command, ihc)
    assert code == 6
    assert "segment" in said["error"]["remedy"]


def test_fields_cover_large_parts_and_small_parts_are_fields_themselves():
    side = FIELD * 2.0
    large = field_windows(shapely.box(0, 0, 4 * side, 2 * side), (2.0, 2.0))
    assert len(large) == 8
    [small] = field_windows(shapely.box(30, 40, 130, 100), (2.0, 2.0))
    assert (small.x, small.y, small.width, small.height) == (15, 20, 50, 30)
    thin = shapely.LineString([(0, 0), (4 * side, 4 * side)]).buffer(5)
    assert field_windows(thin, (2.0, 2.0)) == []
