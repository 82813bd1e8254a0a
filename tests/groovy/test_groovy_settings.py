"""What a person sets in QuPath: defaults, what is kept, and what is refused."""

import pytest


@pytest.fixture(scope="module")
def met(run_script):
    return run_script("settings_checks.groovy", timeout=120)


def test_with_nothing_set_everything_is_looked_for(met):
    assert met["defaults"]["model"] == "bundled"
    assert met["defaults"]["device"] == "auto"
    assert met["defaults"]["executable"] == ""
    assert met["nothing_set"] == {"mpp": None, "classes": {}, "home": None}


def test_values_are_kept_in_the_store_without_spaces(met):
    assert met["stored"] == {"device": "", "mpp": "0,25", "model": "ours"}
    assert met["folder"] == "/there"


def test_an_emptied_value_is_the_default_again(met):
    assert met["read_again"] == {"model": "ours", "mpp": 0.25, "device": "auto"}


def test_arguments_of_a_script_count_for_that_once(met):
    assert met["given_once"] == ["other", "ours"]


def test_classes_are_renamed_left_unclassified_or_left_out(met):
    assert met["classes"] == {"Epithelial": "Tumor", "Connective": None, "Inflammatory": False}


@pytest.mark.parametrize("number", range(3))
def test_a_pixel_size_that_is_no_positive_number_is_refused(met, number):
    refused = met[f"wrong_size_{number}"]
    assert refused["code"] == "settings"
    assert "positive number" in refused["cause"]
    assert "Settings" in refused["remedy"]


def test_classes_without_an_equals_sign_are_refused_with_an_example(met):
    assert met["wrong_classes"]["code"] == "settings"
    assert "Epithelial = Tumor" in met["wrong_classes"]["remedy"]
