"""Classes of nuclei: from class probabilities to names that a project uses.

A nucleus gets the class with the largest sum of probabilities over its pixels. The names
are the model's unless a file says otherwise. Such a file names model classes and what to
call them, either as JSON::

    {"neoplastic": "Tumor", "connective": "Stroma", "dead": null, "epithelial": false}

or as lines, with ``=``, ``:`` or a comma (a table with two columns)::

    neoplastic = Tumor      # comments are allowed
    connective = Stroma
    dead =
    epithelial = -

``null`` (or nothing after the sign) leaves nuclei of that class unclassified; ``false``
(or ``-``) leaves them out. Classes that the file does not name keep the model's name. Two
model classes with the same project name become one: their probabilities add up, and the
nucleus gets the name when the sum wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathosam_qupath.errors import UsageError

_LEFT_OUT = "-"

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassMap:
    """What model classes are called in the project.

    Attributes
    ----------
    names : model class → project class; None leaves unclassified. Others keep their name.
    dropped : model classes whose nuclei are left out.
    """

    names: Mapping[str, str | None]
    dropped: frozenset[str] = frozenset()

    def name(self, model_class: str) -> str | None:
        """The project's name of a model class."""
        return self.names.get(model_class, model_class)

    def group(self, model_class: str) -> tuple[str, str | None, bool]:
        """Under which label a class is measured, its name, whether it is left out."""
        name = self.name(model_class)
        return name or model_class, name, model_class in self.dropped


MODEL_NAMES = ClassMap({})
"""Every class under the model's own name."""


@dataclass(frozen=True, eq=False)
class Classified:
    """Classes of n nuclei.

    Attributes
    ----------
    classification : (n,) object, name or None.
    probability : (n,) float64, share of the winner; NaN for a model without classes.
    measurements : "Probability: <class>" → (n,) float64.
    kept : (n,) bool, False where the class is one to leave out.
    """

    classification: NDArray[np.object_]
    probability: NDArray[np.float64]
    measurements: dict[str, NDArray[np.float64]]
    kept: NDArray[np.bool_]


def measurement_name(class_name: str) -> str:
    """Name of the measurement that holds the probability of a class."""
    return f"Probability: {class_name}"


def classify(
    sums: NDArray[np.float64], model_classes: Sequence[str], class_map: ClassMap = MODEL_NAMES
) -> Classified:
    """Classes from summed probabilities.

    Parameters
    ----------
    sums : (n, len(model_classes)) probabilities summed over each nucleus' pixels.
    model_classes : names in the order of the columns.
    class_map : the project's names.

    Returns
    -------
    The winner of each nucleus (the first of equals), and the share of every class.
    """
    count = len(sums)
    if not model_classes:
        return Classified(
            np.full(count, None, object), np.full(count, np.nan), {}, np.ones(count, bool)
        )
    groups = [class_map.group(name) for name in model_classes]
    distinct = list(dict.fromkeys(groups))
    merged = np.zeros((count, len(distinct)))
    for column, group in enumerate(groups):
        merged[:, distinct.index(group)] += sums[:, column]
    total = merged.sum(axis=1, keepdims=True)
    shares = np.divide(merged, total, out=np.zeros_like(merged), where=total > 0)
    winner = shares.argmax(axis=1)
    names = np.array([*(name for _, name, _ in distinct), None], object)[:-1]
    dropped = np.array([is_dropped for _, _, is_dropped in distinct])
    measurements: dict[str, NDArray[np.float64]] = {}
    for i, (label, _, _) in enumerate(distinct):
        name = measurement_name(label)
        measurements[name] = measurements.get(name, 0) + shares[:, i]
    return Classified(
        classification=names[winner],
        probability=shares[np.arange(count), winner],
        measurements=measurements,
        kept=~dropped[winner],
    )


def class_colors(
    model_classes: Sequence[str], colors: Sequence[Color], class_map: ClassMap = MODEL_NAMES
) -> dict[str, Color]:
    """Project class → colour: the model's, of the first model class with that name."""
    result: dict[str, Color] = {}
    for model_class, color in zip(model_classes, colors, strict=True):
        name = class_map.name(model_class)
        if name is not None and model_class not in class_map.dropped:
            result.setdefault(name, color)
    return result


def read_class_map(path: Path, model_classes: Sequence[str]) -> ClassMap:
    """Read a file of class names (see the module's text).

    Raises
    ------
    UsageError : the file is missing or not such a file, or names a class that the model
        does not know.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            path, f"the class file cannot be read: {error}", "Give a JSON or text file."
        ) from error
    pairs = _json_pairs(path, text) if text.lstrip().startswith("{") else _line_pairs(path, text)
    unknown = sorted({name for name, _ in pairs} - set(model_classes))
    if unknown:
        known = ", ".join(model_classes) or "none"
        raise UsageError(
            path, f"the model has no class {', '.join(unknown)}", f"Its classes are: {known}."
        )
    repeated = {name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1}
    if repeated:
        raise UsageError(path, f"{', '.join(sorted(repeated))} named twice", "Keep one line each.")
    return ClassMap(
        names={name: value or None for name, value in pairs if value != _LEFT_OUT},
        dropped=frozenset(name for name, value in pairs if value == _LEFT_OUT),
    )


def _json_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        items = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise UsageError(
            path, f"not valid JSON: {error}", 'Write {"model class": "project class", …}.'
        ) from error
    pairs: list[tuple[str, str]] = []
    for name, value in items:
        if not (value is None or value is False or isinstance(value, str)):
            raise UsageError(
                path,
                f"{name} is mapped to {json.dumps(value)}",
                "Use a name in quotes, null (unclassified) or false (left out).",
            )
        pairs.append((name, _LEFT_OUT if value is False else (value or "").strip()))
    return pairs


def _line_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.split("#", 1)[0].strip()
        if not content:
            continue
        found = re.fullmatch(r"([^=:,]+?)\s*[=:,]\s*(.*)", content)
        if found is None:
            raise UsageError(
                path, f"line {number} is not a pair: {content}", "Write: model class = name."
            )
        name, value = (part.strip().strip("\"'") for part in found.groups())
        pairs.append((name, value))
    return pairs
