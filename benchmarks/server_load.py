"""Whether the server stays as it is: malformed requests, eight clients at once."""

from __future__ import annotations

import io
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from server_process import ENDED, Client, Serving, Slide

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth"
)
GROWTH = 0.1
"""Of resident memory, from the second fifth of a run to the last, that counts as flat."""


def malformed(serving: Serving, count: int, folder: Path) -> dict[str, object]:
    """At least ``count`` requests that schemathesis makes to break the OpenAPI document."""
    document = Client(serving.state).ask("GET", "/openapi.json")[1]
    operations = sum(map(len, document["paths"].values())) - 1
    report = folder / "requests.ndjson"
    command = [str(Path(sys.executable).with_name("schemathesis")), "run"]
    command += [f"{serving.state['url']}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {serving.state['token']}"]
    # It would end the server, as asked.
    command += ["--exclude-path=/v1/shutdown"]
    command += ["--checks", CHECKS, "--mode=negative", "--phases=coverage,fuzzing", "--no-shrink"]
    command += ["--max-examples", str(-(-count // operations)), "--seed=7", "--continue-on-failure"]
    command += ["--request-timeout=60", "--suppress-health-check=all", "--warnings=off"]
    command += ["--report=ndjson", f"--report-ndjson-path={report}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    statuses = Counter(_statuses(report))
    sent = sum(statuses.values())
    return {
        "requests": sent,
        "statuses": {str(status): statuses[status] for status in sorted(statuses)},
        "server_errors": sum(n for status, n in statuses.items() if status >= 500),
        "exit_code": done.returncode,
        "said": [] if done.returncode == 0 else done.stdout.splitlines()[-60:],
        "alive": serving.process.poll() is None,
        "ok": done.returncode == 0 and sent >= count and serving.process.poll() is None,
    }


def soak(serving: Serving, slide: Slide, minutes: float, clients: int) -> dict[str, object]:
    """Clients that segment, click, cancel, look, send nonsense and go away in the middle."""
    load = _Load(serving, slide, time.monotonic() + 60 * minutes)
    threads = [threading.Thread(target=load.work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    memory: list[tuple[float, float]] = []
    while any(thread.is_alive() for thread in threads):
        memory.append((round(time.monotonic() - began, 1), round(serving.memory(), 1)))
        time.sleep(2)
    watcher = Client(serving.state)
    until = time.monotonic() + 300
    while True:
        jobs = watcher.ask("GET", "/v1/jobs")[1]["jobs"]
        if all(job["state"] in ENDED for job in jobs) or time.monotonic() > until:
            break
        time.sleep(0.5)
    rss = np.array([value for _, value in memory])
    fifth = max(1, len(rss) // 5)
    early, late = float(np.median(rss[fifth : 2 * fifth])), float(np.median(rss[-fifth:]))
    last = Counter(job["state"] for job in jobs)
    server_errors = sum(n for status, n in load.statuses.items() if status >= 500)
    clear = set(last) <= set(ENDED) and "failed" not in load.ended
    alive = serving.process.poll() is None
    return {
        "minutes": minutes,
        "clients": clients,
        "done": dict(load.did),
        "jobs": dict(load.ended),
        "last_jobs": dict(last),
        "statuses": {str(status): n for status, n in sorted(load.statuses.items())},
        "faults": load.faults[:10],
        "alive": alive,
        "rss_mb": {
            "start": float(rss[0]),
            "second_fifth": early,
            "last_fifth": late,
            "peak": float(rss.max()),
        },
        "growth": round(late / early - 1, 3),
        "memory": memory[:: max(1, len(memory) // 60)],
        "ok": alive
        and clear
        and not load.faults
        and not server_errors
        and late / early - 1 <= GROWTH,
    }


class _Load:
    """What the clients of a soak do, and what became of it."""

    def __init__(self, serving: Serving, slide: Slide, until: float) -> None:
        self.did: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self._serving, self._slide, self._until = serving, slide, until
        self._lock = threading.Lock()
        health = Client(serving.state).health()
        self._clicks, self._modes = health["model"]["prompts"], health["model"]["modes"]

    def work(self, number: int) -> None:
        """One client, until the time is up."""
        chance = random.Random(number)
        client = Client(self._serving.state)
        kinds = {
            self._segment: 30,
            self._cancel: 15,
            self._click: 20 if self._clicks else 0,
            self._pixels: 5,
            self._look: 10,
            self._nonsense: 10,
            self._vanish: 10,
        }
        while time.monotonic() < self._until:
            (act,) = chance.choices(list(kinds), list(kinds.values()))
            try:
                act(client, chance)
            except Exception as error:
                self.faults.append(f"client {number}, {act.__name__}: {error!r}")
                client = Client(self._serving.state)
            with self._lock:
                self.did[act.__name__.lstrip("_")] += 1

    def _ask(
        self, client: Client, method: str, path: str, *what: object, **more: str | bytes
    ) -> tuple[int, Any]:
        status, answer = client.ask(method, path, *what, **more)
        with self._lock:
            self.statuses[status] += 1
        return status, answer

    def _submitted(self, client: Client, chance: random.Random, side: int) -> str | None:
        """A job; None where too many wait."""
        x, y = (chance.randrange(self._slide.width - side) for _ in "xy")
        mode = chance.choice(self._modes) if chance.random() < 0.2 else "ais"
        status, job = client.submit(client.open(self._slide), x, y, side, mode=mode)
        with self._lock:
            self.statuses[status] += 1
        if status == 429:
            time.sleep(1)
            return None
        assert status == 202, job
        return job["id"]

    def _ends(self, client: Client, job: str) -> dict:
        found = client.wait(job)
        with self._lock:
            self.ended[found["state"]] += 1
            if found["error"]:
                self.faults.append(str(found["error"]))
        return found

    def _segment(self, client: Client, chance: random.Random) -> None:
        job = self._submitted(client, chance, chance.choice((100, 200, 400, 700)))
        if job is not None and self._ends(client, job)["state"] == "done":
            self._ask(client, "GET", f"/v1/jobs/{job}/result")

    def _cancel(self, client: Client, chance: random.Random) -> None:
        job = self._submitted(client, chance, 1500)
        if job is not None:
            time.sleep(2 * chance.random())
            self._ask(client, "DELETE", f"/v1/jobs/{job}")
            self._ends(client, job)

    def _click(self, client: Client, chance: random.Random) -> None:
        image = client.open(self._slide)
        x, y = (chance.randrange(self._slide.width) for _ in "xy")
        for _ in range(chance.randrange(1, 4)):
            self._ask(
                client,
                "POST",
                "/v1/prompt",
                {"image": image, "prompts": [{"points": [[x, y]]}]},
            )

    def _pixels(self, client: Client, chance: random.Random) -> None:
        file = io.BytesIO()
        noise = np.random.default_rng(chance.randrange(2**32))
        Image.fromarray(noise.integers(120, 250, (300, 300, 3), np.uint8)).save(file, "PNG")
        where = f"x={chance.randrange(9000)}&y=0&width=300&height=300&mpp=0.25"
        _, image = self._ask(
            client, "POST", f"/v1/images/pixels?{where}", raw=file.getvalue(), kind="image/png"
        )
        status, job = self._ask(
            client, "POST", "/v1/jobs", {"kind": "segment", "image": image["image"]}
        )
        if status == 202:
            self._ends(client, job["id"])

    def _look(self, client: Client, chance: random.Random) -> None:
        for path in ("/", "/v1/health", "/v1/jobs", "/docs", "/openapi.json", "/v1/models"):
            self._ask(client, "GET", path)
        jobs = client.ask("GET", "/v1/jobs")[1]["jobs"]
        for job in [job["id"] for job in jobs if job["picture"]][:3]:
            self._ask(client, "GET", f"/v1/jobs/{job}/picture")

    def _nonsense(self, client: Client, chance: random.Random) -> None:
        self._ask(client, "POST", "/v1/jobs", {"kind": "?", "x": [chance.random()]})
        self._ask(client, "POST", "/v1/images", {"path": "/etc/passwd"})
        self._ask(client, "POST", "/v1/prompt", raw=b"[" * 10_000, kind="application/json")
        self._ask(client, "POST", "/v1/model", {"name": "/tmp/evil.pt"})
        self._ask(client, "GET", "/v1/jobs/none")

    def _vanish(self, client: Client, chance: random.Random) -> None:
        """Go away: in the middle of a request, while waiting, while results come."""
        job = self._submitted(client, chance, 150)
        request = json.dumps({"image": client.open(self._slide), "prompts": [{"points": [[9, 9]]}]})
        lines = [
            "POST /v1/jobs HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{",
            f"GET /v1/jobs/{job}?wait=30 HTTP/1.1\r\n\r\n",
            f"GET /v1/jobs/{job}/result HTTP/1.1\r\n\r\n",
            "POST /v1/prompt HTTP/1.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(request)}\r\n\r\n{request}",
        ]
        host, _, port = client.host.partition(":")
        with socket.create_connection((host, int(port))) as gone:
            more = f"\r\nHost: {client.host}\r\nAuthorization: Bearer {client.token}\r\n"
            gone.sendall(chance.choice(lines).replace("\r\n", more, 1).encode())
            time.sleep(chance.random() / 2)


def _statuses(report: Path) -> list[int]:
    """Of all responses in a report of schemathesis."""
    found: list[int] = []

    def look(value: object) -> None:
        if isinstance(value, dict):
            status = value.get("status_code")
            if isinstance(status, int):
                found.append(status)
            else:
                for one in value.values():
                    look(one)
        elif isinstance(value, list):
            for one in value:
                look(one)

    for line in report.read_text(encoding="utf-8").splitlines():
        look(json.loads(line))
    return found
