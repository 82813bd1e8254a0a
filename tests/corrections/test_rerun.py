"""Another model's nuclei are written where they differ, and never over what was reviewed."""

import json
from dataclasses import replace
from uuid import UUID, uuid4

import numpy as np
import pytest
import shapely

from pathosam_qupath.corrections.changed_fields import (
    FEWEST,
    MARGIN,
    Labelled,
    changed_fields,
    drawn_in,
)
from pathosam_qupath.corrections.collect import CollectOptions, collect
from pathosam_qupath.corrections.rerun import find_changes, recorded_class_map, segment_changes
from pathosam_qupath.model import bundled_weights, load_model
from pathosam_qupath.model.weights import load_weights, save_weights
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.project import HierarchyChange
from pathosam_qupath.rollback import roll_back


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The bundled model with another threshold: its nuclei are smaller, and some are gone."""
    network, description = load_weights(bundled_weights()[0])
    changed = replace(description.postprocessing, foreground_threshold=0.85, min_size=150)
    path = tmp_path_factory.mktemp("model") / "other.safetensors"
    save_weights(path, network, replace(description, name="other", postprocessing=changed))
    return path


def nuclei(ihc):
    """What is to be known of each detection, by id."""
    frame = ihc.detections()
    rows = zip(frame["id"], frame["classification"], frame.geometry, frame["run"], strict=True)
    return {i: (str(c), shapely.normalize(g).wkb, run) for i, c, g, run in rows}


def test_the_same_model_changes_nothing(ihc, segment, bundled_model, command):
    segment(ihc, annotations=("all",))
    content = ihc.data.read_bytes()
    words = ["corrections", "rerun", *ihc.words, "--model", "bundled", "--device", "cpu", "--json"]
    code, out, _ = command(*words)
    report = json.loads(out)
    assert code == 0
    assert report["run"] is None
    [change] = report["changes"]
    assert change["fields"] > 0
    assert change["nuclei"] > 100
    assert (change["changed"], change["differing"]) == (0, 0)
    assert ihc.data.read_bytes() == content


def test_what_changes_is_written_and_what_was_reviewed_stays(ihc, segment, other):
    first = segment(ihc, annotations=("all",)).manifest.run
    before = nuclei(ihc)
    centres = ihc.detections().geometry.centroid
    reviewed = PathObject(
        uuid4(),
        "annotation",
        shapely.box(*centres.iloc[len(centres) // 2].buffer(60).bounds),
        "Rectangle",
        classification="PathoSAM: reviewed",
    )
    ihc.change(HierarchyChange(annotations=(reviewed,)))
    inside = {
        i
        for i, (_, wkb, _) in before.items()
        if shapely.from_wkb(wkb).centroid.within(reviewed.geometry)
    }
    assert len(inside) >= 3
    edited = next(i for i in before if i not in inside)
    row = ihc.detections().set_index("id", drop=False).loc[[edited]].reset_index(drop=True)
    ihc.change(
        HierarchyChange(remove=frozenset([UUID(edited)]), add=row.assign(classification="Mitosis"))
    )
    model = load_model(other, "cpu")
    with ihc.open() as project:
        found = find_changes(project, model)
        assert found.manifest is None
        report = segment_changes(project, model, found)
    [change] = report.changes
    assert 0 < change.changed <= change.fields
    assert report.manifest.finished is not None
    after = nuclei(ihc)
    assert {i: after[i] for i in inside} == {i: before[i] for i in inside}
    assert after[edited][0] == "Mitosis"
    new = {i for i in after if i not in before}
    assert new
    assert {after[i][2] for i in new} == {report.manifest.run}
    area = shapely.buffer(change.area, 0.01)
    assert all(shapely.from_wkb(after[i][1]).centroid.within(area) for i in new)
    with ihc.open() as project:
        [image] = collect(project, CollectOptions())
    assert image.runs == (first, report.manifest.run)
    assert {a.id: a.reviewed for a in image.annotations}[str(reviewed.id)] == "class"
    assert "deleted" not in image.counts
    assert image.counts["reclassified"] == 1
    with ihc.open() as project:
        roll_back(project, report.manifest.run)
    assert {i: v[:2] for i, v in nuclei(ihc).items() if i != edited} == {
        i: v[:2] for i, v in before.items() if i != edited
    }


def test_a_deletion_after_a_partial_run_is_still_seen(ihc, segment, other):
    segment(ihc, annotations=("all",))
    model = load_model(other, "cpu")
    with ihc.open() as project:
        found = find_changes(project, model)
        half = shapely.box(0, 0, *np.array(found.changes[0].area.bounds)[2:] / 2)
        area = shapely.intersection(found.changes[0].area, half)
        found = replace(found, changes=(replace(found.changes[0], area=area),))
        segment_changes(project, model, found)
    frame = ihc.detections()
    elsewhere = frame[~frame.geometry.centroid.within(half.buffer(5)).to_numpy()]
    gone = elsewhere["id"].iloc[:3].tolist()
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, gone))))
    with ihc.open() as project:
        [image] = collect(project, CollectOptions())
    assert set(image.nuclei["id"][(image.nuclei["kind"] == "deleted").to_numpy()]) == set(gone)


def test_a_run_over_the_whole_image_is_looked_at_where_it_saw_tissue(ihc, segment, bundled_model):
    segment(ihc, whole_image=True)
    with ihc.open() as project:
        [change] = find_changes(project, bundled_model).changes
    assert change.tissue == "auto"
    assert change.nuclei > 0
    assert (change.changed, change.differing) == (0, 0)


def test_where_everything_was_reviewed_nothing_is_segmented(ihc, segment, other):
    segment(ihc, annotations=("all",))
    content = ihc.data.read_bytes()
    model = load_model(other, "cpu")
    with ihc.open() as project:
        found = find_changes(project, model, collected=CollectOptions(reviewed=("all",)))
        report = segment_changes(project, model, found)
    assert report.manifest is None
    assert [(c.fields, c.nuclei, c.message) for c in report.changes] == [(0, 0, None)]
    assert ihc.data.read_bytes() == content


def test_a_dry_run_and_a_second_model_to_compare_with(ihc, segment, other, command):
    segment(ihc, annotations=("all",))
    content = ihc.data.read_bytes()
    words = ["corrections", "rerun", *ihc.words, "--device", "cpu", "--json", "--dry-run"]
    code, out, _ = command(*words, "--model", other)
    assert code == 0
    [against_run] = json.loads(out)["changes"]
    assert against_run["changed"] > 0
    code, out, _ = command(*words, "--model", other, "--base", other)
    [same] = json.loads(out)["changes"]
    assert (same["changed"], same["differing"]) == (0, 0)
    assert ihc.data.read_bytes() == content


def labelled(*boxes, classes=None):
    def look(window):
        labels = np.zeros((window.height, window.width), np.int32)
        for number, (x, y) in enumerate(boxes, start=1):
            labels[MARGIN + y : MARGIN + y + 8, MARGIN + x : MARGIN + x + 8] = number
        centres = np.array(boxes, float).reshape(-1, 2) + 4
        return Labelled(labels, classes or ["A"] * len(boxes), centres)

    return look


def test_a_field_changes_by_what_has_no_counterpart():
    area = shapely.box(0, 0, 200, 200)

    def change(before, after):
        [field] = changed_fields(area, (1.0, 1.0), before, after)
        return field

    places = [(10, 10), (40, 10), (70, 10), (100, 10)]
    same = change(labelled(*places), labelled(*places))
    assert (same.nuclei, same.differing, same.change) == (8, 0, 0.0)
    one_less = change(labelled(*places), labelled(*places[1:]))
    assert one_less.differing == 1 < FEWEST
    assert one_less.change == 0.0
    others = change(labelled(*places), labelled(*places, classes=["A", "B", "B", "A"]))
    assert (others.differing, others.change) == (4, 0.5)
    outside = change(labelled((-20, 10), (-20, 50), (-20, 90)), labelled())
    assert outside.nuclei == 0


def test_recorded_nuclei_are_drawn_with_their_classes(ihc, segment):
    segment(ihc, annotations=("all",))
    frame = ihc.detections()
    x, y = frame.geometry.iloc[0].centroid.coords[0]
    from pathosam_qupath.corrections.masks import Window

    seen = drawn_in(frame, (1.0, 1.0))(Window(int(x) - 10, int(y) - 10, 20, 20))
    label = seen.labels[int(y) - (int(y) - 10), int(x) - (int(x) - 10)]
    assert label > 0
    assert seen.classes[label - 1] == frame["classification"].iloc[0]


def test_class_names_of_a_run_come_back_from_its_manifest():
    stored = {"Epithelial": "Tumor", "Connective": None, "Inflammatory": False}
    found = recorded_class_map({"class_map": stored})
    assert found.name("Epithelial") == "Tumor"
    assert found.name("Connective") is None
    assert found.dropped == {"Inflammatory"}
    assert recorded_class_map({}) is None
