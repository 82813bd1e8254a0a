"""Classes of nuclei that a model is to learn: which of its outputs a type id teaches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from pathosam_qupath.corrections.evaluation import types_of_classes
from pathosam_qupath.corrections.samples import TYPES, Sample
from pathosam_qupath.errors import UsageError
from pathosam_qupath.qupath.classes import default_color

if TYPE_CHECKING:
    from pathosam_qupath.model.network import CompactNetwork
    from pathosam_qupath.model.weights import CompactDescription


def with_classes(
    network: CompactNetwork,
    description: CompactDescription,
    samples: Sequence[Sample],
    own_types: Mapping[str, int],
    *,
    may_add: bool,
) -> tuple[CompactNetwork, CompactDescription]:
    """The network with an output for each class of the samples that it lacks.

    Parameters
    ----------
    own_types : type ids of classes that PanNuke does not know, by name.
    may_add : whether what is trained can learn a new class.

    Raises
    ------
    UsageError : a class is lacking and may not be added.
    """
    if network.types is None:
        return network, description
    known = set().union(*types_of_classes(description.classes, own_types))
    names = {**TYPES, **{number: name for name, number in own_types.items()}}
    present: set[int] = set()
    for sample in samples:
        if sample.types is not None:
            present.update(int(t) for t in set(sample.types[sample.labels > 0].tolist()))
    # "Epithelial or neoplastic" is no class to add: whoever has it should have either.
    lacking = sorted(t for t in present - known if " or " not in names.get(t, " or "))
    if not lacking:
        return network, description
    titles = [names[t] if names[t] in own_types else names[t].title() for t in lacking]
    if not may_add:
        raise UsageError(
            "classes " + ", ".join(titles),
            "the model does not know them, and what is trained cannot learn them",
            "Take --what class-head or all, or give these nuclei a class that it knows: "
            f"{', '.join(description.classes)}.",
        )
    network = copy.deepcopy(network)
    head = network.types
    assert head is not None  # a copy of one that has it
    old = head.out
    count = old.out_channels + len(lacking)
    head.out = nn.Conv2d(old.in_channels, count, 1)
    with torch.no_grad():
        head.out.weight.zero_()[: old.out_channels] = old.weight
        assert head.out.bias is not None and old.bias is not None
        # Below the others, so that a class nobody has taught yet is never chosen.
        head.out.bias.fill_(float(old.bias.min()) - 4.0)[: old.out_channels] = old.bias
    network.config = replace(network.config, classes=count)
    return network, replace(
        description,
        classes=(*description.classes, *titles),
        colors=(*description.colors, *(default_color(title) for title in titles)),
        network=network.config,
    )


def class_of_type(
    classes: Sequence[str], own_types: Mapping[str, int] | None = None
) -> dict[int, int]:
    """Which class of a model a type id teaches; ids that fit several teach none."""
    allowed = types_of_classes(classes, own_types)
    found: dict[int, int] = {}
    for number in set().union(*allowed):
        fitting = [i for i, types in enumerate(allowed) if number in types]
        if len(fitting) == 1:
            found[number] = fitting[0]
    return found
