"""How soon the server answers, and whether it stays as it is under load.

    python benchmarks/server.py                     latencies: start, a region, clicks
    python benchmarks/server.py --fuzz              and some hundred malformed requests
    python benchmarks/server.py --soak 10           and eight clients for ten minutes

Everything goes through a real ``pathosam-qupath serve`` with the bundled model (or --model)
on the example project's slide. Results are printed as JSON; --out keeps them.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
SLIDE = ROOT / "projects_example" / "images" / "colon-ihc.tif"
MPP = 0.25
SIDE = 2048
FUZZ_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth"
)


class Client:
    """Requests over one connection, as a menu makes them."""

    def __init__(self, state: dict) -> None:
        self.token = state["token"]
        self.connection = http.client.HTTPConnection(urlsplit(state["url"]).netloc, timeout=300)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        """Status, and the JSON or bytes of the answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept-Encoding": "gzip"}
        raw = None
        if body is not None:
            raw, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        self.connection.request(method, path, raw, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.getheader("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        kind = answer.getheader("Content-Type") or ""
        return answer.status, json.loads(content) if "json" in kind else content

    def open(self) -> str:
        """The id of the slide."""
        status, image = self.ask("POST", "/v1/images", {"path": str(SLIDE), "mpp": MPP})
        assert status == 201, image
        return image["image"]

    def segment(self, image: str, x: int, y: int, side: int) -> str:
        """Submit a square region; the job's id."""
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        feature = {
            "type": "Feature",
            "id": None,
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {},
        }
        regions = {"type": "FeatureCollection", "features": [feature]}
        status, job = self.ask(
            "POST", "/v1/jobs", {"kind": "segment", "image": image, "regions": regions}
        )
        assert status == 202, job
        return job["id"]

    def wait(self, job: str) -> dict:
        """The job once it has ended."""
        while True:
            _, found = self.ask("GET", f"/v1/jobs/{job}?wait=20")
            if found["state"] in ("done", "failed", "cancelled"):
                return found


class Serving:
    """The server process."""

    def __init__(self, folder: Path, model: str) -> None:
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "pathosam_qupath", "serve", "--port", "0", "--model"]
        command += [model, "--device", "cpu", "--state", str(folder), "--root", str(ROOT)]
        self.log = (folder.parent / "server.log").open("w+b")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while not (folder / "server.json").exists():
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.02)
        self.state = json.loads((folder / "server.json").read_text())
        self.port_open = time.perf_counter() - self.began
        while Client(self.state).ask("GET", "/v1/health?wait=20")[1]["state"] == "loading":
            pass
        self.ready = time.perf_counter() - self.began

    def memory(self) -> float:
        """Resident MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def end(self) -> int:
        """End it politely; its exit code."""
        self.process.terminate()
        return self.process.wait(60)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    values = 1000 * np.array(seconds)
    return {
        "count": len(values),
        "median_ms": round(float(np.median(values)), 1),
        "p95_ms": round(float(np.percentile(values, 95)), 1),
    }


def regions(client: Client, repeats: int) -> dict[str, float]:
    """A 512 x 512 region each time elsewhere: open, submit, wait, download, parse."""
    random.seed(1)
    seconds, nuclei = [], []
    for _ in range(repeats + 1):
        x, y = random.randrange(0, SIDE - 512), random.randrange(0, SIDE - 512)
        began = time.perf_counter()
        job = client.segment(client.open(), x, y, 512)
        client.wait(job)
        _, result = client.ask("GET", f"/v1/jobs/{job}/result")
        seconds.append(time.perf_counter() - began)
        nuclei.append(len(result["features"]))
        time.sleep(0.3)  # the picture for the page is drawn meanwhile
    return {**summary(seconds[1:]), "nuclei": float(np.mean(nuclei[1:]))}


def clicks(client: Client, count: int) -> dict[str, object] | None:
    """First clicks on places that no earlier click was near, and clicks beside them."""
    _, health = client.ask("GET", "/v1/health")
    if not health["model"]["prompts"]:
        return None
    random.seed(2)
    first: list[float] = []
    further: list[float] = []
    passes = Counter()
    image = client.open()
    step = 512
    places = [(x, y) for y in range(step // 2, SIDE, step) for x in range(step // 2, SIDE, step)]
    each = -(-count // len(places))
    for x, y in places:
        for i in range(each + 1):
            at = [x + random.uniform(-60, 60), y + random.uniform(-60, 60)] if i else [x, y]
            prompts = {"image": image, "prompts": [{"points": [at]}]}
            began = time.perf_counter()
            status, answer = client.ask("POST", "/v1/prompt", prompts)
            took = time.perf_counter() - began
            assert status == 200, answer
            if answer["encoder_passes"]:
                first.append(took)
            else:
                further.append(took)
            passes["first" if i == 0 else "further"] += answer["encoder_passes"]
    return {"with an encoder pass": summary(first), "without": summary(further), **passes}


def fuzz(state: dict, examples: int) -> dict[str, object]:
    """Requests that schemathesis makes from the OpenAPI document, most of them malformed."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run"]
    command += [f"{state['url']}/openapi.json", "-H", f"Authorization: Bearer {state['token']}"]
    command += ["--checks", FUZZ_CHECKS, "--exclude-path=/v1/shutdown", "--seed=7", "--no-shrink"]
    command += ["--max-examples", str(examples), "--phases=examples,coverage,fuzzing"]
    command += ["--request-timeout=60", "--suppress-health-check=all", "--warnings=off"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    cases = [line.strip() for line in done.stdout.splitlines() if "generated" in line]
    return {"exit_code": done.returncode, "cases": " ".join(cases)}


def soak(serving: Serving, minutes: float, clients: int) -> dict[str, object]:
    """Clients that segment, click, cancel, look, send nonsense and go away in the middle."""
    until = time.monotonic() + 60 * minutes
    ended: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    memory: list[tuple[float, float]] = []
    can_click = Client(serving.state).ask("GET", "/v1/health")[1]["model"]["prompts"]

    def work(number: int) -> None:
        chance = random.Random(number)
        client = Client(serving.state)
        try:
            while time.monotonic() < until:
                what = chance.random()
                x, y = chance.randrange(0, SIDE - 400), chance.randrange(0, SIDE - 400)
                image = client.open()
                if what < 0.45:
                    job = client.segment(image, x, y, chance.choice((100, 200, 400)))
                    if chance.random() < 0.3:
                        time.sleep(chance.random())
                        client.ask("DELETE", f"/v1/jobs/{job}")
                    found = client.wait(job)
                    ended[found["state"]] += 1
                    if found["state"] == "done":
                        statuses[client.ask("GET", f"/v1/jobs/{job}/result")[0]] += 1
                elif what < 0.7:
                    prompts = {"image": image, "prompts": [{"points": [[x, y]]}]}
                    status, _ = client.ask("POST", "/v1/prompt", prompts)
                    statuses[status] += 1
                elif what < 0.85:
                    statuses[client.ask("POST", "/v1/jobs", {"kind": "?", "x": [x]})[0]] += 1
                    statuses[client.ask("GET", "/v1/jobs")[0]] += 1
                else:
                    client.segment(image, x, y, 150)
                    client.connection.close()
                    client = Client(serving.state)
        except Exception as error:
            faults.append(f"client {number}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        memory.append((round(time.monotonic() - began, 1), round(serving.memory(), 1)))
        time.sleep(2)
    watcher = Client(serving.state)
    while True:
        jobs = watcher.ask("GET", "/v1/jobs")[1]["jobs"]
        if all(job["state"] in ("done", "failed", "cancelled") for job in jobs):
            break
        time.sleep(0.5)
    rss = np.array([value for _, value in memory])
    warm = rss[len(rss) // 5 :]  # caches fill at first
    middle = len(warm) // 2
    return {
        "minutes": minutes,
        "clients": clients,
        "clicks": bool(can_click),
        "jobs": dict(ended),
        "last_jobs": dict(Counter(job["state"] for job in jobs)),
        "statuses": dict(statuses),
        "faults": faults,
        "alive": serving.process.poll() is None,
        "rss_mb": {
            "start": rss[0],
            "warm_first_half": round(float(np.median(warm[:middle])), 1),
            "warm_second_half": round(float(np.median(warm[middle:])), 1),
            "peak": float(rss.max()),
            "end": float(rss[-1]),
        },
        "growth": round(float(np.median(warm[middle:]) / np.median(warm[:middle]) - 1), 3),
        "memory": memory[:: max(1, len(memory) // 60)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--regions", type=int, default=20)
    parser.add_argument("--clicks", type=int, default=200)
    parser.add_argument("--fuzz", type=int, nargs="?", const=10, default=0)
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, object] = {"model": given.model, "cores": psutil.cpu_count()}
    found["load_before"] = psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        starts = []
        for number in range(given.starts):
            serving = Serving(Path(name) / f"state{number}", given.model)
            starts.append((serving.port_open, serving.ready))
            if number < given.starts - 1:
                serving.end()
        port, ready = np.median(np.array(starts), axis=0)
        found["start"] = {"port_open_s": round(float(port), 2), "ready_s": round(float(ready), 2)}
        client = Client(serving.state)
        if given.regions:
            found["region_512"] = regions(client, given.regions)
        if given.clicks:
            found["clicks"] = clicks(client, given.clicks)
        if given.fuzz:
            found["fuzz"] = fuzz(serving.state, given.fuzz)
        if given.soak:
            found["soak"] = soak(serving, given.soak, given.clients)
        found["end_exit_code"] = serving.end()
        serving.log.seek(0)
        found["tracebacks"] = serving.log.read().decode().count("Traceback")
    found["load_after"] = psutil.getloadavg()[0]
    text = json.dumps(found, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
