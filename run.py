#!/usr/bin/env python3
"""Set up this clone and run one thing in it, with nothing but Python installed.

    python3 run.py demo      segment the example project, leave a picture and a table
    python3 run.py test      run the tests (further words go to pytest)
    python3 run.py lint      ruff and mypy, and CodeNarc for the Groovy scripts
    python3 run.py setup     only set up

The first call makes a virtual environment in ``.venv`` and installs the package there;
later calls reuse it until ``pyproject.toml`` changes. An existing ``.venv`` is used as
it is, so a particular build of torch can be put there beforehand. Where npm is found, set-up
also fetches Groovy and CodeNarc (``tests/groovy/package.json``) for the tests and the lint of
``groovy_scripts``; where npm or Java is missing, those are left out and it is said so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
STAMP = ENVIRONMENT / "pathosam-qupath.stamp"
OLDEST = (3, 10)
GROOVY = ROOT / "tests" / "groovy"
REQUIRE_GROOVY = "PATHOSAM_REQUIRE_GROOVY"
JARS = GROOVY / "node_modules" / "npm-groovy-lint" / "lib" / "java"


def main(words: list[str]) -> int:
    """Run the command that ``words`` name; returns its exit code."""
    if not words or words[0] not in ("demo", "test", "lint", "setup"):
        print(__doc__)
        return 0 if words[:1] in ([], ["-h"], ["--help"]) else 2
    if sys.version_info < OLDEST:
        print(
            f"Python {sys.version.split()[0]} is too old: pathosam-qupath needs "
            f"{OLDEST[0]}.{OLDEST[1]} or newer. Run this file with a newer python3."
        )
        return 2
    set_up()
    command, rest = words[0], words[1:]
    if command != "demo":
        set_up_groovy()
    if command == "demo":
        return call([str(BIN / "pathosam-qupath"), "demo", *rest])
    if command == "test":
        return call([str(BIN / "python"), "-m", "pytest", *rest])
    if command == "lint":
        steps = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"])
        codes = [call([str(BIN / "python"), "-m", *step]) for step in steps]
        return max(*codes, lint_groovy())
    return 0


def set_up() -> None:
    """Make ``.venv`` and install the package with what its tests need, once."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if STAMP.is_file() and STAMP.read_text(encoding="ascii").strip() == wanted:
        return
    if not (BIN / ("python.exe" if os.name == "nt" else "python")).exists():
        print(f"Making a virtual environment in {ENVIRONMENT.name} …", flush=True)
        try:
            venv.create(ENVIRONMENT, with_pip=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"{ENVIRONMENT}: Python could not make a virtual environment ({error}). "
                "On Debian and Ubuntu: apt install python3-venv, remove .venv, try again."
            ) from error
    print("Installing pathosam-qupath and what it needs (torch is large: minutes) …", flush=True)
    install = [str(BIN / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    code = call([*install, "--quiet", "--editable", ".[dev]"])
    if code:
        raise SystemExit(
            "pip could not install pathosam-qupath (its message is above). "
            "Check the network or proxy (HTTPS_PROXY), then run the same command again."
        )
    STAMP.write_text(wanted + "\n", encoding="ascii")


def set_up_groovy() -> None:
    """Fetch Groovy and CodeNarc, once, where npm is there."""
    stamp = GROOVY / "node_modules" / "package-lock.stamp"
    wanted = hashlib.sha256((GROOVY / "package-lock.json").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="ascii").strip() == wanted:
        return
    npm = shutil.which("npm")
    if npm is None:
        return
    print("Fetching Groovy and CodeNarc for the tests of the Groovy scripts …", flush=True)
    words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    if subprocess.run([npm, *words], cwd=GROOVY, check=False).returncode:
        print("npm could not fetch them (see above); the Groovy scripts stay untested.")
        return
    stamp.write_text(wanted + "\n", encoding="ascii")


def lint_groovy() -> int:
    """Run CodeNarc over the Groovy scripts; where it cannot run, 0 unless it is required."""
    java = shutil.which("java")
    if java is None or not JARS.is_dir():
        print("CodeNarc was not run: it needs Java 17 and npm (then `python3 run.py setup`).")
        return int(REQUIRE_GROOVY in os.environ)
    path = os.pathsep.join([str(JARS / "*"), str(JARS / "groovy" / "lib" / "*")])
    return call(
        [java, "-XX:TieredStopAtLevel=1", "-cp", path, "org.codenarc.CodeNarc"]
        + ["-basedir=groovy_scripts", "-includes=**/*.groovy", "-report=console"]
        + [f"-rulesetfiles=file:{(GROOVY / 'codenarc.groovy').as_posix()}"]
        + [f"-maxPriority{number}Violations=0" for number in (1, 2, 3)]
    )


def call(command: list[str]) -> int:
    """Run a command in the repository's root; Ctrl-C reaches it and is not an error here."""
    process = subprocess.Popen(command, cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
