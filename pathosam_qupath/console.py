"""Progress on stderr, JSON on stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

    from pathosam_qupath.batch import Report, RunProgress
    from pathosam_qupath.corrections.evaluation import ImageResult
    from pathosam_qupath.corrections.training import TrainingProgress
    from pathosam_qupath.model.registry import Progress as DownloadProgress

_R = TypeVar("_R")


@runtime_checkable
class Summarized(Protocol):
    """A result that holds more than a machine wants to read."""

    def summary(self) -> dict[str, object]:
        """The result in words and numbers."""


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
def run_progress() -> Iterator[Report]:
    """A progress bar over a run's area with tiles, nuclei and time left; on stderr."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = err()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("planning", total=1.0, counts="")

    def report(p: RunProgress) -> None:
        where = f"image {p.image}/{p.images} {p.name}"
        counts = f"tile {p.tiles_done}/{p.tiles_total} · {p.nuclei:,} nuclei"
        bar.update(task, completed=p.fraction, description=where, counts=counts)
        if p.finished is not None:
            bar.console.print(_finished_line(p), markup=False)

    with bar:
        yield report


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
    console = err()
    done = 0
    with console.status("loading") as status:

        def progress(result: ImageResult) -> None:
            nonlocal done
            done += 1
            status.update(f"{done} images, last {result.name}: F1 {result.scores.f1_50:.3f}")

        yield progress
