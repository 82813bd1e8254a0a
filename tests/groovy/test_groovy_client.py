"""The Groovy client, run by real Groovy 4 against real servers that it starts itself.

One Java machine goes through everything (its start is most of the time); the tests look at
what it met.
"""

import pytest
from groovy_tools import IMAGES, TINY

WHOLE_RUN = 800
"""Seconds that all of it may take; the first test waits for it."""

pytestmark = pytest.mark.timeout(WHOLE_RUN + 60)


@pytest.fixture(scope="module")
def met(run_script, home, executable):
    """What the client met, by name."""
    return run_script("client_checks.groovy", home, executable, IMAGES, TINY, timeout=WHOLE_RUN)


def test_without_an_executable_the_error_says_where_to_name_it(met):
    assert met["no_executable"]["code"] == "no_executable"
    assert "Settings" in met["no_executable"]["remedy"]


def test_settings_can_forbid_to_start_a_server(met):
    assert met["never"]["code"] == "no_server"
    assert "SSH" in met["never"]["remedy"]


def test_a_server_that_cannot_load_its_model_is_an_error_with_the_reason(met):
    assert "no-such-model" in met["fails_to_start"]["subject"] + met["fails_to_start"]["cause"]
    assert met["fails_to_start"]["remedy"]


def test_the_client_starts_a_server_and_waits_for_its_model(met):
    assert met["silence"] is None
    assert met["start_messages"][0] == "Starting the PathoSAM server"
    health = met["health"]
    assert (health["state"], health["device"]) == ("ready", "cpu")
    assert health["model"]["name"] == "bundled"
    assert health["protocol"]["min"] <= 1 <= health["protocol"]["max"]
    assert len(met["state"]["token"]) >= 43


def test_a_running_server_is_found_again(met):
    assert met["found_again"] == "ready"
    assert "bundled" in met["models"]


def test_an_image_that_is_opened_twice_is_one(met):
    assert met["same_image"] is True


def test_a_job_tells_its_progress(met):
    assert met["job"]["state"] == "done"
    known = [fraction for fraction in met["fractions"] if fraction >= 0]
    assert known == sorted(known)
    assert known[-1] == 1
    assert any("tiles" in message for message in met["messages"])


def test_the_result_arrives_feature_by_feature(met):
    assert met["handed_over"] == met["ids"] == met["job"]["result"]["features"] > 10
    feature = met["feature"]
    assert feature["geometry"]["type"] == "Polygon"
    assert feature["properties"]["objectType"] == "detection"
    assert feature["properties"]["metadata"]["PathoSAM run"] == met["job"]["run"]
    assert feature["properties"]["measurements"]["Area µm^2"] > 0
    assert met["parents"] == ["6a3f0e0e-7a43-4a7f-9a3c-0d3f2f6f9d11"]


def test_classes_are_called_as_the_project_calls_them(met):
    assert set(met["classes"]) <= {"Epithelial", "Stroma"}
    assert "Stroma" in met["classes"]


def test_pixels_can_be_sent_instead_of_a_path(met):
    assert met["sent"] == "done"
    assert met["closed"]["code"] == "not_found"


def test_cancelling_ends_the_job(met):
    assert met["cancelled"]["code"] == "cancelled"
    assert met["cancelled_state"] == "cancelled"


def test_refusals_arrive_with_subject_cause_and_remedy(met):
    assert met["outside"]["code"] == "outside_roots"
    assert met["invalid"]["code"] == "invalid_request"
    assert met["unknown_job"]["code"] == "not_found"
    for name in ("outside", "invalid", "unknown_job"):
        assert met[name]["subject"] and met[name]["cause"] and met[name]["remedy"]


def test_taken_out_nuclei_of_a_run_that_is_not_recorded_need_no_note(met):
    assert met["unknown_run"] == {"code": "none"}


def test_scripts_that_are_too_old_say_how_to_get_new_ones(met):
    assert met["old_client"]["code"] == "old_client"
    assert "install_menu.groovy" in met["old_client"]["remedy"]


def test_a_server_that_is_too_old_is_named(met):
    assert met["new_client"]["code"] == "old_server"
    assert "Update pathosam-qupath" in met["new_client"]["remedy"]


def test_a_protocol_that_the_server_does_not_speak_is_refused_by_it(met):
    assert met["refused_protocol"]["code"] == "protocol_mismatch"


def test_a_wrong_token_opens_nothing(met):
    assert met["stranger"] is None
    assert met["wrong_token"]["code"] == "unauthorized"


def test_a_server_killed_in_the_middle_is_an_error_and_the_next_use_starts_another(met):
    assert met["killed"]["code"] == "no_answer"
    assert "server.log" in met["killed"]["remedy"]
    assert met["stale_file"] is True
    assert met["stale_answer"] is None
    assert met["again"] == {"state": "ready", "prompts": True}


def test_prompts_are_answered_in_their_order(met):
    assert len(met["answers"]) == 3
    assert all(answer["type"] == "Feature" for answer in met["answers"])
    assert met["no_prompts"]["code"] == "invalid_request"


def test_a_server_ends_when_it_is_told_to(met):
    assert met["ended"] is True
    assert met["gone"]["code"] == "no_answer"
