"""Real Groovy 4 and CodeNarc, as the npm package npm-groovy-lint carries them."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
JARS = HERE / "node_modules" / "npm-groovy-lint" / "lib" / "java"
SCRIPTS = HERE.parents[1] / "groovy_scripts"
IMAGES = HERE.parent / "data" / "fixtures" / "0.6.0" / "images"
TINY = HERE.parent / "data" / "golden" / "tiny_ais.pt"
"""A small PathoSAM that answers prompts."""

OLDEST_JAVA, NEWEST_JAVA = 17, 24
"""What Groovy 4.0.26 runs on."""

JAVA_VARIABLE = "PATHOSAM_GROOVY_JAVA"
"""Environment variable with the Java program for the tests, where another should be taken."""
FREE_OF_QUPATH = (
    "Json",
    "PathosamException",
    "Progress",
    "ServerProcess",
    "PathosamClient",
    "Settings",
)
"""Classes that know nothing of QuPath: they are compiled with Groovy alone beside them."""

_REMEDY = "run `npm ci --ignore-scripts` in tests/groovy (python3 run.py setup does it)"


def groovy_jar():
    """Groovy itself, without its module groovy-json: what QuPath 0.6 carries."""
    found = sorted((JARS / "groovy" / "lib").glob("groovy-4.*.jar"))
    return found[0] if found else None


def why_not():
    """Why Groovy cannot run here; None where it can."""
    if groovy_jar() is None:
        return f"no Groovy: {_REMEDY}"
    program = java_program()
    if program is None:
        return f"no Java: install a JDK {OLDEST_JAVA} or newer"
    if not OLDEST_JAVA <= java_version(program) <= NEWEST_JAVA:
        return f"Java {OLDEST_JAVA} to {NEWEST_JAVA} is needed; {JAVA_VARIABLE} can name it"
    return None


def java_program():
    """The Java program of the tests; None where there is none."""
    return os.environ.get(JAVA_VARIABLE) or shutil.which("java")


def java_version(program):
    """The first number of a Java program's version."""
    done = subprocess.run([program, "-version"], capture_output=True, text=True, check=True)
    version = re.search(r'version "(\d+)', done.stderr)
    return int(version[1]) if version else 0


def java(*words, class_path, program=None, options=(), timeout=280):
    """Run a Java program; what it wrote to stdout. An error has what it wrote to stderr."""
    line = [
        program or java_program(),
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Xmx700m",
        *options,
    ]
    line += ["-cp", os.pathsep.join(map(str, class_path)), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, encoding="utf-8")
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def compile_groovy(names, target, *, class_path=()):
    """Compile classes of groovy_scripts/pathosam to a folder."""
    files = [SCRIPTS / "pathosam" / f"{name}.groovy" for name in names]
    words = ["org.codehaus.groovy.tools.FileSystemCompiler", "-d", target, *files]
    java(*words, class_path=[groovy_jar(), *class_path])


def results(output):
    """What a Groovy script found: its lines `name: JSON` as a dictionary."""
    lines = (line.partition(": ") for line in output.splitlines() if re.match(r"\w+: ", line))
    return {name: json.loads(value) for name, _, value in lines}


def end_server(folder):
    """End the server of a state folder, where one is named there."""
    state = Path(folder) / "server.json"
    if state.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(state.read_text())["pid"], signal.SIGTERM)
