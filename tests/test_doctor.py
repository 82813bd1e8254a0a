"""The doctor finds what works and gives a remedy for what does not."""

import json

import pytest

from pathosam_qupath.cli import main
from pathosam_qupath.doctor import check_libraries, check_model, check_qupath, examine


def test_a_working_installation_has_no_failure_and_every_warning_a_remedy():
    checks = examine()
    names = [check.name for check in checks]
    for name in ("Python", "torch", "device", "QuPath", "Java", "model"):
        assert name in names
    assert not [check for check in checks if check.status == "fail"]
    assert all(check.remedy for check in checks if check.status == "warn")


def test_json_has_every_check(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["doctor", "--json"])
    assert leaving.value.code == 0
    checks = json.loads(capsys.readouterr().out)
    assert {"name", "status", "found", "remedy"} == set(checks[0])


def test_a_model_that_does_not_load_fails_with_its_remedy(tmp_path, capsys):
    damaged = tmp_path / "weights.safetensors"
    damaged.write_bytes(b"not weights")
    check = check_model(str(damaged))
    assert check.status == "fail"
    assert check.remedy
    with pytest.raises(SystemExit) as leaving:
        main(["doctor", "--model", str(damaged)])
    assert leaving.value.code == 1
    assert "fail" in capsys.readouterr().out


def test_a_missing_qupath_is_a_warning_that_says_where_to_put_it(tmp_path, monkeypatch):
    from paquo._config import settings

    monkeypatch.setattr(settings, "QUPATH_DIR", str(tmp_path))
    check = check_qupath()
    assert check.status == "warn"
    assert "PAQUO_QUPATH_DIR" in check.remedy


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    import pathosam_qupath.doctor as doctor

    monkeypatch.setattr(doctor, "_LIBRARIES", ("numpy", "no-such-library-at-all"))
    check = check_libraries()
    assert check.status == "fail"
    assert "pip install no-such-library-at-all" in check.remedy
