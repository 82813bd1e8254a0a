"""Checkpoints as they are published, made from a list of their keys and shapes."""

import json
import math
from pathlib import Path

import torch

KEYS = Path(__file__).parents[1] / "data" / "state_dict_keys.json"


def random_state(name, scale=0.02):
    """A full-size state: vit_b, vit_l, vit_h, vit_t, decoder_convtranspose, decoder_interpolate."""
    generator = torch.Generator().manual_seed(len(name))
    state = {}
    for key, (shape, dtype) in json.loads(KEYS.read_text())[name].items():
        if dtype != "float32":
            state[key] = torch.zeros(shape, dtype=getattr(torch, dtype))
            continue
        # One random row, repeated: values do not matter, and drawing 90 million is slow.
        row = torch.randn(min(4096, max(1, math.prod(shape))), generator=generator) * scale
        repeats = -(-math.prod(shape) // len(row))
        state[key] = row.repeat(repeats)[: math.prod(shape)].reshape(shape)
        if key.endswith("running_var"):
            state[key] = state[key].abs() + 1
    return state


def saved(folder, layout, sam, decoder):
    """Save both states in a layout; returns (checkpoint, decoder file or None)."""
    path = folder / f"{layout}.pt"
    if layout == "sam":
        beside = folder / "decoder.pt"
        torch.save(sam, path)
        torch.save(decoder, beside)
        return path, beside
    if layout == "exported":
        torch.save({"model_state": sam, "decoder_state": decoder}, path)
    if layout == "trainer":
        prefixed = {f"sam.{key}": value for key, value in sam.items()}
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter])
        parameter.sum().backward()
        optimizer.step()
        torch.save(
            {
                "iteration": 7,
                "best_metric": 0.5,
                "model_state": prefixed,
                "decoder_state": decoder,
                "optimizer_state": optimizer.state_dict(),
                "init": {"trainer": TrainerOfAnotherPackage(optimizer)},
            },
            path,
        )
    return path, None


class TrainerOfAnotherPackage:
    """An object of a class that a reader of the file does not have."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.names = {"a", "b"}
        self.folder = Path("somewhere")
        self.step = optimizer.step
