"""Jobs over a whole project: our own command line as a process of its own.

What such a command does to a project's files is settled there, its end cannot take the
server along, and its memory goes back to the system. A cancelled one is interrupted as by
Ctrl-C, so that images that are finished stay written; if it does not end, it is killed.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pathosam_qupath.errors import PathosamError
from pathosam_qupath.run_record import open_run, run_ids
from pathosam_qupath.server.access import Roots
from pathosam_qupath.server.job import CancelledError, Job, new_job_id
from pathosam_qupath.server.jobs import Jobs
from pathosam_qupath.server.problems import ProblemError
from pathosam_qupath.server.schemas import (
    ClassNames,
    CollectJob,
    FinetuneJob,
    ProjectJob,
    RerunJob,
    RollbackJob,
    SuggestJob,
)
from pathosam_qupath.server.warm_model import WarmModel

Request = ProjectJob | RollbackJob | CollectJob | FinetuneJob | SuggestJob | RerunJob

_LOOK = 0.2
"""Seconds between two looks at the process."""

_MANIFEST_LOOK = 1.0
"""Seconds between two looks at the run's record."""

_GRACE = (5.0, 15.0)
"""Seconds that a process has to end after the first interruption, and after the second."""

_SOME_FAILED = 7

_COUNTED = re.compile(
    r"(?P<what>[^·]*\b(?:step|field|tile|image)) (?P<done>\d+)(?:/| of )(?P<total>\d+)"
)
"""How a command says how far it is, see :mod:`pathosam_qupath.console`."""
_TAIL = 4096
"""Bytes from the end of what a command says, in which the newest of such lines is looked for."""


def project_job(request: Request, jobs: Jobs, roots: Roots, warm: WarmModel) -> Job:
    """The job that a request asks for, not yet submitted.

    Raises
    ------
    ProblemError : the project is outside the roots, or the model is none that may be named.
    """
    project = roots.check_project(request.project)
    commands = _commands(request, project, warm)
    folder = project.parent
    watch = _run_watcher(folder, set(run_ids(folder)))
    classes = request.classes if isinstance(request, ProjectJob) else None
    return Job(
        id=new_job_id(),
        kind=request.kind,
        lane="project",
        about=str(project),
        label=folder.name,
        work=lambda job: _work(job, commands, classes, jobs, watch),
    )


def _commands(request: Request, project: Path, warm: WarmModel) -> list[list[str]]:
    """Words after ``pathosam-qupath``; values are joined to their option so none can be one."""
    at = [str(project), "--json"]
    if isinstance(request, RollbackJob):
        return [["rollback", *at, f"--run={request.run}"]]
    if isinstance(request, CollectJob):
        return [["corrections", "collect", *at]]
    model = request.model or warm.name
    if model not in warm.allowed():
        raise ProblemError(
            404, "unknown_model", f"model {model!r}", "no model has this name", "See /v1/models."
        )
    device = f"--device={warm.device_name}"
    if isinstance(request, FinetuneJob):
        data = project.parent / "pathosam" / "training"
        learn = [f"--data={data}", f"--name={request.name}", f"--base={model}"]
        return [
            ["corrections", "export", *at, f"--out={data}", f"--model={model}"],
            ["finetune", "--json", *learn, f"--what={request.what}", device],
        ]
    told_mpp = [f"--mpp={request.mpp}"] if request.mpp is not None else []
    if isinstance(request, SuggestJob):
        suggest = ["corrections", "suggest", *at, f"-n{request.count}"]
        return [[*suggest, f"--model={model}", device, *told_mpp]]
    if isinstance(request, RerunJob):
        rerun = ["corrections", "rerun", *at, f"--threshold={request.threshold}"]
        return [[*rerun, f"--model={model}", device, *told_mpp]]
    words = ["segment", *at, f"--model={model}", device]
    words += [f"--images={word}" for word in request.images]
    words += [f"--annotations={word}" for word in request.annotations]
    words += ["--whole-image"] if request.whole_image else []
    words += told_mpp
    words += ["--keep"] if request.keep else []
    words += ["--replace-edited"] if request.replace_edited else []
    return [words]


