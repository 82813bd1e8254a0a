"""Real Groovy 4 and CodeNarc, as the npm package npm-groovy-lint carries them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
JARS = HERE / "node_modules" / "npm-groovy-lint" / "lib" / "java"
SCRIPTS = HERE.parents[1] / "groovy_scripts"
OLDEST_JAVA = 17
FREE_OF_QUPATH = ("Json", "PathosamException", "Progress", "ServerProcess", "PathosamClient")
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
    java = shutil.which("java")
    if java is None:
        return f"no Java: install a JDK {OLDEST_JAVA} or newer"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < OLDEST_JAVA:
        return f"Java {OLDEST_JAVA} or newer is needed, found {said.splitlines()[0]}"
    return None


def java(*words, class_path, program="java", options=(), timeout=280):
    """Run a Java program; what it wrote to stdout. An error has what it wrote to stderr."""
    line = [program, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx700m", *options]
    line += ["-cp", os.pathsep.join(map(str, class_path)), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, encoding="utf-8")
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def compile_groovy(names, target, *, class_path=(), program="java"):
    """Compile classes of groovy_scripts/pathosam to a folder."""
    files = [SCRIPTS / "pathosam" / f"{name}.groovy" for name in names]
    words = ["org.codehaus.groovy.tools.FileSystemCompiler", "-d", target, *files]
    java(*words, class_path=[groovy_jar(), *class_path], program=program)


def results(output):
    """What a Groovy script found: its lines `name: JSON` as a dictionary."""
    lines = (line.partition(": ") for line in output.splitlines() if re.match(r"\w+: ", line))
    return {name: json.loads(value) for name, _, value in lines}
