"""A run over a project: what it writes, what it leaves alone, how it fails."""

from uuid import UUID

import numpy as np
import pytest
import shapely
from ihc_project import IMAGE, MPP

from pathosam_qupath.batch import run
from pathosam_qupath.errors import UsageError
from pathosam_qupath.qupath.jvm import find_installation
from pathosam_qupath.qupath.objects import RUN_KEY
from pathosam_qupath.qupath.placement import smallest_holding
from pathosam_qupath.qupath.project import HierarchyChange, PathMap, open_project
from pathosam_qupath.rollback import roll_back
from pathosam_qupath.run_plan import RunOptions, plan_run
from pathosam_qupath.run_record import file_hash
from pathosam_qupath.segmentation.classes import ClassMap


def drawn(frame):
    """Nuclei as a set of outlines and classes, whatever their ids."""
    return set(zip(shapely.to_wkb(frame.geometry), frame["classification"], strict=True))


def edited(ihc, number=2, name="by hand"):
    """Give the first nuclei a name, as a person would; the ids of those."""
    frame = ihc.detections().iloc[:number].assign(name=name)
    ids = frozenset(UUID(text) for text in frame["id"])
    ihc.change(HierarchyChange(remove=ids, add=frame))
    return set(frame["id"])


def test_nuclei_lie_in_the_annotations_under_the_smallest_that_holds_them(ihc, segment):
    before = ihc.objects()
    record = segment(ihc)
    [entry] = record.manifest.entries
    nuclei = ihc.detections()
    assert entry.state == "written"
    assert entry.nuclei == len(nuclei) > 5
    assert entry.hash_after == file_hash(ihc.data)
    assert set(nuclei["run"]) == {record.manifest.run}
    assert set(nuclei["object_type"]) == {"detection"}
    treated = [o for o in before if o.geometry.area > 0]
    expected = smallest_holding(nuclei.geometry.to_numpy(), treated)
    assert nuclei["parent"].tolist() == list(expected)
    assert all(parent is not None for parent in expected)
    assert nuclei["Area µm^2"].to_numpy() == pytest.approx(
        nuclei.geometry.area.to_numpy() * MPP**2, rel=1e-3
    )
    assert nuclei["probability"].between(0, 1).all()


def test_everything_else_in_the_file_stays_as_it_was(ihc, segment):
    before = ihc.objects()
    segment(ihc)
    after = [o for o in ihc.objects() if o.object_type == "annotation"]
    assert [o.id for o in after] == [o.id for o in before]
    for old, new in zip(before, after, strict=True):
        assert old.geometry.equals(new.geometry)
        assert (old.classification, old.name, old.color, old.locked, old.parent) == (
            new.classification,
            new.name,
            new.color,
            new.locked,
            new.parent,
        )
        assert dict(old.measurements) == dict(new.measurements)


def test_every_nucleus_names_its_run_and_the_record_knows_it(ihc, segment):
    record = segment(ihc)
    nuclei = [o for o in ihc.objects() if o.object_type == "detection"]
    assert {o.metadata[RUN_KEY] for o in nuclei} == {record.manifest.run}
    recorded = record.load_predictions("1")
    assert drawn(recorded) == drawn(ihc.detections())
    assert set(recorded["id"]) == {str(o.id) for o in nuclei}
    manifest = record.manifest
    assert manifest.finished is not None
    assert len(manifest.model["weights_hash"]) == 64
    assert manifest.model["mpp"] > 0
    assert manifest.versions["torch"]


def test_the_classes_join_the_project_list_with_their_colours(ihc, segment):
    with ihc.open() as project:
        before = dict(project.classes)
    record = segment(ihc)
    with ihc.open() as project:
        after = dict(project.classes)
    used = set(ihc.detections()["classification"])
    assert list(after)[: len(before)] == list(before)
    assert set(after) == set(before) | used
    assert {name: after[name] for name in used - set(before)} == {
        name: color for name, color in record.manifest.class_colors.items() if name not in before
    }


