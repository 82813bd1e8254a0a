"""Undoing a run: byte for byte where nothing else changed, else only the run's own nuclei."""

import shutil
from dataclasses import replace
from uuid import UUID

import pytest

from pathosam_qupath.errors import RunError
from pathosam_qupath.qupath.project import HierarchyChange
from pathosam_qupath.rollback import roll_back
from pathosam_qupath.run_record import file_hash, open_run


@pytest.fixture
def undo(ihc):
    """Undo a run (the last one) of the project; one result per image."""

    def undo_run(run="last"):
        with ihc.open() as project:
            return roll_back(project, run)

    return undo_run


def state(ihc):
    """The data file and QuPath's backup of it, None where absent."""
    backup = ihc.data.with_name("data.qpdata.bkp")
    return file_hash(ihc.data), file_hash(backup)


def renamed(ihc, number, name="by hand"):
    frame = ihc.detections().iloc[:number].assign(name=name)
    ids = frozenset(UUID(text) for text in frame["id"])
    ihc.change(HierarchyChange(remove=ids, add=frame))
    return set(frame["id"])


def test_a_run_undone_gives_the_files_back_byte_for_byte(ihc, segment, undo):
    before = state(ihc)
    run = segment(ihc).manifest.run
    assert state(ihc) != before
    [result] = undo()
    assert result.action == "restored"
    assert state(ihc) == before
    assert open_run(ihc.path, run).manifest.entries[0].state == "rolled back"


def test_the_older_backup_comes_back_too(ihc, segment, undo):
    ihc.data.with_name("data.qpdata.bkp").write_bytes(b"QuPath's own backup")
    before = state(ihc)
    segment(ihc)
    undo()
    assert state(ihc) == before


def test_a_backup_that_is_not_the_runs_own_is_left_alone(ihc, segment, undo):
    segment(ihc)
    backup = ihc.data.with_name("data.qpdata.bkp")
    backup.write_bytes(b"saved by something else")
    undo()
    assert backup.read_bytes() == b"saved by something else"


def test_an_image_without_data_has_none_again(ihc, segment, undo):
    ihc.data.unlink()
    record = segment(ihc, whole_image=True)
    assert record.manifest.entries[0].nuclei == len(ihc.detections()) > 0
    assert record.manifest.entries[0].hash_before is None
    [result] = undo()
    assert result.action == "restored"
    assert state(ihc) == (None, None)


def test_where_something_changed_only_the_untouched_nuclei_go(ihc, segment, undo):
    before = ihc.objects()
    segment(ihc)
    kept = renamed(ihc, 2)
    line = next(o for o in ihc.objects() if o.name == "line")
    ihc.change(HierarchyChange(remove=frozenset([line.id])))
    count = len(ihc.detections())
    [result] = undo()
    assert (result.action, result.removed, result.kept) == ("removed", count - 2, 2)
    assert set(ihc.detections()["id"]) == kept
    left = [o.id for o in ihc.objects() if o.object_type == "annotation"]
    assert left == [o.id for o in before if o.id != line.id]


def test_runs_are_undone_one_after_the_other(ihc, segment, undo):
    states = [state(ihc)[0]]
    for options in ({}, {}, {"whole_image": True}):
        segment(ihc, **options)
        states.append(state(ihc)[0])
    for expected in reversed(states[:-1]):
        open_runs = [r for r in _runs(ihc) if r.entries[0].state == "written"]
        [result] = undo(open_runs[-1].run)
        assert result.action == "restored"
        assert state(ihc)[0] == expected


def test_a_run_under_a_later_one_loses_only_what_is_left_of_it(ihc, segment, undo):
    first = segment(ihc, annotations=("whole image",)).manifest.run
    segment(ihc, annotations=("Tumor", "Stroma", "Necrosis"))
    nuclei = ihc.detections()
    later = set(nuclei.loc[nuclei["run"] != first, "id"])
    [result] = undo(first)
    assert result.action == "removed"
    assert result.removed == len(nuclei) - len(later)
    assert set(ihc.detections()["id"]) == later


def test_nuclei_that_the_run_replaced_stay_away_and_the_result_says_so(ihc, segment, undo):
    segment(ihc)
    segment(ihc)
    count = len(ihc.detections())
    renamed(ihc, 1)
    [result] = undo()
    assert f"{count} nuclei of earlier runs" in result.message
    assert len(ihc.detections()) == 1


def test_a_run_cut_off_after_its_write_is_undone_by_its_nuclei(ihc, segment, undo):
    annotations = [o.id for o in ihc.objects()]
    record = segment(ihc)
    entry = record.manifest.entries[0]
    record.update(replace(entry, state="predicted", hash_after=None))
    [result] = undo()
    assert (result.action, result.kept) == ("removed", 0)
    assert [o.id for o in ihc.objects()] == annotations


def test_a_run_cut_off_before_its_write_has_nothing_to_undo(ihc, segment, undo):
    before = ihc.data.read_bytes()
    record = segment(ihc)
    ihc.data.write_bytes(before)
    record.update(replace(record.manifest.entries[0], state="predicted", hash_after=None))
    [result] = undo()
    assert result.action == "nothing"
    assert ihc.data.read_bytes() == before


def test_a_damaged_copy_changes_nothing(ihc, segment, undo):
    record = segment(ihc)
    now = state(ihc)
    record.before_path("1").write_bytes(b"torn")
    [result] = undo()
    assert (result.action, result.exit_code) == ("failed", 6)
    assert "damaged" in result.message
    assert state(ihc) == now
    assert open_run(ihc.path, "last").manifest.entries[0].state == "written"


def test_without_predictions_nothing_is_taken_out_of_a_changed_file(ihc, segment, undo):
    record = segment(ihc)
    renamed(ihc, 1)
    (record.entry_folder("1") / "predictions.parquet").unlink()
    count = len(ihc.detections())
    [result] = undo()
    assert (result.removed, result.kept) == (0, count)
    assert len(ihc.detections()) == count


def test_undoing_twice_and_undoing_nothing_are_errors(ihc, segment, undo):
    with pytest.raises(RunError, match="no such run"):
        undo()
    segment(ihc)
    undo()
    with pytest.raises(RunError, match="undone already"):
        undo()


def test_an_image_that_left_the_project_fails_and_the_others_are_undone(ihc, segment, undo):
    segment(ihc)
    copy = ihc.path.parent / "copy"
    shutil.copytree(ihc.path, copy)
    project_file = ihc.path / "project.qpproj"
    project_file.write_text(project_file.read_text().replace('"entryID": 1,', '"entryID": 91,'))
    [result] = undo()
    assert result.action == "failed"
    assert "no longer in the project" in result.message


def _runs(ihc):
    from pathosam_qupath.run_record import run_ids

    return [open_run(ihc.path, run).manifest for run in run_ids(ihc.path)]
