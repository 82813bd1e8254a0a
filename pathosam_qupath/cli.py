"""The command line: parse, call one function, show what it gave. No logic lives here.

Heavy imports happen inside the commands, so that ``--help`` answers at once. Results go to
stdout (tables, or JSON with ``--json``), progress and errors to stderr.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Protocol

import typer

from pathosam_qupath import cli_corrections, cli_models, cli_report, cli_server
from pathosam_qupath.cli_options import (
    Backend,
    BackendOption,
    CheckpointOption,
    DecoderOption,
    DeviceOption,
    ExactOption,
    ExportFormat,
    ImagesOption,
    JsonOption,
    Mode,
    ModelOption,
    ModeOption,
    MppOption,
    PathMapOption,
    ProjectArgument,
    SchedulerOption,
    SemanticOption,
    WorkersOption,
)
from pathosam_qupath.errors import PathosamError, UsageError

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import NucleusModel
    from pathosam_qupath.qupath.project import Project

EXIT_CODES = """\
Exit codes: 0 all went well · 1 something unexpected · 2 an option or argument that cannot be \
used · 3 the project or one of its files · 4 an image · 5 the model · 6 a run's record · \
7 some images failed, the others are done (the table says which) · 8 Dask's scheduler or workers · \
130 interrupted."""
SOME_FAILED = 7
INTERRUPTED = 130

app = typer.Typer(
    name="pathosam-qupath",
    help="Segment nuclei inside the annotations of a QuPath project and write them back as "
    "classified detections.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_models.app)
app.command("serve")(cli_server.serve)
app.command()(cli_report.report)
app.add_typer(cli_corrections.app)
app.command()(cli_corrections.finetune)


class _Outcome(Protocol):
    """An error or a record of what happened to an image."""

    @property
    def exit_code(self) -> int: ...


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from pathosam_qupath import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def inspect(
    project: ProjectArgument,
    images: ImagesOption = [],  # noqa: B006
    mpp: MppOption = None,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """List images and annotations: what can be segmented, and why not."""
    from pathosam_qupath.console import show
    from pathosam_qupath.inspect_project import inspect_project
    from pathosam_qupath.tables import entries_table

    with open_as_told(project, backend, path_map) as opened:
        reports = inspect_project(opened, images=images, mpp=mpp)
    show(reports, entries_table, as_json)


@app.command()
def segment(
    project: ProjectArgument,
    images: ImagesOption = [],  # noqa: B006
    annotations: Annotated[
        list[str],
        typer.Option(
            metavar="CLASS|NAME|all",
            help="Annotations by class (derived classes too) or name; repeat. `all` is every "
            "annotation but those of class Ignore*, whose area is always cut out.",
        ),
    ] = ["all"],  # noqa: B006
    whole_image: Annotated[
        bool, typer.Option("--whole-image", help="The whole image instead of annotations.")
    ] = False,
    model: ModelOption = "bundled",
    checkpoint: CheckpointOption = None,
    decoder: DecoderOption = None,
    semantic: SemanticOption = None,
    exact: ExactOption = False,
    mode: ModeOption = Mode.ais,
    device: DeviceOption = "auto",
    scheduler: SchedulerOption = None,
    workers: WorkersOption = None,
    mpp: MppOption = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the model's classes are called in the project: JSON, or lines "
            "`model class = project class`.",
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep/--replace",
            help="Keep the nuclei of earlier runs, or replace those that nobody edited. Objects "
            "that this tool did not make are never touched.",
        ),
    ] = False,
    replace_edited: Annotated[
        bool,
        typer.Option("--replace-edited", help="Replace edited nuclei of earlier runs too."),
    ] = False,
    tissue: Annotated[
        str,
        typer.Option(
            metavar="auto|off|GEOJSON",
            help="Leave glass out: `auto` looks for tissue in whole images (a picture in the "
            "run's folder shows what it found); a GeoJSON file, or a folder with one per image, "
            "says where it is.",
        ),
    ] = "auto",
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|ID|last|no",
            help="Go on with a run that was cut off. `auto` does where it is the project's last "
            "run and was begun by the same command; `no` begins a new one.",
        ),
    ] = "auto",
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Treat the images again that failed in the last run."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")
    ] = False,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Segment the nuclei inside annotations and write them into the project.

    Ctrl-C ends the run after the block at hand, a second one at once; the same command then
    goes on from there, and does so after a crash too.
    """
    from pathosam_qupath.batch import run
    from pathosam_qupath.block_workers import ModelChoice, block_workers
    from pathosam_qupath.console import (
        planning_progress,
        run_progress,
        show,
        tell_plan,
        tell_stopping,
    )
    from pathosam_qupath.estimates import calibrated_rate, earlier_rate, estimate
    from pathosam_qupath.interruption import stop_on_interrupt
    from pathosam_qupath.model.prompts import promptable
    from pathosam_qupath.run_plan import RunOptions, plan_run
    from pathosam_qupath.segmentation.classes import read_class_map
    from pathosam_qupath.tables import plans_table, run_table

    if keep and replace_edited:
        raise UsageError(
            "--keep --replace-edited", "one keeps and the other replaces", "Leave one of them out."
        )
    if checkpoint is not None and model != "bundled":
        raise UsageError("--model --checkpoint", "both name a model", "Leave one of them out.")
    options = RunOptions(
        images=tuple(images),
        annotations=tuple(annotations),
        whole_image=whole_image,
        mpp=mpp,
        mode=mode.value,
        policy="keep" if keep else "replace",
        replace_edited=replace_edited,
        tissue=tissue,
    )
    with open_as_told(project, backend, path_map) as opened:
        with planning_progress() as looking:
            plans = plan_run(opened, options, looking=looking)
        rate = earlier_rate(opened.path.parent, model, None if device == "auto" else device)
        elsewhere = scheduler is not None or workers is not None
        if dry_run:
            if rate is None and model == "bundled" and checkpoint is None:
                rate = calibrated_rate(load_as_told(model, device))
                if elsewhere:
                    rate = replace(rate, source=f"{rate.source} in this process, without workers")
            show(estimate(plans, rate), plans_table, as_json)
            raise typer.Exit(exit_code(plan.error for plan in plans))
        chosen = model if checkpoint is None else checkpoint.resolve()
        choice = ModelChoice.of(chosen, device, decoder, semantic, exact=exact)
        loaded = load_as_told(
            choice.name_or_path,
            "cpu" if elsewhere else device,
            decoder=choice.decoder,
            semantic=choice.semantic,
            exact=exact,
        )
        if mode is Mode.apg:
            promptable(loaded)
        if classes is not None:
            options = replace(options, class_map=read_class_map(classes, loaded.info.classes))
        known_device = None if elsewhere else loaded.device
        rate = earlier_rate(opened.path.parent, loaded.info.name, known_device)
        with block_workers(loaded, choice, scheduler, workers) as computing:
            tell_plan(estimate(plans, rate or computing.rate()), opened.path.parent)
            with (
                run_progress() as report,
                stop_on_interrupt(tell_stopping) as stop,
            ):
                record = run(
                    opened,
                    loaded,
                    options,
                    plans,
                    report=report,
                    resume=None if resume == "no" else resume,
                    retry_failed=retry_failed,
                    stop=stop,
                    workers=computing,
                )
    stopped = record.manifest.finished is None
    if not (stopped and as_json):
        show(record.manifest, run_table, as_json)
    raise typer.Exit(INTERRUPTED if stopped else exit_code(record.manifest.entries))


