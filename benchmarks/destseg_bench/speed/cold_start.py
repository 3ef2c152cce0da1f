"""Cold start: a fresh process that imports, opens an artifact and gives its first answer.

``python -m destseg_bench.speed.cold_start BACK_END ARTIFACT`` is that process. After the first
start the files are in the page cache; a machine that was just switched on takes longer to read
them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from destseg_deploy.errors import BackendError


def measure_cold_start(back_end: str, artifact: Path, *, starts: int = 3) -> dict[str, Any]:
    """Start processes one after another.

    Args:
        back_end: Key of ``contenders.CPU_BACK_ENDS``.
        artifact: The file.
        starts: Number of processes; the first one also warms the page cache.

    Returns:
        ``seconds``, from the start of the process to its first answer; ``open_seconds``, the part
        after the imports of the benchmark; ``resident_mib``, the largest resident memory of a
        process; and ``starts``. Both times are medians.

    Raises:
        BackendError: If a process fails, with the last line that it printed.
    """
    runs = [_start(back_end, artifact) for _ in range(starts)]
    return {
        "seconds": float(np.median([run["seconds"] for run in runs])),
        "open_seconds": float(np.median([run["open_seconds"] for run in runs])),
        "resident_mib": max(run["resident_mib"] for run in runs),
        "starts": starts,
    }


def _start(back_end: str, artifact: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "destseg_bench.speed.cold_start", back_end, str(artifact)]
    # The new process finds what this one finds, installed or in a checkout.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"{artifact.name}: a fresh process failed: {last}")
    found: dict[str, float] = json.loads(done.stdout)
    return {"seconds": seconds, **found}


def first_answer(back_end: str, artifact: Path) -> dict[str, float]:
    """Open and infer once; return its seconds and this process's largest memory."""
    from destseg_bench.speed.contenders import open_artifact  # only the new process needs it

    start = time.perf_counter()
    runtime = open_artifact(artifact, back_end).runtime
    count = runtime.spec.input.batch.min
    runtime.infer(np.zeros((count, *runtime.spec.size, 3), np.uint8))
    seconds = time.perf_counter() - start
    return {"open_seconds": seconds, "resident_mib": largest_resident_mib()}


def largest_resident_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB.

    Linux's own count is preferred: ``getrusage`` also counts what the parent held when it started
    this process.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kibibytes) / 1024


if __name__ == "__main__":
    print(json.dumps(first_answer(sys.argv[1], Path(sys.argv[2]))))