def _work(
    job: Job,
    commands: list[list[str]],
    classes: ClassNames | None,
    jobs: Jobs,
    watch: Callable[[], dict[str, Any]],
) -> Mapping[str, object] | None:
    """Run commands one after the other; the last one's output is the job's."""
    result = None
    with tempfile.TemporaryDirectory(prefix="pathosam-") as name:
        folder = Path(name)
        for words in commands:
            if classes is not None:
                (folder / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
                words = [*words, f"--classes={folder / 'classes.json'}"]
            result = _run(job, words, folder, jobs, watch)
    return result


def _run(
    job: Job, words: list[str], folder: Path, jobs: Jobs, watch: Callable[[], dict[str, Any]]
) -> Mapping[str, object] | None:
    """Run a command and follow it; in the lane's thread."""
    with (folder / "stdout").open("w+b") as out, (folder / "stderr").open("w+b") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "pathosam_qupath", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            **_own_group(),
        )
        try:
            _follow(process, job, jobs, lambda: {**_said(folder / "stderr"), **watch()})
        finally:
            _end(process)
    said, complaint = (
        (folder / name).read_text(encoding="utf-8", errors="replace")
        for name in ("stdout", "stderr")
    )
    return _outcome(job, process.returncode, said, complaint)


def _own_group() -> dict[str, Any]:
    """Keep Ctrl-C in the server's terminal from reaching the process before the server."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _follow(
    process: subprocess.Popen[bytes], job: Job, jobs: Jobs, watch: Callable[[], dict[str, Any]]
) -> None:
    looked = 0.0
    while process.poll() is None:
        now = time.monotonic()
        if now - looked >= _MANIFEST_LOOK:
            looked = now
            jobs.update(job, **{"stage": "running", **watch()})
        if job.cancelled.wait(_LOOK):
            raise CancelledError


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process that still runs, once more if that does not end it, then kill it."""
    interrupt = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)  # the former on Windows
    for seconds in _GRACE:
        if process.poll() is not None:
            return
        process.send_signal(interrupt)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    if process.poll() is None:
        process.kill()
        process.wait()


def _outcome(job: Job, code: int, said: str, complaint: str) -> Mapping[str, object] | None:
    """The command's JSON, or the problem that it met."""
    try:
        result = json.loads(said) if said.strip() else None
    except ValueError:
        result = None
    error = result.get("error") if isinstance(result, dict) else None
    if code in (0, _SOME_FAILED) and result is not None and error is None:
        if code == _SOME_FAILED:
            job.note = "Some images failed; the result says which."
        job.run = _run_id(result)
        return {"output": result}
    if isinstance(error, dict):
        subject, cause, remedy = (str(error.get(k, "")) for k in ("subject", "cause", "remedy"))
        raise ProblemError(422, "command", subject, cause, remedy)
    if result is not None:
        job.result = {"output": result}
    if result is not None and job.kind == "finetune":
        job.note = "The new model is no better than the one that it was made from; not adopted."
        return job.result
    last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "no message")
    raise ProblemError(
        422 if result is not None else 500,
        "command",
        f"pathosam-qupath {job.kind}, exit code {code}",
        (_message(result) or last)[:500],
        "The job's result says more."
        if result is not None
        else "Look at `pathosam-qupath doctor`.",
    )


def _run_id(result: object) -> str | None:
    """The run that a command made: it gives the run's manifest, or has it beside other things."""
    run = result.get("run") if isinstance(result, dict) else None
    return run.get("run") if isinstance(run, dict) else run


def _message(result: object) -> str | None:
    """The first image's message in a command's output."""
    entries = result.get("entries") if isinstance(result, dict) else result
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("exit_code") and entry.get("message"):
            return str(entry["message"])
    return None


def _said(file: Path) -> dict[str, Any]:
    """How far a command says it is: what it counts, and the share of it that is done."""
    with file.open("rb") as said:
        said.seek(max(0, file.stat().st_size - _TAIL))
        lines = said.read().decode("utf-8", "replace").splitlines()
    found = next((m for m in map(_COUNTED.match, reversed(lines)) if m is not None), None)
    if found is None:
        return {}
    done, total = int(found["done"]), int(found["total"])
    # The tiles of one image of many say little of the whole.
    share = None if found["what"].endswith("tile") else min(0.99, done / max(1, total))
    return {"stage": f"{found['what']} {done} of {total}", "fraction": share}


def _run_watcher(folder: Path, before: set[str]) -> Callable[[], dict[str, Any]]:
    """A function that tells how far the run is that was not there before."""

    def look() -> dict[str, Any]:
        new = [run for run in run_ids(folder) if run not in before]
        if not new:
            return {}
        try:
            entries = open_run(folder, new[-1]).manifest.entries
        except PathosamError:
            return {}  # it is just being written
        done = sum(entry.state not in ("planned", "predicted") for entry in entries)
        return {
            "stage": "running",
            "images_done": done,
            "images_total": len(entries),
            "nuclei": sum(entry.nuclei for entry in entries),
            "fraction": done / len(entries) if entries else None,
        }

    return look