@app.command()
def export(
    project: ProjectArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    kind: Annotated[ExportFormat, typer.Option("--format")] = ExportFormat.geojson,
    images: ImagesOption = [],  # noqa: B006
    gz: Annotated[bool, typer.Option("--gz", help="Write .geojson.gz.")] = False,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Write annotations and detections, one file or two per image."""
    from pathosam_qupath.console import show
    from pathosam_qupath.export import export_project
    from pathosam_qupath.tables import exports_table

    with open_as_told(project, backend, path_map) as opened:
        exported = export_project(opened, out, kind.value, images=images, gz=gz)
    show(exported, exports_table, as_json)
    raise typer.Exit(exit_code(exported))


@app.command()
def runs(
    project: ProjectArgument,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """List the runs that a project remembers."""
    from pathosam_qupath.console import show
    from pathosam_qupath.run_record import open_run, run_ids
    from pathosam_qupath.tables import runs_table

    with open_as_told(project, backend, path_map) as opened:
        folder = opened.path.parent
    manifests = [open_run(folder, run).manifest for run in run_ids(folder)]
    show(manifests, runs_table, as_json)


@app.command()
def rollback(
    project: ProjectArgument,
    run: Annotated[str, typer.Option(metavar="ID", help="The run's id, its beginning, or last.")],
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Undo a run: the old files back where nothing else changed, else its own nuclei out."""
    from pathosam_qupath.console import show
    from pathosam_qupath.rollback import roll_back
    from pathosam_qupath.tables import rollback_table

    with open_as_told(project, backend, path_map) as opened:
        results = roll_back(opened, run)
    show(results, rollback_table, as_json)
    raise typer.Exit(exit_code(results))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Working folder.")] = Path("demo-output"),
    model: ModelOption = "bundled",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Segment a copy of the example project; leaves a picture and a table."""
    from pathosam_qupath.console import run_progress, show
    from pathosam_qupath.demo import run_demo
    from pathosam_qupath.tables import demo_table

    loaded = load_as_told(model, device)
    with run_progress() as report:
        done = run_demo(out, loaded, report=report)
    show(done, demo_table, as_json)
    raise typer.Exit(exit_code(done.manifest.entries))


@app.command()
def doctor(model: ModelOption = "bundled", as_json: JsonOption = False) -> None:
    """Look at Python, torch, the device, QuPath, Java and the models."""
    from pathosam_qupath.console import show
    from pathosam_qupath.doctor import examine
    from pathosam_qupath.tables import checks_table

    checks = examine(model)
    show(checks, checks_table, as_json)
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)


@app.command()
def train(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The run's configuration, JSON.")],
    data: Annotated[list[Path], typer.Option(metavar="DIR", help="Folder of samples; repeat.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the training run.")],
    initial: Annotated[
        Path | None, typer.Option(metavar="WEIGHTS", help="Start from these weights.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a compact model; called again, it goes on from its last checkpoint."""
    from pathosam_qupath.console import print_json, training_progress
    from pathosam_qupath.corrections.training import train as train_model
    from pathosam_qupath.corrections.training_config import read_training_config
    from pathosam_qupath.model import choose_device

    settings = read_training_config(config)
    with training_progress() as progress:
        best = train_model(
            settings, data, out, progress=progress, device=choose_device(device), initial=initial
        )
    print_json({"weights": str(best)}) if as_json else typer.echo(f"Weights: {best}")


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with images and labels.")],
    model: ModelOption = "bundled",
    device: DeviceOption = "auto",
    mpp: Annotated[
        float, typer.Option(metavar="µm/px", help="Pixel size of images without one.")
    ] = 0.25,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Also prompt each nucleus: mean IoU of the answers.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a model's nuclei with outlined ones: F1, mSA, AJI, PQ, class accuracy."""
    from pathosam_qupath.console import evaluation_progress, show
    from pathosam_qupath.corrections.evaluation import evaluate as evaluate_model
    from pathosam_qupath.corrections.prompt_evaluation import with_prompts
    from pathosam_qupath.tables import evaluation_table

    loaded = load_as_told(model, device)
    with evaluation_progress() as progress:
        report = evaluate_model(loaded, data, mpp, progress=progress)
    if prompts:
        report = with_prompts(report, loaded, data, mpp)
    show(report, evaluation_table, as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; no traceback for what a person can mend."""
    alone = arguments is None
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        _run(words, as_json=as_json, alone=alone)
    except KeyboardInterrupt:  # once more, while it was ending
        _interrupted(as_json=as_json, alone=alone)


def _run(words: list[str], *, as_json: bool, alone: bool) -> NoReturn:
    """Run the command line and exit, unless Ctrl-C comes while that ends."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        # Alone, Typer says what is wrong with an option in its own way, which is not JSON.
        code = app(args=words, prog_name="pathosam-qupath", standalone_mode=not as_json)
    except PathosamError as error:
        _fail(error, as_json=as_json)
    except KeyboardInterrupt:
        _interrupted(as_json=as_json, alone=alone)
    except SystemExit as leaving:
        # Typer turns Ctrl-C into exit code 130 without a word.
        if leaving.code == INTERRUPTED:
            _interrupted(as_json=as_json, alone=alone)
        raise
    except Exception as error:
        if not as_json:
            raise
        _fail_otherwise(error)
    if code == INTERRUPTED:
        _interrupted(as_json=as_json, alone=alone)
    raise SystemExit(code)


def exit_code(results: Iterable[_Outcome | None]) -> int:
    """0, or the one failure's own code where every image failed alike, or ``SOME_FAILED``.

    ``results`` are errors (None: went well) or records with an ``exit_code``.
    """
    codes = [0 if result is None else int(result.exit_code) for result in results]
    if not any(codes):
        return 0
    return codes[0] if len(set(codes)) == 1 else SOME_FAILED


def open_as_told(project: Path, backend: Backend, path_map: Sequence[str]) -> Project:
    """Open a project with what its options say."""
    from pathosam_qupath.qupath.project import PathMap, open_project

    return open_project(project, backend.value, path_map=PathMap.parse(path_map))


def load_as_told(
    model: str | Path,
    device: str,
    *,
    decoder: Path | None = None,
    semantic: Path | None = None,
    exact: bool = False,
) -> NucleusModel:
    """Load the model that options name; shows progress where it is downloaded."""
    from pathosam_qupath.console import download_progress
    from pathosam_qupath.model import load_model

    with download_progress() as progress:
        return load_model(
            model, device, decoder=decoder, semantic=semantic, exact=exact, progress=progress
        )


def _fail(error: PathosamError, *, as_json: bool) -> NoReturn:
    from pathosam_qupath.console import err, print_json

    if as_json:
        # By name: Typer hangs a note of its own on exceptions that pass through it.
        said = {"subject": error.subject, "cause": error.cause, "remedy": error.remedy}
        print_json({"error": {**said, "exit_code": error.exit_code}})
    err().print(f"Error: {error}", style="red", markup=False)
    raise SystemExit(error.exit_code)


def _fail_otherwise(error: Exception) -> NoReturn:
    """Say as JSON what is no error of ours: Typer's about the words given, or a defect."""
    from pathosam_qupath.console import print_json

    message = getattr(error, "format_message", None)
    if message is not None:
        remedy = "Add --help to the command to see its options."
        _fail(UsageError("command line", message(), remedy), as_json=True)
    said = {
        "subject": type(error).__name__,
        "cause": str(error),
        "remedy": "This error was not foreseen; stderr has the details.",
    }
    print_json({"error": {**said, "exit_code": 1}})
    raise error


def _interrupted(*, as_json: bool, alone: bool) -> NoReturn:
    if alone:  # the process is this command's, and ends already, whatever comes
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Where Ctrl-C left an exec() of text (as dataclasses do at import), `python -m` would
        # end by SIGINT in place of our exit code; another exec() makes CPython forget that.
        exec("")
    done = "What was finished is kept, images that were not are as they were"
    again = "run the same command again to go on."
    if as_json:
        from pathosam_qupath.console import print_json

        said = {"subject": "interrupted", "cause": done, "remedy": again.capitalize()}
        print_json({"error": {**said, "exit_code": INTERRUPTED}})
    sys.stderr.write(f"\nInterrupted. {done}; {again}\n")
    raise SystemExit(INTERRUPTED)


def _terminated(number: int, frame: object) -> None:
    """A polite kill is treated like Ctrl-C, so that files are closed and threads end."""
    raise KeyboardInterrupt
