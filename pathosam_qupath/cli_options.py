"""Options and arguments that several commands of the command line take."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Backend(str, Enum):
    """How a project is read and written."""

    auto = "auto"
    paquo = "paquo"
    embedded = "embedded"


class Mode(str, Enum):
    """How ``segment`` finds nuclei."""

    ais = "ais"
    apg = "apg"


class ExportFormat(str, Enum):
    """What ``export`` writes."""

    geojson = "geojson"
    parquet = "parquet"


ProjectArgument = Annotated[
    Path, typer.Argument(metavar="PROJECT", help="A project's folder or its .qpproj file.")
]
BackendOption = Annotated[
    Backend,
    typer.Option(help="QuPath's own code (paquo), ours (embedded), or the first that is there."),
]
PathMapOption = Annotated[
    list[str],
    typer.Option(
        "--path-map", metavar="FROM=TO", help="Images that lie under FROM are under TO now; repeat."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write the result as JSON to stdout.")]
ImagesOption = Annotated[
    list[str],
    typer.Option(
        "--images", metavar="GLOB", help="Images by name (with * and ?) or id; repeat. Default all."
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="`bundled`, a model of `models list` (downloaded if it is not there), or a file: "
        "weights of `train` (.safetensors) or a checkpoint of PathoSAM.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
ModeOption = Annotated[
    Mode,
    typer.Option(
        help="ais: the decoder's maps, by watershed. apg: the decoder's seeds as clicks, outlines "
        "by SAM's mask decoder; many times slower.",
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A checkpoint of PathoSAM or micro-sam in any of their layouts, instead of --model.",
    ),
]
DecoderOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The instance decoder, where it is a file of its own, or another one."
    ),
]
SemanticOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The decoder of nucleus classes; it fits vit_b's embeddings only."
    ),
]
ExactOption = Annotated[
    bool,
    typer.Option("--exact", help="PathoSAM in float32 throughout: the reference's numbers."),
]
MppOption = Annotated[
    float | None,
    typer.Option(metavar="µm/px", help="Pixel size of the images, where theirs is missing."),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        metavar="local|ADDRESS|FILE",
        help="Compute in Dask workers: processes started on this computer, or those of a "
        "scheduler that runs (tcp://HOST:PORT, or its file). See docs/scaling.md.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="How many workers to start, or to wait for where they run already. Default: one per "
        "GPU or four cores; any.",
    ),
]
