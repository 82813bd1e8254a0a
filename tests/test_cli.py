"""The command line: thin, quick to start, clear when it fails, readable by machines."""

import json
import signal
import subprocess
import sys

import geopandas as gpd
import pytest
from ihc_project import IMAGE, MPP, SEGMENT

from pathosam_qupath.cli import EXIT_CODES, exit_code, main
from pathosam_qupath.errors import ImageError
from pathosam_qupath.run_record import file_hash


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_command_line_loads_nothing_heavy():
    loaded = in_a_new_process(
        "import sys, pathosam_qupath.cli; print(*{m.split('.')[0] for m in sys.modules})"
    )
    heavy = {"torch", "paquo", "jpype", "geopandas", "pandas", "numpy", "cv2", "scipy", "shapely"}
    assert not heavy & set(loaded)
    assert not {"skimage", "pyarrow", "tifffile", "tiffslide", "PIL"} & set(loaded)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["segment", "--help"],
        ["train", "--help"],
        ["models", "--help"],
        ["models", "list", "--help"],
    ],
)
def test_help_loads_nothing_heavy_either(words):
    loaded = in_a_new_process(
        "import sys, io, contextlib\n"
        "from pathosam_qupath.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({words})\n"
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    assert not {"torch", "paquo", "geopandas", "numpy", "shapely", "cv2"} & set(loaded)


def test_help_lists_every_command_and_the_exit_codes(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in ("inspect", "segment", "export", "rollback", "runs", "demo", "doctor", "models"):
        assert name in out
    shown = " ".join(out.split())
    for sentence in EXIT_CODES.split(" · "):
        assert " ".join(sentence.split()) in shown


def test_the_version_is_shown(command):
    from pathosam_qupath import __version__

    assert command("--version")[:2] == (0, __version__ + "\n")


def test_a_run_from_start_to_end(ihc, command, tmp_path):
    before = file_hash(ihc.data)
    code, out, _ = command("inspect", *ihc.words, "--mpp", MPP)
    assert code == 0
    assert "fluorescence" in out
    assert "is a Polyline and has no area" in out

    code, out, _ = command("segment", *ihc.words, *SEGMENT, "--dry-run")
    assert code == 0
    assert file_hash(ihc.data) == before
    assert not (ihc.path / "pathosam").exists()

    code, out, err = command("segment", *ihc.words, *SEGMENT)
    assert code == 0
    assert "written" in out
    assert IMAGE in err
    count = len(ihc.detections())
    assert count > 0

    code, out, _ = command("export", *ihc.words, "--images", IMAGE, "--out", tmp_path / "x", "--gz")
    assert code == 0
    assert len(list((tmp_path / "x").glob("*.geojson.gz"))) == 1

    code, out, _ = command("runs", *ihc.words)
    assert code == 0
    assert f"{count}" in out

    code, out, _ = command("rollback", *ihc.words, "--run", "last")
    assert code == 0
    assert "byte for byte" in out
    assert file_hash(ihc.data) == before


def test_every_project_command_speaks_json_and_nothing_else_on_stdout(ihc, command, tmp_path):
    def result(*words):
        code, out, _ = command(*words, "--json")
        return code, json.loads(out)

    code, entries = result("inspect", *ihc.words, "--mpp", MPP)
    assert code == 0
    assert entries[0]["name"] == IMAGE
    assert entries[0]["problem"] is None
    assert entries[0]["annotations"][0]["area"] > 0
    assert entries[3]["problem"]

    code, plans = result("segment", *ihc.words, *SEGMENT, "--dry-run")
    assert code == 0
    assert plans[0]["name"] == IMAGE
    assert len(plans[0]["annotations"]) == 10
    assert plans[0]["area"] > 0

    code, manifest = result("segment", *ihc.words, *SEGMENT)
    assert code == 0
    assert manifest["entries"][0]["state"] == "written"

    code, exported = result(
        "export", *ihc.words, "--images", IMAGE, "--format", "parquet", "--out", tmp_path / "x"
    )
    assert code == 0
    nuclei = gpd.read_parquet(exported[0]["files"][1])
    assert len(nuclei) == manifest["entries"][0]["nuclei"] == exported[0]["detections"]

    assert result("runs", *ihc.words)[1][0]["run"] == manifest["run"]
    code, undone = result("rollback", *ihc.words, "--run", manifest["run"])
    assert (code, undone[0]["action"]) == (0, "restored")

    code, failure = result("rollback", *ihc.words, "--run", manifest["run"])
    assert code == failure["error"]["exit_code"] == 6
    assert failure["error"]["remedy"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["inspect", "{tmp}/nowhere"], 3, "nowhere"),
        (["inspect", "{project}", "--path-map", "nonsense"], 2, "FROM=TO"),
        (["segment", "{project}", "--images", "no*such"], 2, "no image fits"),
        (["segment", "{project}", "--images", "ihc.png", "--annotations", "Tumour"], 2, "Tumor"),
        (["segment", "{project}", "--keep", "--replace-edited"], 2, "Leave one of them out"),
        (["segment", "{project}", *SEGMENT, "--model", "nowhere.safetensors"], 5, "nowhere"),
        (["segment", "{project}", *SEGMENT, "--mpp", "-1"], 2, "positive"),
        (["rollback", "{project}", "--run", "2020"], 6, "no such run"),
        (["export", "{project}", "--out", "{tmp}", "--format", "parquet", "--gz"], 2, "--gz"),
        (["segment", "{project}", "--classes", "{tmp}/none.json", *SEGMENT], 2, "none.json"),
        (["evaluate", "--data", "{tmp}/nowhere"], 2, "nowhere"),
    ],
)
def test_what_a_person_can_mend_is_one_sentence_and_its_exit_code(
    ihc, command, tmp_path, words, code, said
):
    before = file_hash(ihc.data)
    filled = [w.format(tmp=tmp_path, project=ihc.path) for w in words]
    if "{project}" in words:
        filled += ["--path-map", ihc.moved]
    left, _, err = command(*filled)
    assert left == code
    assert err.startswith("Error: ")
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert file_hash(ihc.data) == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["inspect", "nowhere"], 3, "does not exist"),
        (["inspect"], 2, "Missing argument 'PROJECT'"),
        (["inspect", "{project}", "--backend", "java"], 2, "java"),
        (["inspect", "{project}", "--images", "no*such"], 2, "no image fits"),
        (["segment", "{project}", "--mpp", "small"], 2, "number"),
        (["export", "{project}"], 2, "--out"),
    ],
)
def test_errors_are_json_too_where_json_is_wanted(ihc, command, words, code, said):
    left, out, err = command(*[word.format(project=ihc.path) for word in words], "--json")
    failure = json.loads(out)["error"]
    assert left == code == failure["exit_code"]
    assert set(failure) == {"subject", "cause", "remedy", "exit_code"}
    assert said in failure["cause"]
    assert err.startswith("Error: ")


