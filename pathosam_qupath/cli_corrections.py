"""The ``corrections`` commands: what a person changed, and what to learn from. No logic here."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pathosam_qupath import cli_models
from pathosam_qupath.cli_options import (
    Backend,
    BackendOption,
    DeviceOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    MppOption,
    PathMapOption,
    ProjectArgument,
)

app = typer.Typer(
    name="corrections",
    help="What a person corrected since a run, as a list and as training data.",
    epilog="A region counts as reviewed where its annotation has the class or name `reviewed` or "
    "`PathoSAM: reviewed`, the menu's mark, or was locked since the run.",
    no_args_is_help=True,
)


class Unmarked(str, Enum):
    """Which detections without a mark count as drawn by hand."""

    new = "new"
    all = "all"
    none = "none"


class OnConflict(str, Enum):
    """Whose nuclei count where two projects reviewed the same place."""

    newest = "newest"
    keep = "keep"
    error = "error"


ReviewedOption = Annotated[
    list[str],
    typer.Option(
        "--reviewed",
        metavar="CLASS|NAME|all",
        help="Annotations that were reviewed besides those that are marked so; repeat.",
    ),
]
UnmarkedOption = Annotated[
    Unmarked,
    typer.Option(
        help="Detections that this tool did not mark count as drawn by hand where they are new "
        "since the run and carry no measurements of another tool; or all; or none of them."
    ),
]


@app.command()
def collect(
    project: ProjectArgument,
    run: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Compare with this run (or `last`); default: all runs."),
    ] = None,
    images: ImagesOption = [],  # noqa: B006
    reviewed: ReviewedOption = [],  # noqa: B006
    unmarked: UnmarkedOption = Unmarked.new,
    geojson: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the differences there, to be opened in QuPath."),
    ] = None,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Compare a project with what runs wrote: kept, deleted, reshaped, added, merged, split."""
    from pathosam_qupath.cli import exit_code, open_as_told
    from pathosam_qupath.console import show
    from pathosam_qupath.corrections.collect import CollectOptions
    from pathosam_qupath.corrections.collect import collect as collect_corrections
    from pathosam_qupath.tables_corrections import collected_table

    options = CollectOptions(run, tuple(images), tuple(reviewed), unmarked.value)
    with open_as_told(project, backend, path_map) as opened:
        found = collect_corrections(opened, options)
        if geojson is not None:
            from pathosam_qupath.corrections.differences import write_differences

            write_differences(opened, found, geojson)
    show(found, collected_table, as_json)
    raise typer.Exit(exit_code(found))


