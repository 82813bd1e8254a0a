"""A simulated pathologist: what correcting regions and fine-tuning gives, round after round.

Run with ``python benchmarks/corrections.py run NUCLEI --out DIR``, NUCLEI being a folder with
the sets ``train``, ``val`` and ``consep`` (images, labels, types and a manifest each). In every
round a few regions more are corrected (their nuclei become the true ones), the model is
fine-tuned from its base on all that were corrected so far (with ``--regression``: it goes back
towards the base until no figure has lost more than a point there), and it is scored on images that
nobody corrected and on a set that has nothing to do with the corrections. Regions are chosen as
``corrections suggest`` does, by the model of the round before, or at random. Two stories:

* *new organs*: ``val``, whose organs, patients and melanoma the base model never saw. Of each
  slide's three images one is held out, of the melanoma a third; what may not be lost is measured
  on the mosaics of CoNSeP that were kept from training.
* *a known tissue*: those mosaics of CoNSeP, a third of which is held out; what may not be lost is
  measured on ``val``.

Everything is repeated with another third held out, so that after three repetitions each image
was judged once. Called again it goes on where it was cut off, within a fine-tuning too.
``figures.json`` in the folder holds every figure;
those of the documentation are in ``corrections.json`` beside this script.
``python benchmarks/corrections.py draw FIGURES --picture FILE`` draws the curves and prints them
as a table (it needs matplotlib); ``doubts NUCLEI`` tells whether the signs that regions are
chosen by have to do with what is wrong in them.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.corrections.evaluation import evaluate_samples, segment_image
from pathosam_qupath.corrections.finetuning import (
    BEST,
    FinetuneData,
    FinetuneOptions,
    finetune,
)
from pathosam_qupath.corrections.holding import SHARES, RegressionSet
from pathosam_qupath.corrections.learning_run import LOG
from pathosam_qupath.corrections.metrics import matched_pairs, overlaps
from pathosam_qupath.corrections.prompt_evaluation import evaluate_prompts
from pathosam_qupath.corrections.samples import IGNORED_TYPE, Sample, read_samples
from pathosam_qupath.corrections.splitting import split_samples
from pathosam_qupath.corrections.uncertainty import choose_fields, field_doubt, rank_fields
from pathosam_qupath.model import load_model
from pathosam_qupath.model.adopted import compact_weights
from pathosam_qupath.model.interface import NucleusModel
from pathosam_qupath.model.weights import file_sha256

REGION = 256
"""Side of a region in pixels of its image."""

ROUNDS = (5, 10, 20, 50)
THIRDS = (0, 1, 2)
"""Repetitions: which third of the images is held out."""

STRATEGIES = ("suggested", "random")
_KEPT = (
    "regions",
    "nuclei",
    "taught",
    "way",
    "held_out",
    "regression",
    "prompts",
    "all_learnt",
)
MANY = 2000
"""Nuclei to learn from: how far what is kept then lies from the base is told for none and these."""

_KNOWN_TYPES = (0, 1, 2, 3, 5, 6)
"""What the three classes of the bundled model stand for; the rest teaches none."""


@dataclass(frozen=True)
class Story:
    """What is corrected, and on what it is judged.

    Attributes
    ----------
    third : which third is held out.
    pool : regions that can be corrected.
    held_out : of the same sources, never corrected.
    regression : of other sources.
    replay : of the base model's training.
    """

    name: str
    third: int
    pool: Sequence[Sample]
    held_out: Sequence[Sample]
    regression: Sequence[Sample]
    replay: Sequence[Sample]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="correct, fine-tune, score; go on where it was cut off")
    run.add_argument("nuclei", type=Path, help="folder with train, val, consep")
    run.add_argument("--out", type=Path, required=True, help="folder of the experiment")
    run.add_argument("--model", default="bundled")
    run.add_argument("--what", choices=("decoder", "all"), default="decoder")
    run.add_argument("--steps", type=int, help="of a fine-tuning, at most, instead of the usual")
    run.add_argument("--rounds", type=int, nargs="+", default=ROUNDS)
    run.add_argument("--stories", nargs="+", default=["val", "consep"], choices=["val", "consep"])
    run.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    run.add_argument("--thirds", type=int, nargs="+", default=THIRDS, choices=THIRDS)
    run.add_argument("--prompts", action="store_true", help="also train and score prompts")
    run.add_argument(
        "--replay", type=int, default=40, help="images of the base's training, 0: none"
    )
    run.add_argument("--rate", type=float, help="learning rate instead of the usual")
    run.set_defaults(do=run_stories)
    doubts = commands.add_parser("doubts", help="whether signs of doubt tell where errors are")
    doubts.add_argument("nuclei", type=Path, help="folder with train, val, consep")
    doubts.add_argument("--model", default="bundled")
    doubts.set_defaults(do=compare_doubts)
    draw = commands.add_parser("draw", help="the curves as a picture, and as a table")
    draw.add_argument("figures", type=Path, nargs="+", help="of one run, or of parts of it")
    draw.add_argument("--picture", type=Path, required=True)
    draw.add_argument("--json", type=Path, help="write the figures of all parts to this file")
    draw.set_defaults(do=_draw)
    arguments = parser.parse_args()
    arguments.do(arguments)


def _draw(arguments: argparse.Namespace) -> None:
    parts = [json.loads(path.read_text()) for path in arguments.figures]
    if any(part["about"] != parts[0]["about"] for part in parts):
        raise SystemExit("these figures are of different models or options")
    results = {key: result for part in parts for key, result in part["results"].items()}
    figures = {"about": parts[0]["about"], "results": results}
    if arguments.json:
        kept = {
            key: {name: result[name] for name in _KEPT if name in result}
            for key, result in sorted(results.items())
        }
        arguments.json.write_text(json.dumps({**figures, "results": kept}, indent=1) + "\n")
    draw_curves(figures, arguments.picture)
    print_table(figures)


def run_stories(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "figures.json"
    base, _ = compact_weights(arguments.model)
    options = _options(arguments)
    about = {
        "base_sha256": file_sha256(base),
        "what": options.what,
        "steps": options.total,
        "rate": options.rate,
        "way": [options.way_with(nuclei) for nuclei in (0, MANY)],
        "shares": list(SHARES),
        "replay": arguments.replay,
        "region": REGION,
    }
    figures = json.loads(path.read_text()) if path.exists() else {"about": about, "results": {}}
    if figures["about"] != about:
        raise SystemExit(f"{path} is of another model or other options: give another --out")

    def keep(key: str, result: dict[str, Any]) -> None:
        figures["results"][key] = result
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(figures, indent=1))
        temporary.replace(path)
        print(key, _line(result), flush=True)

    # A whole repetition of both stories before the next, so that there are curves early.
    for third in arguments.thirds:
        for name in arguments.stories:
            story = read_story(arguments.nuclei, name, arguments.replay, third)
            if f"{name}/{third}/base" not in figures["results"]:
                scored = _scored(base, story, prompts=arguments.prompts)
                keep(f"{name}/{third}/base", {"regions": 0, **scored})
            for strategy in arguments.strategies:
                _rounds(story, strategy, base, arguments, figures["results"], keep)


def _rounds(
    story: Story,
    strategy: str,
    base: Path,
    arguments: argparse.Namespace,
    done: dict[str, Any],
    keep: Any,  # noqa: ANN401 (called with a key and a result)
) -> None:
    """One curve; ``keep`` is called with each point."""
    chosen: list[int] = []
    current = base
    for count in arguments.rounds:
        key = f"{story.name}/{story.third}/{strategy}/{count}"
        out = arguments.out / key
        began = time.monotonic()
        if key in done:
            chosen, current = done[key]["chosen"], arguments.out / done[key]["weights"]
            continue
        rest = [i for i in range(len(story.pool)) if i not in chosen]
        few = min(count - len(chosen), len(rest))
        chosen = chosen + _choose(strategy, story, rest, few, current)
        choosing = time.monotonic() - began
        split = split_samples([story.pool[i] for i in chosen], [])
        data = FinetuneData(
            split.train,
            split.stopping,
            story.replay,
            identity=key,
            regression=RegressionSet(story.regression, identity=f"{story.name}/{story.third}"),
        )
        options = replace(_options(arguments), seed=story.third)
        began = time.monotonic()
        done_learning = finetune(base, data, out, options, name=key)
        current = done_learning.weights
        learning = time.monotonic() - began
        curve = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
        result = {
            "regions": len(chosen),
            "nuclei": sum(len(np.unique(story.pool[i].labels)) - 1 for i in chosen),
            "taught": data.nuclei,
            "way": round(done_learning.way, 3),
            "chosen": chosen,
            "weights": current.relative_to(arguments.out).as_posix(),
            "seconds_choosing": round(choosing, 1),
            "seconds_learning": round(learning, 1),
            "curve": [(p["step"], p["loss"], p["score"]) for p in curve],
            **_scored(current, story, prompts=arguments.prompts),
        }
        if done_learning.share < 1.0:
            result["all_learnt"] = _scored(out / BEST, story, prompts=False)
        keep(key, result)


def _options(arguments: argparse.Namespace) -> FinetuneOptions:
    return FinetuneOptions(
        arguments.what,
        steps=arguments.steps,
        learning_rate=arguments.rate,
        prompt_steps=None if arguments.prompts else 0,
    )


def _choose(
    strategy: str, story: Story, rest: Sequence[int], count: int, weights: Path
) -> list[int]:
    """Which regions are corrected next: indices of the pool."""
    if strategy == "random":
        order = np.random.default_rng(story.third + 1).permutation(len(story.pool))
        return [int(i) for i in order if i in rest][:count]
    model = load_model(weights, "cpu")
    doubts = [field_doubt(model, region.image) for region in story.pool]
    looks = np.array([doubt.look for doubt in doubts])
    reviewed = [i for i in range(len(story.pool)) if i not in rest]
    return [c.index for c in choose_fields(rank_fields(doubts), looks, count, reviewed)]


def compare_doubts(arguments: argparse.Namespace) -> None:
    """Rank correlation of each sign with the errors of a region, and what is chosen first."""
    from scipy.stats import spearmanr

    model = load_model(arguments.model, "cpu")
    for name in TITLES:
        pool = read_story(arguments.nuclei, name, 4, 0).pool
        doubts = [field_doubt(model, region.image) for region in pool]
        errors = np.array([_errors(model, region) for region in pool])
        print(f"{TITLES[name]}: {len(pool)} regions, {errors.mean():.1f} errors in each")
        for sign in doubts[0].signs:
            found = spearmanr([doubt.signs[sign] for doubt in doubts], errors).statistic
            print(f"  {sign:8s} rank correlation with the errors {found:+.2f}")
        looks = np.array([doubt.look for doubt in doubts])
        first = [c.index for c in choose_fields(rank_fields(doubts), looks, 10)]
        print(f"  the first ten that are suggested hold {errors[first].mean():.1f} errors each")


def _errors(model: NucleusModel, region: Sample) -> int:
    """Nuclei that were missed or invented."""
    labels, _ = segment_image(model, region.image, region.mpp or 0.25)
    table = overlaps(region.labels, labels)
    return table.true_ids.size + table.predicted_ids.size - 2 * len(matched_pairs(table))


def _scored(weights: Path, story: Story, *, prompts: bool) -> dict[str, Any]:
    """The figures of a model on what is held out and on what may not be lost."""
    model: Any = load_model(weights, "cpu")
    result: dict[str, Any] = {
        "held_out": _means(evaluate_samples(model, story.held_out)),
        "regression": _means(evaluate_samples(model, story.regression)),
    }
    if prompts:
        result["prompts"] = {"mean": evaluate_prompts(model, story.held_out)["mean"]}
    return result


def _means(report: dict[str, Any]) -> dict[str, Any]:
    """What the curves are made of: the means over all images, and over those of a source."""
    means = {"mean": report["mean"], **report["sources"]}
    return {
        name: {key: None if mean[key] is None else round(mean[key], 4) for key in FIGURES}
        for name, mean in means.items()
    }


def read_story(nuclei: Path, name: str, replayed: int, third: int) -> Story:
    """The images of a story; ``name`` is "val" or "consep"."""
    groups = {
        row["file"]: row["group"]
        for row in csv.DictReader((nuclei / "val" / "manifest.csv").open(encoding="utf-8"))
    }
    of_group = {Path(file).stem: group for file, group in groups.items()}
    val = [_known(sample) for sample in read_samples(nuclei / "val")]
    # The bundled model is trained on two of three mosaics, see its training.json.
    mosaics = [_known(sample) for sample in read_samples(nuclei / "consep")]
    unseen, seen = mosaics[2::3], [m for i, m in enumerate(mosaics) if i % 3 != 2]
    train = list(read_samples(nuclei / "train"))
    # From all over CoNSeP: its first mosaics hold hardly anything but connective tissue.
    of_consep = replayed // 4
    replay = [*_spread(train, replayed - of_consep), *_spread(seen, of_consep)]
    if name == "consep":
        pool = [s for i, s in enumerate(unseen) if i % 3 != third]
        return Story(name, third, _regions(pool), unseen[third::3], val, replay)
    pool, held = [], []
    for group in sorted(set(of_group.values())):
        images = [sample for sample in val if of_group[sample.name] == group]
        parts = images if len(images) == 3 else _thirds(images[0])
        pool += [part for i, part in enumerate(parts) if i != third]
        held.append(parts[third])
    return Story(name, third, _regions(pool), held, unseen, replay)


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """So many of them, evenly spread."""
    return [samples[int(i)] for i in np.linspace(0, len(samples) - 1, count).round()]


def _thirds(sample: Sample) -> list[Sample]:
    """An image in three parts, side by side."""
    edges = [round(sample.labels.shape[1] * i / 3) for i in range(4)]
    return [
        replace(_cut(sample, slice(None), slice(left, right)), name=f"{sample.name}_from_{left}")
        for left, right in pairwise(edges)
    ]


def _known(sample: Sample) -> Sample:
    """The sample without types that no class of the model stands for."""
    if sample.types is None:
        return sample
    known = np.isin(sample.types, _KNOWN_TYPES)
    return replace(sample, types=np.where(known, sample.types, np.uint8(IGNORED_TYPE)))


def _regions(samples: Sequence[Sample]) -> list[Sample]:
    """Regions of the samples, side by side; what is left at the border is not used."""
    found = []
    for sample in samples:
        height, width = sample.labels.shape
        for top in range(0, height - REGION + 1, REGION):
            for left in range(0, width - REGION + 1, REGION):
                part = _cut(sample, slice(top, top + REGION), slice(left, left + REGION))
                found.append(replace(part, name=f"{sample.name}_{left}_{top}"))
    return found


def _cut(sample: Sample, rows: slice, columns: slice) -> Sample:
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[rows, columns]),
        labels=np.ascontiguousarray(sample.labels[rows, columns]),
        types=None if sample.types is None else np.ascontiguousarray(sample.types[rows, columns]),
    )


def _line(result: dict[str, Any]) -> str:
    parts = []
    for what in ("held_out", "regression"):
        mean = result[what]["mean"]
        accuracy = mean["class_accuracy"]
        parts.append(
            f"{what}: F1 {mean['f1_50']:.3f} mSA {mean['msa']:.3f}"
            + ("" if accuracy is None else f" classes {accuracy:.3f}")
        )
    if "prompts" in result:
        mean = result["prompts"]["mean"]
        parts.append(f"point {mean['point']:.3f} box {mean['box']:.3f}")
    if "seconds_learning" in result:
        parts.append(f"{result['nuclei']} nuclei, {result['seconds_learning']:.0f} s")
    return " · ".join(parts)


TITLES = {"val": "organs that the base never saw", "consep": "CoNSeP"}
FIGURES = {"f1_50": "F1@0.5", "msa": "mSA", "class_accuracy": "class accuracy"}
COLORS = {"suggested": "tab:blue", "random": "tab:orange"}
_STYLES = {"f1_50": "-", "msa": "--"}
"""Of what may not be lost; the classes of that are in the table alone, they gain too much."""


def draw_curves(figures: dict[str, Any], picture: Path) -> None:
    """Changes over the number of corrected regions, a row per story.

    Thin lines are repetitions, thick ones the mean of those that were run at most numbers.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = figures["results"]
    stories = _told(results)
    figure, axes = pyplot.subplots(
        len(stories), 4, figsize=(13, 3.2 * len(stories)), squeeze=False, layout="constrained"
    )
    for row, story in zip(axes, stories, strict=True):
        for panel, (key, title) in zip(row, FIGURES.items(), strict=False):
            for strategy in COLORS:
                before = _draw_curve(panel, results, (story, strategy, "held_out", key), strategy)
            panel.set_title(f"{title}, held out ({before:.3f} before)", fontsize=10)
        panel = row[3]
        for key in _STYLES:
            for strategy in COLORS:
                label = FIGURES[key] if strategy == "suggested" else None
                _draw_curve(panel, results, (story, strategy, "regression", key), label)
        panel.axhline(-1, color="tab:red", linewidth=0.8, label="a point less")
        panel.set_title("what may not be lost", fontsize=10)
        panel.legend(fontsize=7)
        for panel in row:
            panel.axhline(0, color="grey", linestyle=":")
            panel.set_xlabel("corrected regions")
            panel.grid(alpha=0.25)
        row[0].set_ylabel(f"{TITLES[story]}\nchange in points")
        row[0].legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def _draw_curve(
    panel: Any,  # noqa: ANN401 (matplotlib has no types)
    results: dict[str, Any],
    curve: tuple[str, str, str, str],
    label: str | None,
) -> float:
    """Its repetitions and their mean; the mean of the base."""
    x, values = _curve(results, *curve)
    _, strategy, what, key = curve
    style = _STYLES[key] if what == "regression" else "-"
    look = {"color": COLORS[strategy], "linestyle": style}
    for repetition in (100 * (values - values[0])).T:
        known = ~np.isnan(repetition)
        panel.plot(
            x[known], repetition[known], marker=".", markersize=5, linewidth=1.0, alpha=0.6, **look
        )
    points = (~np.isnan(values)).sum(axis=0)
    whole = (100 * (values - values[0]))[:, points == points.max()]
    panel.plot(x, whole.mean(axis=1), marker="o", markersize=5, linewidth=2, label=label, **look)
    return float(values[0].mean())


