"""Every correction is found, and none is invented."""

import json
from collections import Counter
from uuid import UUID, uuid4

import pytest
import shapely
from recorded_project import Pathologist, detections, found_edits, grid, outlines, record_run

from pathosam_qupath.corrections.collect import CollectOptions, collect
from pathosam_qupath.corrections.withdrawn import note_withdrawn
from pathosam_qupath.errors import RunError
from pathosam_qupath.qupath.geojson import read_geojson
from pathosam_qupath.qupath.project import HierarchyChange
from pathosam_qupath.rollback import roll_back
from pathosam_qupath.run_record import open_run

FEW = grid(6) + 100
REGION = ("all",)


@pytest.fixture
def collected(ihc):
    """Compare the project's image with its runs: ``collected(reviewed=("all",))``."""

    def compare(**options):
        with ihc.open() as project:
            [image] = collect(project, CollectOptions(**options))
        return image

    return compare


def remove(ihc, rows):
    """Delete some of the image's detections; their ids."""
    ids = ihc.detections()["id"].iloc[rows].tolist()
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, ids))))
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_of_a_thousand_random_edits_all_are_found_and_none_invented(ihc, collected, seed):
    record_run(ihc)
    person = Pathologist(ihc.detections(), seed)
    person.edit(252)
    ihc.change(person.change())
    found = found_edits(collected().nuclei)
    assert found - person.expected == Counter()
    assert person.expected - found == Counter()


def test_an_untouched_project_has_nothing_but_kept_nuclei(ihc, collected):
    record_run(ihc)
    assert collected().counts == {"kept": len(grid())}


def test_what_a_later_run_replaced_was_not_deleted_by_a_person(ihc, segment, collected):
    first = segment(ihc, annotations=REGION).manifest.run
    deleted = remove(ihc, [0, 1, 2])
    second = segment(ihc, annotations=REGION).manifest.run
    count = len(ihc.detections())
    found = collected()
    assert found.runs == (first, second)
    assert found.counts == {"kept": count, "deleted": 3}
    assert set(found.nuclei.loc[found.nuclei["kind"] == "deleted", "id"]) == set(deleted)
    assert collected(run=first).counts == {"deleted": 3}
    assert collected(run="last").counts == {"kept": count}


def test_what_a_rollback_took_out_was_not_deleted_by_a_person(ihc, segment, collected):
    segment(ihc, annotations=REGION)
    count = len(ihc.detections())
    second = segment(ihc, annotations=REGION).manifest.run
    with ihc.open() as project:
        roll_back(project, second)
    remove(ihc, [0])
    assert collected().counts == {"kept": count - 1, "deleted": 1}


def test_a_run_that_kept_edited_nuclei_is_compared_beside_the_earlier_one(ihc, segment, collected):
    segment(ihc, annotations=REGION)
    nuclei = ihc.detections()
    changed = nuclei.iloc[:2].assign(classification="Mitosis")
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, changed["id"])), add=changed))
    segment(ihc, annotations=REGION)
    assert collected().counts == {
        "kept": len(ihc.detections()) - 2,
        "reclassified": 2,
    }


def test_a_run_that_was_cut_off_before_its_write_counts_for_nothing(ihc, segment, collected):
    before = ihc.data.read_bytes()
    record = segment(ihc, annotations=REGION)
    ihc.data.write_bytes(before)
    from dataclasses import replace

    record.update(replace(record.manifest.entries[0], state="predicted"))
    with pytest.raises(RunError, match="no run wrote"):
        collected()


def test_what_a_run_into_an_open_qupath_replaced_was_not_deleted_by_a_person(ihc, collected):
    region = next(o for o in ihc.objects() if o.name == "with hole")
    first = record_run(ihc)
    nuclei = ihc.detections()
    inside = nuclei.geometry.centroid.within(region.geometry)
    outside = nuclei["id"][~inside].iloc[:2].tolist()
    gone = [*outside, *nuclei["id"][inside]]  # QuPath took the ones inside out, a person two
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, gone))))
    centers = [(p.x, p.y) for p in nuclei.geometry[inside].centroid]
    second = record_run(ihc, centers, live=[str(region.id)])
    found = collected()
    assert found.runs == (first, second)
    deleted = found.nuclei[found.nuclei["kind"] == "deleted"]
    assert set(deleted["id"]) == set(outside)
    assert found.counts["kept"] == len(ihc.detections())
    assert str(region.id) in {a.id for a in found.annotations}