@app.command()
def export(
    projects: Annotated[
        list[Path],
        typer.Argument(metavar="PROJECT...", help="Folders of projects or .qpproj files."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The training data; it grows.")],
    model: ModelOption = "bundled",
    images: ImagesOption = [],  # noqa: B006
    reviewed: ReviewedOption = [],  # noqa: B006
    unmarked: UnmarkedOption = Unmarked.new,
    on_conflict: Annotated[
        OnConflict,
        typer.Option(
            help="Where two projects reviewed the same place of a slide: what was saved last "
            "counts, what is in DIR already, or it is an error if they disagree."
        ),
    ] = OnConflict.newest,
    mpp: MppOption = None,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Add the reviewed regions of projects to a folder of training data.

    Crops have the resolution of --model. The folder is what `finetune`, `train` and `evaluate`
    read; COCO's and PathoSAM's layouts lie beside.
    """
    from functools import partial

    from pathosam_qupath.cli import exit_code, load_as_told, open_as_told
    from pathosam_qupath.console import show
    from pathosam_qupath.corrections.collect import CollectOptions
    from pathosam_qupath.corrections.exporting import export_corrections
    from pathosam_qupath.tables_corrections import export_table

    report = export_corrections(
        [partial(open_as_told, project, backend, path_map) for project in projects],
        out,
        mpp=load_as_told(model, "cpu").info.mpp,
        options=CollectOptions(None, tuple(images), tuple(reviewed), unmarked.value),
        image_mpp=mpp,
        on_conflict=on_conflict.value,
    )
    show(report, export_table, as_json)
    raise typer.Exit(exit_code([None, *report.problems]))


@app.command()
def suggest(
    project: ProjectArgument,
    count: Annotated[int, typer.Option("-n", min=1, help="How many regions.")] = 20,
    model: ModelOption = "bundled",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="A second model: where both disagree is worth a look too."
        ),
    ] = None,
    device: DeviceOption = "auto",
    images: ImagesOption = [],  # noqa: B006
    reviewed: ReviewedOption = [],  # noqa: B006
    fields: Annotated[
        int, typer.Option(min=1, help="Fields that the model looks at, at most.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Which fields, where there are more.")] = 0,
    mpp: MppOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Mark what to review next: regions that stand for most of the doubt, as annotations.

    They get the class `PathoSAM: review`; change it to `PathoSAM: reviewed` once it is done.
    Close the project in QuPath before.
    """
    from pathosam_qupath.cli import load_as_told, open_as_told
    from pathosam_qupath.console import counting, show
    from pathosam_qupath.corrections.collect import CollectOptions
    from pathosam_qupath.corrections.suggesting import suggest as suggest_regions
    from pathosam_qupath.tables_corrections import suggestions_table

    with (
        open_as_told(project, backend, path_map) as opened,
        counting("looking at fields") as tell,
    ):
        report = suggest_regions(
            opened,
            load_as_told(model, device),
            count,
            against=None if against is None else load_as_told(against, device),
            options=CollectOptions(None, tuple(images), tuple(reviewed)),
            at_most=fields,
            image_mpp=mpp,
            seed=seed,
            write=not dry_run,
            progress=lambda done, total: tell(f"field {done} of {total}"),
        )
    show(report, suggestions_table, as_json)
    raise typer.Exit(report.exit_code)


@app.command()
def rerun(
    project: ProjectArgument,
    model: Annotated[str, typer.Option(metavar="MODEL", help="The new model.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Compare with this model's nuclei; default: with those that the runs wrote.",
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="A field changes where more than this share of nuclei differs."
        ),
    ] = 0.2,
    device: DeviceOption = "auto",
    images: ImagesOption = [],  # noqa: B006
    reviewed: ReviewedOption = [],  # noqa: B006
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What the model's classes are called; default: as in the last run."
        ),
    ] = None,
    mpp: MppOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    backend: BackendOption = Backend.auto,
    path_map: PathMapOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Segment again with a new model where its nuclei differ from what the runs wrote.

    Reviewed regions and edited nuclei stay as they are. The result is a run that `rollback`
    undoes. Close the project in QuPath before.
    """
    from pathosam_qupath.cli import INTERRUPTED, exit_code, load_as_told, open_as_told
    from pathosam_qupath.console import counting, run_progress, show, tell_stopping
    from pathosam_qupath.corrections.collect import CollectOptions
    from pathosam_qupath.corrections.rerun import RerunOptions, find_changes, segment_changes
    from pathosam_qupath.interruption import stop_on_interrupt
    from pathosam_qupath.segmentation.classes import read_class_map
    from pathosam_qupath.tables_corrections import rerun_table

    new = load_as_told(model, device)
    names = None if classes is None else read_class_map(classes, new.info.classes)
    with open_as_told(project, backend, path_map) as opened:
        with counting("looking for changes") as tell:
            report = find_changes(
                opened,
                new,
                base=None if base is None else load_as_told(base, device),
                collected=CollectOptions(None, tuple(images), tuple(reviewed)),
                options=RerunOptions(threshold, mpp, names),
                looking=lambda image, n, of: tell(f"{image}: tile {n} of {of}"),
            )
        if not dry_run:
            with run_progress() as progress, stop_on_interrupt(tell_stopping) as stop:
                report = segment_changes(opened, new, report, report=progress, stop=stop)
    show(report, rerun_table, as_json)
    if report.manifest is not None and report.manifest.finished is None:
        raise typer.Exit(INTERRUPTED)
    entries = () if report.manifest is None else report.manifest.entries
    raise typer.Exit(exit_code([*report.changes, *entries]))


@cli_models.app.command("compare")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model's name or file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another's.")],
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Images and labels, or an export (its held-out part)."),
    ],
    device: DeviceOption = "auto",
    mpp: Annotated[
        float, typer.Option(metavar="µm/px", help="Pixel size of images without one.")
    ] = 0.25,
    as_json: JsonOption = False,
) -> None:
    """Compare two models: PQ, F1, mSA and class accuracy with 95 % intervals, and a verdict.

    B is worse where a figure loses more than a point or its interval lies below 0, better where
    an interval lies above 0 and no figure is worse.
    """
    from pathosam_qupath.cli import load_as_told
    from pathosam_qupath.console import evaluation_progress, show
    from pathosam_qupath.corrections.comparison import compare_models
    from pathosam_qupath.tables_corrections import comparison_table

    models = load_as_told(a, device), load_as_told(b, device)
    with evaluation_progress() as progress:
        report = compare_models(*models, data, mpp, names=(a, b), progress=progress)
    show(report, comparison_table, as_json)


class What(str, Enum):
    """How much of a model is fine-tuned."""

    class_head = "class-head"
    decoder = "decoder"
    lora = "lora"
    all = "all"


def finetune(
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="What `corrections export` wrote, or samples.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="What the new model is called.")],
    base: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="`bundled`, a fine-tuned model, .safetensors; a published PathoSAM or a "
            "checkpoint of one (for a GPU).",
        ),
    ] = "bundled",
    what: Annotated[
        What,
        typer.Option(
            help="The class head (seconds), the decoder (minutes), or all of it; lora: PathoSAM's "
            "decoder, and its encoder through low-rank paths that are merged afterwards."
        ),
    ] = What.class_head,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Samples that the base was trained on, as half of the crops, against "
            "forgetting. None come with the package; default: `replay` beside the folder of "
            "fine-tuned models, where it exists.",
        ),
    ] = None,
    regression: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Samples on which no figure may lose more than a point: the model goes back "
            "towards its base until that is so. Default: `regression` beside the folder of "
            "fine-tuned models, where it exists.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="At most; default by --what.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.")] = 0,
    device: DeviceOption = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Adopt the model however it compares; its card says so.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model on corrected regions; called again, a killed run goes on.

    The new model is compared with its base on held-out regions and takes its name (--model NAME)
    only where it is no worse; exit code 5 where it is not adopted.
    """
    from pathosam_qupath.console import err, evaluation_progress, show
    from pathosam_qupath.corrections.finetuning import FinetuneOptions
    from pathosam_qupath.corrections.gate import finetune_and_judge, fixed_set
    from pathosam_qupath.errors import ModelError
    from pathosam_qupath.model import choose_device
    from pathosam_qupath.tables_corrections import finetune_line, finetune_table

    with evaluation_progress() as judged:
        report = finetune_and_judge(
            base,
            data,
            name,
            FinetuneOptions(what.value, seed, steps),
            replay=replay or fixed_set("replay"),
            regression=regression or fixed_set("regression"),
            force=force,
            device=choose_device(device),
            progress=lambda p: err().print(finetune_line(p), markup=False),
            judged=judged,
        )
    show(report, finetune_table, as_json)
    raise typer.Exit(0 if report.adopted else ModelError.exit_code)
