"""Progress on stderr, JSON on stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.markup import escape
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

    from pathosam_qupath.batch import Report, RunProgress
    from pathosam_qupath.corrections.evaluation import ImageResult
    from pathosam_qupath.corrections.training import TrainingProgress
    from pathosam_qupath.estimates import Estimate
    from pathosam_qupath.model.registry import Progress as DownloadProgress

_R = TypeVar("_R")


@runtime_checkable
class Summarized(Protocol):
    """A result that holds more than a machine wants to read."""

    def summary(self) -> dict[str, object]:
        """The result in words and numbers."""


_LOG_EVERY = 30.0
"""Seconds between lines of progress where there is no terminal."""

_COUNT_EVERY = 2.0
"""Seconds between lines that count something there; the server reads how far a command is."""

_FILE_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""


def out() -> Console:
    """The console for results."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


def err() -> Console:
    """The console for progress and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def show(result: _R, table: Callable[[_R], RenderableType], as_json: bool) -> None:
    """Write a result to stdout: as a table, or as JSON."""
    if as_json:
        print_json(result)
    else:
        out().print(table(result))


def print_json(value: object) -> None:
    """Write a value, dataclasses included, as JSON to stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False, default=str) + "\n")


def plain(value: object) -> object:
    """Dataclasses to dicts (or to their summary), what is no number to null, at any depth."""
    if isinstance(value, Summarized):
        return plain(value.summary())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@contextmanager
def planning_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Which image is being looked at; on stderr, in a log every ``_LOG_EVERY`` seconds."""
    console = err()
    logged = time.monotonic()
    with console.status("planning") as status:

        def looking(number: int, images: int, name: str) -> None:
            nonlocal logged
            said = f"planning: image {number}/{images} {name}"
            status.update(escape(said))
            if not console.is_terminal and time.monotonic() - logged >= _LOG_EVERY:
                logged = time.monotonic()
                console.print(said, markup=False)

        yield looking


@contextmanager
def run_progress() -> Iterator[Report]:
    """A bar over a run's area with tiles, nuclei and time left; on stderr.

    Where there is no terminal (a log), a line at the start, whenever an image is done, and
    every ``_LOG_EVERY`` seconds.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = err()
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("planning", total=1.0, counts="", left="")
    logged = 0.0

    def report(p: RunProgress) -> None:
        nonlocal logged
        where = f"image {p.image}/{p.images} {p.name}"
        counts = f"tile {p.tiles_done}/{p.tiles_total} · {p.nuclei:,} nuclei"
        left = "" if p.seconds_left is None else f"{duration_text(p.seconds_left)} left"
        bar.update(task, completed=p.fraction, description=where, counts=counts, left=left)
        if p.note is not None:
            bar.console.print(p.note, markup=False)
        if p.finished is not None:
            bar.console.print(_finished_line(p), markup=False)
        elif not console.is_terminal and time.monotonic() - logged >= _LOG_EVERY:
            logged = time.monotonic()
            words = [f"{100 * p.fraction:.1f} %", where, counts, left]
            console.print(" · ".join(word for word in words if word), markup=False)

    with bar:
        yield report


def tell_plan(estimates: Sequence[Estimate], folder: Path) -> None:
    """Say what a run will take, and whether the disk may be too small; on stderr."""
    from pathosam_qupath.disk_space import free_bytes, size_text
    from pathosam_qupath.tables import plan_text

    console = err()
    console.print(plan_text(estimates), markup=False)
    free = free_bytes(folder)
    if free < sum(e.disk for e in estimates):
        console.print(
            f"The disk has {size_text(free)} left, which may not be enough; an image that does "
            "not fit will fail, and --retry-failed treats it again.",
            style="yellow",
            markup=False,
        )


def tell_stopping() -> None:
    """Say that the first Ctrl-C was understood."""
    sys.stderr.write("\nStopping after the block at hand; Ctrl-C again stops at once.\n")


def duration_text(seconds: float) -> str:
    """A duration as a person reads it: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _finished_line(p: RunProgress) -> str:
    done = p.finished
    if done is None:
        return ""
    said = f"{done.nuclei:,} nuclei" if done.state == "written" else done.state
    note = f" ({done.message})" if done.message else ""
    return f"[{p.image}/{p.images}] {done.name}: {said} in {done.seconds:.1f} s{note}"


@contextmanager
def download_progress() -> Iterator[DownloadProgress]:
    """A bar per file that is being downloaded, or a line where there is no terminal; on stderr."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = err()
    bar = Progress(
        TextColumn("downloading {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def progress(name: str, there: int, total: int | None) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total)
            if not console.is_terminal:
                size = "" if total is None else f" ({total / 1e6:,.0f} MB)"
                console.print(f"downloading {name}{size}", markup=False)
        bar.update(tasks[name], completed=there, total=total)

    with bar:
        yield progress


@contextmanager
def training_progress() -> Iterator[Callable[[TrainingProgress], None]]:
    """One line per validation of a training run; on stderr."""
    console = err()

    def progress(p: TrainingProgress) -> None:
        score = "" if p.score is None else f" · score {p.score:.4f}{' (best)' if p.best else ''}"
        left = p.seconds / max(1, p.step) * (p.steps - p.step)
        console.print(
            f"step {p.step}/{p.steps} · loss {p.loss:.4f}{score} · {left / 60:.0f} min left",
            markup=False,
        )

    yield progress


@contextmanager
def evaluation_progress() -> Iterator[Callable[[ImageResult], None]]:
    """A counter of the images of an evaluation; on stderr."""
    done = 0
    with counting("loading") as tell:

        def progress(result: ImageResult) -> None:
            nonlocal done
            done += 1
            tell(f"{done} images, last {result.name}: F1 {result.scores.f1_50:.3f}")

        yield progress


@contextmanager
def counting(beginning: str) -> Iterator[Callable[[str], None]]:
    """How far something is, in words: one changing line, or lines where there is no terminal."""
    console = err()
    told = time.monotonic()
    with console.status(beginning) as status:

        def tell(words: str) -> None:
            nonlocal told
            status.update(Text(words))
            if not console.is_terminal and time.monotonic() - told >= _COUNT_EVERY:
                told = time.monotonic()
                console.print(words, markup=False)

        yield tell
