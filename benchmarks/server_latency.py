"""How long a person waits: start, region, clicks, cancelling."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from server_process import Client, Serving, Slide

_SPACING = 512
"""Slide pixels between two places: no tile of 1024 around one serves the other."""

_REST = 0.3
"""Seconds between two regions, in which the server draws the first one's picture."""


def figures(seconds: list[float]) -> dict[str, float]:
    """Count, median and 95th percentile in milliseconds."""
    values = 1000 * np.array(seconds)
    return {
        "count": len(values),
        "median_ms": round(float(np.median(values)), 1),
        "p95_ms": round(float(np.percentile(values, 95)), 1),
    }


def starts(folder: Path, model: str, count: int) -> dict[str, dict[str, float]]:
    """From the command to a port that answers, and to a model that is there."""
    ports, models = [], []
    for number in range(count):
        with Serving(folder / f"start{number}", model) as serving:
            ports.append(serving.port_open)
            models.append(serving.ready)
    return {"start, port answers": figures(ports), "start, model ready": figures(models)}


def regions(client: Client, slide: Slide, count: int) -> dict[str, dict[str, float]]:
    """A region of 512 x 512 each time elsewhere: open, submit, wait, download, parse."""
    chance = random.Random(1)
    side = round(512 * 0.25 / slide.mpp)
    seconds, nuclei, server = [], [], []
    for _ in range(count + 1):
        x, y = chance.randrange(slide.width - side), chance.randrange(slide.height - side)
        began = time.perf_counter()
        job = client.segment(client.open(slide), x, y, side)
        done = client.wait(job)
        _, result = client.ask("GET", f"/v1/jobs/{job}/result")
        seconds.append(time.perf_counter() - began)
        nuclei.append(len(result["features"]))
        server.append(done["progress"]["seconds"])
        time.sleep(_REST)
    found = figures(seconds[1:])
    found["job_median_ms"] = round(1000 * float(np.median(server[1:])), 1)
    found["nuclei"] = round(float(np.mean(nuclei[1:])), 1)
    return {"region of 512 x 512": found}


def clicks(client: Client, slide: Slide, count: int) -> dict[str, dict[str, float]]:
    """The first click on a place whose surroundings were not asked for, then one beside it."""
    if not client.health()["model"]["prompts"]:
        return {}
    image = client.open(slide)
    chance = random.Random(2)
    first, further, passes = [], [], []
    for x, y in _places(slide, count + 1):
        answers = []
        for at in ((x, y), (x + chance.uniform(-60, 60), y + chance.uniform(-60, 60))):
            began = time.perf_counter()
            answers.append((client.click(image, *at), time.perf_counter() - began))
        (one, took), (other, took_then) = answers
        first.append(took)
        further.append(took_then)
        passes.append((one["encoder_passes"], other["encoder_passes"]))
    new, again = (np.array(passes[1:])[:, i] for i in (0, 1))
    return {
        "first click on a place": {**figures(first[1:]), "with_encoder": int((new > 0).sum())},
        "further click there": {**figures(further[1:]), "with_encoder": int((again > 0).sum())},
    }


def cancels(client: Client, slide: Slide, count: int) -> dict[str, dict[str, float]]:
    """From the request to cancel until the job has ended, and until the next one runs."""
    image = client.open(slide)
    found: dict[str, dict[str, float]] = {}
    modes = client.health()["model"]["modes"]
    for mode in modes:
        ended, started = [], []
        for number in range(count):
            job = client.segment(image, 0, 0, slide.width, mode=mode)
            client.wait(job, ("running",))
            time.sleep(1 + number / count)
            after = client.segment(image, 0, 0, 64)
            began = time.perf_counter()
            _, told = client.ask("DELETE", f"/v1/jobs/{job}")
            if told["state"] != "cancelled":
                client.wait(job)
            ended.append(time.perf_counter() - began)
            client.wait(after, ("running", "done"))
            started.append(time.perf_counter() - began)
            client.wait(after)
        found[f"cancel ({mode}), job ended"] = figures(ended)
        found[f"cancel ({mode}), next job runs"] = figures(started)
    return found


def _places(slide: Slide, count: int) -> Iterator[tuple[float, float]]:
    """Places in the slide, each far from those before; round again where they do not suffice."""
    xs = range(_SPACING // 2, slide.width, 2 * _SPACING)
    ys = range(_SPACING // 2, slide.height, 2 * _SPACING)
    places = [(x, y) for y in ys for x in xs]
    for number in range(count):
        x, y = places[number % len(places)]
        yield float(x), float(y)
