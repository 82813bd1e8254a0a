"""As a script: run over a project with two workers of its own, slowly, and end as commands do.

``dask_run.py PROJECT MOVED`` prints the workers' process ids first.
"""

import os
import sys

from cheap_model import CheapLoader, CheapModel, treat

from pathosam_qupath.dask_cluster import connected
from pathosam_qupath.dask_workers import DaskWorkers
from pathosam_qupath.interruption import stop_on_interrupt

if __name__ == "__main__":
    with (
        connected("local", 2, "cpu") as client,
        DaskWorkers(client, CheapLoader(0.05), CheapModel().info) as workers,
        stop_on_interrupt(lambda: print("stopping", flush=True)) as stop,
    ):
        print(*client.run(os.getpid).values(), flush=True)
        treat(*sys.argv[1:], resume="auto", stop=stop, workers=workers)
    print("ended", flush=True)
