"""A real server in a process of its own, and requests to it as QuPath's menu makes them."""

from __future__ import annotations

import gzip
import http.client
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
ENDED = ("done", "failed", "cancelled")
HEARTBEAT = 0.5
"""Seconds after which the Groovy client asks again how far a job is."""


@dataclass(frozen=True)
class Slide:
    """What is worked on: a file, its pixels per side, its µm/px."""

    path: Path
    width: int
    height: int
    mpp: float


class Client:
    """Requests over one connection, as a menu makes them."""

    def __init__(self, state: dict) -> None:
        self.token = state["token"]
        self.host = urlsplit(state["url"]).netloc
        self.connection = http.client.HTTPConnection(self.host, timeout=300)

    def ask(
        self, method: str, path: str, body: object = None, raw: bytes = b"", kind: str = ""
    ) -> tuple[int, Any]:
        """Status, and the JSON or bytes of the answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept-Encoding": "gzip"}
        if body is not None:
            raw, kind = json.dumps(body).encode(), "application/json"
        if kind:
            headers["Content-Type"] = kind
        self.connection.request(method, path, raw or None, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.getheader("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        kind = answer.getheader("Content-Type") or ""
        return answer.status, json.loads(content) if "json" in kind else content

    def health(self) -> dict:
        """What the server says of itself."""
        return self.ask("GET", "/v1/health")[1]

    def open(self, slide: Slide) -> str:
        """The id of a slide."""
        status, image = self.ask("POST", "/v1/images", {"path": str(slide.path), "mpp": slide.mpp})
        assert status == 201, image
        return image["image"]

    def submit(self, image: str, x: int, y: int, side: int, **options: object) -> tuple[int, dict]:
        """Submit a square region: status and answer."""
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        feature = {"type": "Feature", "id": None, "geometry": geometry, "properties": {}}
        regions = {"type": "FeatureCollection", "features": [feature]}
        job = {"kind": "segment", "image": image, "regions": regions, "options": options}
        return self.ask("POST", "/v1/jobs", job)

    def segment(self, image: str, x: int, y: int, side: int, **options: object) -> str:
        """Submit a square region; the job's id."""
        status, job = self.submit(image, x, y, side, **options)
        assert status == 202, job
        return job["id"]

    def wait(self, job: str, states: tuple[str, ...] = ENDED) -> dict:
        """The job once it is in one of the states, asked for as the Groovy client does."""
        seen = 0
        while True:
            _, found = self.ask("GET", f"/v1/jobs/{job}?wait={HEARTBEAT}&seen={seen}")
            if found["state"] in states:
                return found
            seen = found["progress"]["change"]

    def click(self, image: str, x: float, y: float) -> dict:
        """The object at a place."""
        prompts = {"image": image, "prompts": [{"points": [[x, y]]}]}
        status, answer = self.ask("POST", "/v1/prompt", prompts)
        assert status == 200, answer
        return answer


class Serving:
    """The server process; a context manager."""

    def __init__(self, folder: Path, model: str, *roots: Path) -> None:
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "pathosam_qupath", "serve", "--port", "0", "--model"]
        command += [model, "--device", "cpu", "--state", str(folder)]
        for root in roots:
            command += ["--root", str(root)]
        self.log = (folder.parent / f"{folder.name}.log").open("w+b")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while not (folder / "server.json").exists():
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.01)
        self.state = json.loads((folder / "server.json").read_text())
        self.port_open = time.perf_counter() - self.began
        while Client(self.state).ask("GET", "/v1/health?wait=20")[1]["state"] == "loading":
            pass
        self.ready = time.perf_counter() - self.began

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        self.log.close()

    def memory(self) -> float:
        """Resident MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def end(self) -> int:
        """End it politely; its exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def tracebacks(self) -> int:
        """How many it has written."""
        self.log.seek(0)
        return self.log.read().decode().count("Traceback")


def mosaic(folder: Path, times: int) -> Slide:
    """The example's slide beside its mirror images, ``times`` in each direction."""
    sys.path.insert(0, str(ROOT / "projects_example"))
    from make_example import MPP, tissue, write_slide

    tile = tissue()
    side = times * tile.shape[0]
    more = side - tile.shape[0]
    path = folder / "mosaic.tif"
    write_slide(path, np.pad(tile, ((0, more), (0, more), (0, 0)), mode="symmetric"))
    return Slide(path, side, side, MPP)