def live_run_over_another(ihc):
    """A run, and one into an open QuPath where it left room; both ids, the latter's nuclei."""
    region = next(o for o in ihc.objects() if o.name == "with hole")
    centers = grid()
    inside = shapely.contains_xy(region.geometry.buffer(6), *centers.T)
    first = record_run(ihc, centers[~inside])
    second = record_run(ihc, centers[inside], live=[str(region.id)])
    nuclei = ihc.detections()
    return first, second, nuclei[(nuclei["run"] == second).to_numpy()].reset_index(drop=True)


def reshape(ihc, nucleus):
    """Draw a nucleus larger, under its id."""
    changed = nucleus.set_geometry([nucleus.geometry.iloc[0].buffer(1.0)])
    ids = frozenset(map(UUID, nucleus["id"]))
    ihc.change(HierarchyChange(remove=ids, add=changed))


@pytest.mark.parametrize("noted", [True, False])
def test_a_live_run_that_was_taken_back_was_not_deleted_by_a_person(ihc, collected, noted):
    first, second, nuclei = live_run_over_another(ihc)
    deleted = remove(ihc, [0, 1])
    reshape(ihc, nuclei.iloc[[0]])
    gone = nuclei["id"].iloc[1:].tolist()
    assert len(gone) >= 5
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, gone))))
    if noted:
        entry = ihc.open().entries[0].id
        note = note_withdrawn(ihc.path, second, entry, [gone[0].upper(), str(uuid4())], undone=True)
        assert note.ids == {gone[0]}
        assert note_withdrawn(ihc.path, second, entry, gone[1:], undone=False).ids == set(gone)
    found = collected()
    assert found.runs == (first, second)
    assert set(found.nuclei["id"][(found.nuclei["kind"] == "deleted").to_numpy()]) == set(deleted)
    assert found.counts["reshaped"] == 1


def test_what_a_person_deleted_of_a_live_run_is_deleted(ihc, collected):
    _, _, nuclei = live_run_over_another(ihc)
    gone = nuclei["id"].iloc[1:].tolist()
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, gone))))
    found = collected().nuclei
    assert set(found["id"][(found["kind"] == "deleted").to_numpy()]) == set(gone)


def test_nuclei_that_come_back_after_an_undo_are_there(ihc, collected):
    _, second, nuclei = live_run_over_another(ihc)
    entry = ihc.open().entries[0].id
    note_withdrawn(ihc.path, second, entry, nuclei["id"], undone=True)
    assert collected().counts == {"kept": len(ihc.detections())}


def test_a_damaged_note_of_what_was_taken_back_is_told(ihc, collected):
    _, second, nuclei = live_run_over_another(ihc)
    entry = ihc.open().entries[0].id
    note_withdrawn(ihc.path, second, entry, nuclei["id"], undone=True)
    open_run(ihc.path, second).entry_folder(entry).joinpath("withdrawn.json").write_text("[1]")
    found = collected()
    assert found.exit_code == 6
    assert "withdrawn.json" in found.message


def test_nuclei_of_a_forgotten_run_are_neither_kept_nor_added(ihc, collected):
    record_run(ihc, FEW)
    lost = detections(outlines(FEW[:4] + 200), ["Tumor"] * 4, run="20200101-000000-abcd")
    ihc.change(HierarchyChange(add=lost))
    assert collected().counts == {"kept": len(FEW), "unrecorded": 4}


def test_marks_say_who_drew_a_nucleus(ihc, collected):
    record_run(ihc, FEW)
    marks = ["hand", "prompt", "prompt-vit_b"]
    drawn = detections(outlines(FEW[:3] + 200), [None] * 3, run=marks)
    ihc.change(HierarchyChange(add=drawn))
    nuclei = collected(unmarked="none").nuclei
    added = nuclei[nuclei["kind"] == "added"].set_index("id")["by"]
    assert added.loc[drawn["id"]].tolist() == ["hand", "prompt", "prompt"]