def test_a_second_run_replaces_the_first_and_finds_the_same(ihc, segment):
    segment(ihc)
    first = ihc.detections()
    record = segment(ihc)
    second = ihc.detections()
    assert drawn(first) == drawn(second)
    assert set(second["run"]) == {record.manifest.run}
    assert not set(first["id"]) & set(second["id"])
    assert record.manifest.entries[0].removed == len(first)


def test_edited_nuclei_stay_and_no_new_one_lies_on_them(ihc, segment):
    segment(ihc)
    first = ihc.detections()
    kept = edited(ihc)
    record = segment(ihc)
    after = ihc.detections()
    [entry] = record.manifest.entries
    assert kept <= set(after["id"])
    assert len(after) == len(first)
    assert (entry.kept, entry.overlapping) == (2, 2)
    assert drawn(after) == drawn(first)
    segment(ihc, replace_edited=True)
    last = ihc.detections()
    assert not kept & set(last["id"])
    assert drawn(last) == drawn(first)


def test_keep_adds_only_what_is_not_there_yet(ihc, segment):
    segment(ihc, annotations=("Tumor", "Stroma", "Necrosis"))
    first = ihc.detections()
    record = segment(ihc, policy="keep")
    after = ihc.detections()
    assert set(first["id"]) <= set(after["id"])
    assert record.manifest.entries[0].removed == 0
    areas = after.geometry.to_numpy()
    one, other = shapely.STRtree(areas).query(areas, predicate="intersects")
    pairs = one < other
    shared = shapely.area(shapely.intersection(areas[one[pairs]], areas[other[pairs]]))
    assert (
        shared
        <= 0.5 * np.minimum(shapely.area(areas)[one[pairs]], shapely.area(areas)[other[pairs]])
    ).all()


def test_detections_without_our_mark_are_never_touched(ihc, segment):
    segment(ihc)
    first = ihc.detections()
    foreign = first.iloc[:3].assign(run=None)
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, foreign["id"])), add=foreign))
    segment(ihc, replace_edited=True)
    after = ihc.detections()
    assert set(foreign["id"]) <= set(after["id"])
    assert len(after) == len(first) + 3


def test_only_the_chosen_annotations_are_treated(ihc, segment):
    segment(ihc, annotations=("whole image",))
    everywhere = ihc.detections()
    annotations = [o for o in ihc.objects() if o.object_type == "annotation"]
    tumor = [o for o in annotations if (o.classification or "").split(": ")[0] == "Tumor"]
    segment(ihc, annotations=("Tumor",), policy="replace")
    after = ihc.detections()
    inside = shapely.intersects(
        shapely.union_all([shapely.make_valid(o.geometry) for o in tumor]),
        shapely.centroid(after.geometry),
    )
    assert len(after) == len(everywhere)
    assert inside.any()
    first = everywhere["run"].iloc[0]
    assert (after["run"] != first).to_numpy().tolist() == inside.tolist()


def test_classes_take_the_names_of_the_project(ihc, segment, bundled_model):
    names = {name: "Tumor" for name in bundled_model.info.classes}
    record = segment(ihc, class_map=ClassMap(names))
    assert set(ihc.detections()["classification"]) == {"Tumor"}
    assert record.manifest.options["class_map"] == names


def test_an_image_that_fails_does_not_stop_the_others(ihc, segment):
    record = segment(ihc, images=())
    states = {e.name: e.state for e in record.manifest.entries}
    assert states[IMAGE] == "written"
    assert set(states.values()) == {"written", "failed"}
    failed = [e for e in record.manifest.entries if e.state == "failed"]
    assert all(e.exit_code == 4 and e.message for e in failed)
    assert any("fluorescence" in e.message for e in failed)
    assert record.manifest.finished is not None


def test_progress_grows_to_the_end_and_names_every_image(ihc, segment):
    seen = []
    segment(ihc, images=(), report=seen.append)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    assert [p.finished.name for p in seen if p.finished] == list(
        dict.fromkeys(p.name for p in seen)
    )
    tiles = [p for p in seen if p.tiles_total]
    assert tiles[-1].tiles_done == tiles[-1].tiles_total