def print_table(figures: dict[str, Any]) -> None:
    """The base's figures and the mean and range of the changes in points, as Markdown."""
    results = figures["results"]
    for story in _told(results):
        print(
            f"\n| {TITLES[story]} | regions | repetitions | F1@0.5 | mSA | class accuracy "
            "| may not be lost: F1@0.5 | mSA | class accuracy |\n|---|" + 8 * "---:|"
        )
        for strategy in COLORS:
            found = [
                _curve(results, story, strategy, what, key)
                for what in ("held_out", "regression")
                for key in FIGURES
            ]
            for i, count in enumerate(found[0][0]):
                if count or strategy == "suggested":
                    what = strategy if count else "no fine-tuning"
                    repetitions = np.count_nonzero(~np.isnan(found[0][1][i]))
                    cells = " | ".join(_cell(values, i) for _, values in found)
                    print(f"| {what} | {count:.0f} | {repetitions} | {cells} |")


def _told(results: dict[str, Any]) -> list[str]:
    """The stories that there are results of."""
    return [name for name in TITLES if any(key.startswith(f"{name}/") for key in results)]


def _cell(values: NDArray[np.float64], point: int) -> str:
    """The base's figure, or the mean of the changes of the repetitions and their range, in points.

    The points that not all repetitions have are means of those that have them.
    """
    if point == 0:
        return f"{values[0].mean():.3f}"
    changes = 100 * (values[point] - values[0])
    changes = changes[~np.isnan(changes)]
    spread = f" ({changes.min():+.1f} … {changes.max():+.1f})" if len(changes) > 1 else ""
    return f"{changes.mean():+.1f}{spread}"


def _curve(
    results: dict[str, Any], story: str, strategy: str, what: str, key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numbers of regions, from 0, and the figure (points, repetitions); NaN where not measured."""
    thirds: dict[str, dict[int, float]] = {}
    for name, result in results.items():
        of_story, third, of_strategy, *_ = name.split("/")
        if of_story == story and of_strategy in ("base", strategy):
            value = result[what]["mean"][key]
            thirds.setdefault(third, {})[result["regions"]] = np.nan if value is None else value
    started = [points for _, points in sorted(thirds.items()) if len(points) > 1]
    x = sorted({count for points in started for count in points})
    values = [[points.get(count, np.nan) for points in started] for count in x]
    return np.array(x, float), np.array(values)


if __name__ == "__main__":
    main()