def test_detections_of_other_tools_are_not_taken_for_a_persons(ihc, collected):
    before = detections(outlines(FEW[:2] + 200), ["Tumor"] * 2)
    ihc.change(HierarchyChange(add=before))
    record_run(ihc, FEW)
    cells = detections(outlines(FEW[2:4] + 200), [None] * 2)
    measured = cells.assign(**{"Detection probability": 0.7})
    shaped = detections(outlines(FEW[4:6] + 200), [None] * 2, **{"Area µm^2": 30.0})
    remark = detections(outlines(FEW[6:8] + 200), ["PathoSAM: deleted"] * 2)
    for frame in (measured, shaped, remark):
        ihc.change(HierarchyChange(add=frame))
    found = collected()
    assert found.counts == {"kept": len(FEW), "added": 2}
    assert set(found.nuclei.loc[found.nuclei["kind"] == "added", "id"]) == set(shaped["id"])
    assert len(found.others) == 4
    assert collected(unmarked="none").counts == {"kept": len(FEW)}
    assert collected(unmarked="all").counts == {"kept": len(FEW), "added": 6}


def test_only_what_lies_in_treated_regions_counts(ihc, collected):
    stroma = next(o for o in ihc.objects() if o.name == "ellipse")
    center = stroma.geometry.centroid
    record_run(ihc, [(center.x, center.y)], annotations=("Stroma",))
    inside = detections(outlines([(center.x + 10, center.y)]), [None])
    outside = detections(outlines([(center.x + 200, center.y)]), [None])
    ihc.change(HierarchyChange(add=inside))
    ihc.change(HierarchyChange(add=outside))
    found = collected()
    assert found.counts == {"kept": 1, "added": 1}
    assert [(a.label, a.counts) for a in found.annotations] == [
        ("ellipse", {"kept": 1, "added": 1})
    ]


def test_reviewed_regions_are_told_from_others(ihc, collected):
    record_run(ihc)
    found = collected()
    assert not found.nuclei["reviewed"].any()  # "whole image" was locked before the run
    found = collected(reviewed=("Necrosis",))
    region = next(a for a in found.annotations if a.classification == "Necrosis")
    assert region.reviewed == "chosen"
    assert found.nuclei["reviewed"].sum() >= sum(region.counts.values()) > 0
    assert not found.nuclei["reviewed"].all()


def test_the_command_shows_counts_and_writes_differences_for_qupath(ihc, command, tmp_path):
    record_run(ihc, FEW)
    deleted = remove(ihc, [0])
    nuclei = ihc.detections()
    changed = nuclei.iloc[:1].assign(classification="Mitosis")
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, changed["id"])), add=changed))
    words = ["corrections", "collect", *ihc.words, "--images", "ihc.png", "--reviewed", "all"]
    code, out, _ = command(*words, "--json", "--geojson", tmp_path / "out")
    [image] = json.loads(out)
    assert code == 0
    assert image["counts"] == {"kept": 34, "deleted": 1, "reclassified": 1}
    assert {c["kind"]: c["id"] for c in image["corrections"]}["deleted"] == deleted[0]
    [file] = (tmp_path / "out").iterdir()
    objects = read_geojson(file).objects
    assert {o.classification for o in objects} == {"PathoSAM: deleted", "PathoSAM: reclassified"}
    assert all(str(o.id) not in set(nuclei["id"]) for o in objects)
    code, out, _ = command(*words)
    assert code == 0
    assert "deleted" in out


def test_a_project_without_runs_says_what_to_do(ihc, command):
    code, out, _ = command("corrections", "collect", *ihc.words, "--json")
    assert code == 6
    assert "segment" in json.loads(out)["error"]["remedy"]


def test_a_damaged_image_is_told_and_gets_its_own_exit_code(ihc, command):
    record_run(ihc, FEW)
    ihc.data.write_bytes(b"torn")
    ihc.data.with_name("data.qpdata.bkp").unlink(missing_ok=True)
    code, out, _ = command("corrections", "collect", *ihc.words, "--images", "ihc.png", "--json")
    assert code == 3
    assert "data.qpdata" in json.loads(out)[0]["problem"]