def test_an_error_that_nobody_foresaw_is_json_with_a_traceback_after_it(ihc, capsys, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("pathosam_qupath.inspect_project.inspect_project", broken)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", *ihc.words, "--json"])
    failure = json.loads(capsys.readouterr().out)["error"]
    assert (failure["subject"], failure["exit_code"]) == ("ZeroDivisionError", 1)


@pytest.mark.parametrize("json_wanted", [False, True])
def test_an_interruption_is_said_and_has_its_exit_code(ihc, command, monkeypatch, json_wanted):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathosam_qupath.inspect_project.inspect_project", interrupted)
    code, out, err = command("inspect", *ihc.words, *["--json"] * json_wanted)
    assert code == 130
    assert "Interrupted." in err
    if json_wanted:
        assert json.loads(out)["error"]["exit_code"] == 130
    else:
        assert out == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Much of what a command imports late makes classes with exec().
INTERRUPTED_WITHIN_EXEC = """
import sys
from pathosam_qupath import cli

def app(**_):
    exec("raise KeyboardInterrupt")

cli.app = app
sys.argv[1:] = []
cli.main()
"""


def test_ctrl_c_within_exec_gives_the_exit_code_of_an_interruption(tmp_path):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_WITHIN_EXEC)
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130
    assert "Interrupted." in done.stderr


def test_an_unknown_option_is_a_usage_error(command):
    assert command("segment", "--no-such-option")[0] == 2


def test_some_failures_and_only_failures_have_codes_of_their_own(ihc, command):
    code, out, _ = command("segment", *ihc.words, "--mpp", MPP, "--device", "cpu")
    assert code == 7
    assert "failed" in out
    assert command("segment", *ihc.words, "--images", "fluor*")[0] == 4


def test_exit_codes_of_several_results():
    missing = ImageError("a", "b", "c")
    assert exit_code([]) == 0
    assert exit_code([None, None]) == 0
    assert exit_code([missing, missing]) == 4
    assert exit_code([missing, None]) == 7
