"""Every script of groovy_scripts inside a real QuPath core: hierarchies before and after.

QuPath's classes make a project with an image of tissue; each script runs as QuPath would
run it, with its file in ``qupath.script.file``; a real server answers. There is no window:
the scripts' context is handed to them with a log in place of dialogs.
"""

import re
import shutil
from pathlib import Path

import groovy_tools
import pytest
from groovy_tools import IMAGES, TINY

from pathosam_qupath.qupath.jvm import find_installation

WHOLE_RUN = 1200
"""Seconds that all scripts may take together; the first test waits for them."""

pytestmark = [pytest.mark.qupath, pytest.mark.timeout(WHOLE_RUN + 60)]

RUN = "PathoSAM run"


@pytest.fixture(scope="module")
def met(groovy, executable, tmp_path_factory):
    """What the scripts did, by name."""
    found = find_installation()
    if found is None:
        pytest.skip("no QuPath found; install QuPath 0.5 or newer and set PAQUO_QUPATH_DIR")
    jars = sorted(Path(found.folder).glob("*.jar"))
    program, groovy_jars = groovy_tools.java_program(), []
    own = found.java.parents[2] / "bin" / "java"
    if any(jar.name.startswith("groovy-") for jar in jars):
        program = own if own.exists() else program
    else:
        groovy_jars = [groovy_tools.groovy_jar()]
    folder = tmp_path_factory.mktemp("stubs")
    image = shutil.copy(IMAGES / "ihc.png", folder)
    try:
        output = groovy_tools.java(
            "groovy.ui.GroovyMain",
            Path(__file__).with_name("stub_checks.groovy"),
            folder,
            image,
            groovy_tools.SCRIPTS,
            executable,
            TINY,
            class_path=[*groovy_jars, *jars, groovy_tools.SCRIPTS],
            program=str(program),
            timeout=WHOLE_RUN,
            options=[f"-Djava.util.prefs.userRoot={folder}", "-Djava.awt.headless=true"],
        )
    finally:
        groovy_tools.end_server(folder / "home")
        groovy_tools.end_server(folder / "apart")
    return groovy_tools.results(output)


def by_id(objects):
    return {one["id"]: one for one in objects}


def nuclei(objects):
    """Objects that bear this tool's mark."""
    return [one for one in objects if RUN in one["metadata"]]


def others(objects):
    """Objects that do not."""
    return [one for one in objects if RUN not in one["metadata"]]


def test_without_a_selection_nothing_happens_and_the_remedy_is_told(met):
    step = met["nothing_selected"]
    assert step["said"][0].startswith("no_annotation")
    assert step["objects"] == met["before"]
    assert step["events"] == 0


def test_nuclei_arrive_as_detections_under_their_annotation_in_one_event(met):
    step, ids = met["first"], met["ids"]
    found = nuclei(step["objects"])
    assert len(found) > 10
    assert step["events"] == 1
    assert {one["kind"] for one in found} == {"detection"}
    assert {one["parent"] for one in found} == {ids["tumor"], ids["nested"]}
    assert len({one["metadata"][RUN] for one in found}) == 1
    assert len(by_id(found)) == len(found)
    assert step["said"][0].startswith(f"{len(found)} nuclei in 1 annotation")


def test_the_server_is_started_in_the_folder_of_the_settings(met):
    assert met["at_home"] is True


def test_a_nucleus_goes_under_the_smallest_annotation_that_holds_it(met):
    for one in nuclei(met["first"]["objects"]):
        x, y = one["centre"]
        inside = 120 <= x <= 240 and 270 <= y <= 490
        assert one["parent"] == met["ids"]["nested" if inside else "tumor"]


def test_nuclei_have_class_measurements_and_probability(met):
    for one in nuclei(met["first"]["objects"]):
        assert one["pathClass"] in {"Epithelial", "Inflammatory", "Connective"}
        assert one["measurements"]["Area µm^2"] == pytest.approx(one["area"] * 0.36, rel=0.02)
        assert 0 < one["probability"] <= 1


def test_a_class_that_qupath_knows_keeps_its_colour(met):
    colors = {one["pathClass"]: one["color"] for one in nuclei(met["first"]["objects"])}
    assert colors["Connective"] & 0xFFFFFF == 0x010203
    models = {"Epithelial": 0xC80000, "Inflammatory": 0xA05AA0}
    for name in models.keys() & colors.keys():
        assert colors[name] & 0xFFFFFF == models[name]


