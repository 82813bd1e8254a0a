"""A real server process on a free port, and plain requests to it."""

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

IMAGES = Path(__file__).parents[1] / "data" / "fixtures" / "0.6.0" / "images"
IHC = IMAGES / "ihc.png"
MPP = 0.6
REGION = "6a3f0e0e-7a43-4a7f-9a3c-0d3f2f6f9d11"
_SECONDS = 240


class Answer:
    """A response: status, headers, body."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self):
        body = self.body
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        return json.loads(body)

    @property
    def code(self):
        return self.json["error"]["code"]


class LiveServer:
    """``pathosam-qupath serve`` in a process of its own, with a state folder of its own."""

    def __init__(
        self,
        folder,
        *words,
        roots=(IMAGES,),
        wait_for_model=True,
        wrapper=(),
        environment=None,
        **process,
    ):
        self.folder = Path(folder)
        command = [*wrapper, sys.executable, "-m", "pathosam_qupath", "serve", "--port", "0"]
        command += ["--state", str(self.folder), "--device", "cpu", *map(str, words)]
        for root in roots:
            command += ["--root", str(root)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.log = (self.folder.parent / f"{self.folder.name}.log").open("w+b")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, env=environment, **process
        )
        self.state = self._wait_for_state()
        if wait_for_model:
            self.wait_for_model()

    def _wait_for_state(self):
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            if (self.folder / "server.json").exists():
                state = json.loads((self.folder / "server.json").read_text())
                if state["pid"] == self.process.pid:  # else a killed server left it
                    return state
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.said()}")

    def wait_for_model(self):
        until = time.monotonic() + _SECONDS
        while (health := self.get("/v1/health?wait=5").json)["state"] == "loading":
            assert time.monotonic() < until, "the model was not loaded in time"
        return health

    def said(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read().decode()

    @property
    def host(self):
        return urlsplit(self.state["url"]).netloc

    def ask(self, method, path, body=None, headers=None, *, token=True, raw=None, skip_host=False):
        """One request; ``headers`` go last and win."""
        sent = {"Authorization": f"Bearer {self.state['token']}"} if token else {}
        if body is not None:
            raw, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        sent.update(headers or {})
        connection = http.client.HTTPConnection(self.host, timeout=_SECONDS)
        try:
            connection.request(method, path, raw, sent)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def post(self, path, body, **more):
        return self.ask("POST", path, body, **more)

    def open(self, path=IHC, **more):
        answer = self.post("/v1/images", {"path": str(path), "mpp": MPP, **more})
        assert answer.status == 201, answer.body
        return answer.json["image"]

    def segment(self, image, regions=None, **more):
        answer = self.post(
            "/v1/jobs", {"kind": "segment", "image": image, "regions": regions, **more}
        )
        assert answer.status == 202, answer.body
        return answer.json["id"]

    def wait(self, job, until=("done", "failed", "cancelled")):
        """The job once it is in one of the states."""
        deadline = time.monotonic() + _SECONDS
        seen = 0
        while time.monotonic() < deadline:
            found = self.get(f"/v1/jobs/{job}?wait=10&seen={seen}").json
            if found["state"] in until:
                return found
            seen = found["progress"]["change"]
        raise AssertionError(f"the job did not get there: {found}")

    def features(self, job):
        answer = self.get(f"/v1/jobs/{job}/result", headers={"Accept-Encoding": "gzip"})
        assert answer.status == 200, answer.body
        return answer.json["features"]

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.log.close()


def rectangle(x, y, width, height, number=REGION, **properties):
    """A region as QuPath exports one."""
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    return {
        "type": "Feature",
        "id": number,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }


def regions(*features):
    return {"type": "FeatureCollection", "features": list(features)}