def test_planning_writes_nothing(ihc):
    before = {path: file_hash(path) for path in ihc.path.rglob("*") if path.is_file()}
    with ihc.open() as project:
        plans = plan_run(project, RunOptions(mpp=MPP))
    assert plans[0].area > 0
    assert plans[0].regions.treated
    assert [p.error is None for p in plans] == [True, False, False, False, False]
    assert {path: file_hash(path) for path in ihc.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": ("no such*",)}, "no image fits"),
        ({"annotations": ("Tumour",)}, "there are .*'Tumor'"),
        ({"annotations": ("points",)}, "is a Points and has no area"),
    ],
)
def test_asking_for_what_is_not_there_names_what_is(ihc, options, said):
    with ihc.open() as project, pytest.raises(UsageError, match=said):
        plan_run(project, RunOptions(**{"images": (IMAGE,), "mpp": MPP, **options}))


def saving(ihc, change):
    """A progress callback that saves a change while the image is being segmented."""
    waiting = [change]

    def report(progress):
        if progress.tiles_done and waiting:
            ihc.change(waiting.pop())

    return report


def test_what_is_saved_while_an_image_is_segmented_is_not_lost(ihc, segment):
    line = next(o for o in ihc.objects() if o.name == "line")
    change = HierarchyChange(remove=frozenset([line.id]))
    record = segment(ihc, report=saving(ihc, change))
    assert record.manifest.entries[0].state == "written"
    assert line.id not in {o.id for o in ihc.objects()}
    assert len(ihc.detections()) == record.manifest.entries[0].nuclei > 0


def test_annotations_edited_while_they_are_segmented_refuse_the_write(ihc, segment):
    whole = next(o for o in ihc.objects() if o.name == "whole image")
    change = HierarchyChange(remove=frozenset([whole.id]))
    record = segment(ihc, report=saving(ihc, change))
    [entry] = record.manifest.entries
    assert entry.state == "failed"
    assert "edited while they were being segmented" in entry.message
    assert len(ihc.detections()) == 0


def test_what_nobody_foresaw_is_recorded_with_its_traceback(ihc, segment):
    def report(progress):
        if progress.tiles_done:
            raise ZeroDivisionError("from the callback")

    record = segment(ihc, report=report)
    [entry] = record.manifest.entries
    assert entry.state == "failed"
    assert "ZeroDivisionError" in entry.message
    assert "from the callback" in (record.entry_folder("1") / "traceback.txt").read_text()
    assert len(ihc.detections()) == 0


@pytest.mark.qupath
def test_a_run_of_one_backend_is_replaced_and_undone_by_the_other(ihc, bundled_model):
    if find_installation() is None:
        pytest.skip("no QuPath found; install QuPath 0.5 or newer and set PAQUO_QUPATH_DIR")
    options = RunOptions(images=(IMAGE,), mpp=MPP)
    before = file_hash(ihc.data)
    entries, runs, outlines = [], [], []
    for backend in ("embedded", "paquo", "embedded"):
        path_map = PathMap.parse([ihc.moved])
        with open_project(ihc.path, backend, path_map=path_map) as project:
            assert project.backend == backend
            manifest = run(project, bundled_model, options, plan_run(project, options)).manifest
        entries.append(manifest.entries[0])
        runs.append(manifest.run)
        outlines.append(drawn(ihc.detections()))
    assert outlines[0] == outlines[1] == outlines[2]
    assert [e.removed for e in entries] == [0, entries[0].nuclei, entries[0].nuclei]
    assert [e.kept for e in entries] == [0, 0, 0]
    for made, backend in zip(reversed(runs), ("paquo", "embedded", "paquo"), strict=True):
        with open_project(ihc.path, backend) as project:
            assert [r.action for r in roll_back(project, made)] == ["restored"]
    assert file_hash(ihc.data) == before