@pytest.mark.parametrize("step", ["first", "second", "third", "undone", "by_class", "batch"])
def test_nothing_else_is_touched(met, step):
    assert others(met[step]["objects"]) == met["before"]


def test_the_run_is_a_step_of_the_workflow_that_can_be_run_again(met):
    assert met["step"]["name"] == "PathoSAM: segment nuclei"
    assert "segment_batch.groovy" in met["step"]["script"]
    assert "annotations=selected" in met["step"]["script"]


def test_segmenting_again_replaces_what_nobody_edited(met):
    first, second = nuclei(met["first"]["objects"]), nuclei(met["second"]["objects"])
    assert len(second) == len(first)
    assert {one["metadata"][RUN] for one in first}.isdisjoint(
        one["metadata"][RUN] for one in second
    )
    assert [one["centre"] for one in first] == [one["centre"] for one in second]
    assert f"{len(first)} of an earlier run replaced" in met["second"]["said"][0]


def test_locked_reclassified_named_and_reshaped_nuclei_stay(met):
    now = by_id(met["third"]["objects"])
    for one in met["edited"]:
        assert now[one["id"]] == one
    assert "4 edited ones kept" in met["third"]["said"][0]
    assert len(nuclei(met["third"]["objects"])) <= len(nuclei(met["second"]["objects"]))


def test_undo_brings_back_what_was_there(met):
    assert by_id(met["undone"]["objects"]) == by_id(met["before_third"])
    assert met["undone"]["events"] == 1


def test_annotations_of_a_class(met):
    known = by_id(met["undone"]["objects"])
    fresh = [one for one in nuclei(met["by_class"]["objects"]) if one["id"] not in known]
    assert fresh
    assert {one["parent"] for one in fresh} == {met["ids"]["nested"]}


def test_batch_leaves_out_the_ignored_area_and_classes_that_are_not_wanted(met):
    known = by_id(met["by_class"]["objects"])
    fresh = [one for one in nuclei(met["batch"]["objects"]) if one["id"] not in known]
    assert met["ids"]["other"] in {one["parent"] for one in fresh}
    assert not [one for one in fresh if one["pathClass"] == "Epithelial"]
    assert not [one for one in fresh if one["centre"][0] > 262 and one["centre"][1] < 258]


def test_annotations_are_marked_as_reviewed(met):
    marked = [one for one in met["reviewed"]["objects"] if "PathoSAM reviewed" in one["metadata"]]
    assert marked and all(one["kind"] == "annotation" for one in marked)


def test_what_was_written_is_known_after_saving_and_loading(met):
    before = {one["id"] for one in nuclei(met["loaded"]) if one["parent"] == met["ids"]["tumor"]}
    after = by_id(met["after_loading"]["objects"])
    edited = {one["id"] for one in met["edited"]}
    assert before & edited == before & edited & set(after)
    assert "of an earlier run replaced" in met["after_loading"]["said"][0]
    assert not (before - edited) & set(after)


def test_a_run_over_the_project_is_told_replaced_and_undone(met):
    assert "nuclei in 1 image" in met["project"]["said"][0]
    written = nuclei(met["written"])
    run = max(one["metadata"][RUN] for one in written)
    own = {one["id"] for one in written if one["metadata"][RUN] == run}
    assert own
    replaced = own - {one["id"] for one in nuclei(met["after_project"]["objects"])}
    assert replaced
    assert by_id(met["rolled_back"]) == by_id(met["loaded"])


@pytest.mark.parametrize("step", ["first", "second", "third", "undone", "by_class", "prompted"])
def test_hierarchies_change_only_where_qupath_expects_it(met, step):
    assert met[step]["events"] == 1
    assert met[step]["outside"] == 0


def test_a_project_is_warned_of_saved_segmented_and_shown_anew(met):
    warning, *rest = met["project"]["calls"]
    assert warning.startswith("confirm: Segment nuclei in annotations (all) of 1 image?")
    assert "Open images are saved first" in warning
    assert "would overwrite the result" in warning
    assert rest == ["save", "work", "reload"]


