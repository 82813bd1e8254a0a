"""How soon the server answers, and whether it stays as it is under load.

    python benchmarks/server.py                       start, regions, clicks, cancelling
    python benchmarks/server.py --only clicks         one of them
    python benchmarks/server.py --malformed 500       requests that schemathesis makes
    python benchmarks/server.py --soak 10             eight clients for ten minutes

Everything goes through a real ``pathosam-qupath serve`` on the CPU, with the bundled model (or
--model) on the example's slide, mirrored to 4096 x 4096 (or --slide). A table is printed;
--json FILE keeps all figures. The exit code is 1 where a verdict is "failed".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import psutil
from server_latency import cancels, clicks, regions, starts
from server_load import malformed, soak
from server_process import Client, Serving, Slide, mosaic

LATENCIES = ("start", "regions", "clicks", "cancel")
AIMS = {
    "start, model ready": 6000,
    "region of 512 x 512": 1500,
    "further click there": 60,
    "cancel (ais), job ended": 1000,
    "cancel (apg), job ended": 1000,
}
"""Milliseconds."""


def measured(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """All figures that were asked for."""
    found: dict[str, object] = {"model": given.model, "cores": psutil.cpu_count()}
    found["load_before"] = round(psutil.getloadavg()[0], 2)
    latencies: dict[str, dict[str, float]] = {}
    if "start" in given.only:
        latencies |= starts(folder, given.model, given.starts)
    rest = [name for name in given.only if name != "start"]
    if rest or given.malformed or given.soak:
        slide = mosaic(folder, 2)
        if given.slide is not None:
            slide = Slide(given.slide, *given.size, given.mpp)
        with Serving(folder / "state", given.model, slide.path.parent) as serving:
            client = Client(serving.state)
            if "regions" in rest:
                latencies |= regions(client, slide, given.regions)
            if "clicks" in rest:
                latencies |= clicks(client, slide, given.clicks)
            if "cancel" in rest:
                latencies |= cancels(client, slide, given.cancels)
            if given.malformed:
                found["malformed"] = malformed(serving, given.malformed, folder)
            if given.soak:
                found["soak"] = soak(serving, slide, given.soak, given.clients)
            found["end_exit_code"] = serving.end()
            found["tracebacks"] = serving.tracebacks()
    found["latencies"] = latencies
    found["load_after"] = round(psutil.getloadavg()[0], 2)
    return found


def table(found: dict) -> str:
    """The figures for people, as Markdown."""
    lines = []
    if found["latencies"]:
        lines += ["| | n | median | p95 | aim |", "|---|---:|---:|---:|---:|"]
    for name, row in found["latencies"].items():
        aim = f"{AIMS[name]:,} ms" if name in AIMS else ""
        lines.append(
            f"| {name} | {row['count']} | {row['median_ms']:,.0f} ms | {row['p95_ms']:,.0f} ms "
            f"| {aim} |"
        )
    if "malformed" in found:
        row = found["malformed"]
        lines.append(
            f"malformed requests: {_verdict(row)}; {row['requests']} sent, "
            f"{row['server_errors']} answered with 5xx, statuses {row['statuses']}"
        )
    if "soak" in found:
        row = found["soak"]
        rss = row["rss_mb"]
        lines.append(
            f"soak, {row['clients']} clients, {row['minutes']:g} min: {_verdict(row)}; jobs "
            f"{row['jobs']}, faults {len(row['faults'])}, memory {rss['second_fifth']:.0f} → "
            f"{rss['last_fifth']:.0f} MB ({100 * row['growth']:+.1f} %), peak {rss['peak']:.0f}"
        )
    if "tracebacks" in found:
        lines.append(
            f"server ended with {found['end_exit_code']}, {found['tracebacks']} tracebacks"
        )
    return "\n".join(lines)


def _verdict(row: dict) -> str:
    return "passed" if row["ok"] else "FAILED"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--slide", type=Path, help="another slide; with --size and --mpp")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--only", nargs="*", choices=LATENCIES)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--regions", type=int, default=200)
    parser.add_argument("--clicks", type=int, default=200)
    parser.add_argument("--cancels", type=int, default=20)
    parser.add_argument("--malformed", type=int, default=0, metavar="REQUESTS")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.only is None:
        given.only = () if given.malformed or given.soak else LATENCIES
    if given.slide is not None and (given.size is None or given.mpp is None):
        parser.error("--slide needs --size and --mpp")
    with tempfile.TemporaryDirectory() as name:
        found = measured(given, Path(name))
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    checks = [found[name]["ok"] for name in ("malformed", "soak") if name in found]
    return 0 if all(checks) and not found.get("tracebacks") else 1


if __name__ == "__main__":
    sys.exit(main())
