"""What dask-jobqueue starts in a job, ``python -m cbst_mx.cluster.worker``: dask's worker with our settings.

The variables of `nodes.MALLOC` and the threads are those of the cores that a job has for each of its processes.
"""

from __future__ import annotations

import os
import sys

from cbst_mx.cluster.nodes import run_dask_worker
from cbst_mx.messages import cores

__all__: list[str] = []

if __name__ == "__main__":
    arguments = sys.argv[1:]
    given = os.environ.get("OMP_NUM_THREADS", "")
    shared = int(arguments[arguments.index("--nworkers") + 1]) if "--nworkers" in arguments else 1
    run_dask_worker(arguments, int(given) if given.isdigit() else max(1, cores() // shared))