def test_nothing_is_done_to_a_project_that_is_not_saved_or_not_wanted(met):
    assert met["not_saved"]["calls"][1:] == ["save"]
    assert met["refused_project"]["calls"] == []
    assert met["not_saved"]["said"] == met["refused_project"]["said"] == []


def test_a_project_run_that_is_given_up_is_shown_anew_all_the_same(met):
    assert met["given_up"]["calls"][1:] == ["save", "work", "reload"]
    assert met["given_up"]["said"][0].startswith("Cancelled; images that were finished before")


def test_replaced_and_undone_nuclei_are_noted_with_their_runs(met):
    assert met["first_withdrawn"]["undone"] is False
    replaced = {one["id"] for one in nuclei(met["first"]["objects"])}
    assert set(met["first_withdrawn"]["ids"]) == replaced
    assert met["third_withdrawn"]["undone"] is True
    assert met["third_withdrawn"]["ids"]


def test_fine_tuning_saves_first_and_says_what_came_of_it(met):
    assert met["tuned"]["calls"] == ["save", "work"]
    said = met["tuned"]["said"][0]
    # The last: there is too little to learn from, which the command says with its remedy.
    outcomes = ("ours can be chosen in Settings", "ours is no better", "ours was not", "command: ")
    assert said.startswith(outcomes)
    assert met["not_tuned"]["calls"] == []


def test_regions_to_review_are_suggested_as_annotations(met):
    new = [o for o in met["with_suggestions"] if o["pathClass"] == "PathoSAM: review"]
    assert new and all(one["kind"] == "annotation" for one in new)
    known = by_id(met["rolled_back"])
    assert {i: o for i, o in by_id(met["with_suggestions"]).items() if i in known} == known
    assert met["suggested"]["said"][0].startswith(f"{len(new)} regions in 1 image")
    assert met["suggested"]["calls"] == ["save", "work", "reload"]


def test_what_a_model_sees_otherwise_is_segmented_again_on_request(met):
    assert re.match(r"\d+ of \d+ fields in 1 image differ", met["again"]["said"][0])
    assert met["again"]["calls"][1:] == ["save", "work", "reload"]
    assert len(met["not_again"]["calls"]) == 1


def test_corrections_are_recorded(met):
    assert met["corrections"]["said"][0]
    assert not met["corrections"]["said"][0].startswith(("unexpected", "invalid_request"))


def test_settings_are_kept_and_checked(met):
    assert met["stored"]["classes"] == "Epithelial = Tumor"
    assert met["stored"]["mpp"] == "0.5"
    assert met["refused"][0].startswith("settings:")


def test_the_doctor_shows_every_check_and_the_server(met):
    assert "OK    Python" in met["doctor"][0]
    assert "server: ready" in met["doctor"][0]


def test_prompts_become_nuclei_where_the_server_cannot_read_the_image(met):
    step = met["prompted"]
    known = by_id(met["before_prompt"])
    fresh = [one for one in step["objects"] if one["id"] not in known]
    assert fresh
    assert {one["metadata"][RUN] for one in fresh} == {"prompt"}
    assert step["events"] == 1
    assert by_id(met["prompt_undone"]["objects"]) == known


def test_points_and_boxes_that_became_nuclei_are_gone_and_no_longer_selected(met):
    before = {one["id"] for one in others(met["before_prompt"])}
    after = {one["id"] for one in others(met["prompted"]["objects"])}
    assert len(before - after) == 2
    assert met["selected_after"] is None


def test_refining_changes_the_outline_and_nothing_else(met):
    before, after = by_id(met["prompt_undone"]["objects"]), by_id(met["refined"]["objects"])
    drawn = met["ids"]["drawn"]
    assert set(before) == set(after)
    assert {one: after[one] for one in after if one != drawn} == {
        one: before[one] for one in before if one != drawn
    }
    assert after[drawn]["area"] != before[drawn]["area"]
    assert after[drawn]["pathClass"] == "Epithelial"
    assert by_id(met["refine_undone"]["objects"]) == before


def test_a_box_that_holds_no_single_nucleus_is_refused(met):
    assert met["too_large"][0].startswith("too_large")


def test_a_region_is_segmented_from_its_pixels(met):
    assert "nuclei in 1 annotation" in met["by_pixels"]["said"][0]
    assert others(met["by_pixels"]["objects"]) != []
