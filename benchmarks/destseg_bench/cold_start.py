"""Cold start: a fresh process that imports, opens an artifact and gives its first answer.

``python -m destseg_bench.cold_start BACK_END ARTIFACT`` is that process. Files are in the page
cache after the first start; a machine that was just switched on takes longer to read them.
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
        back_end: One of ``cpu_setups.BACK_ENDS`` but ``compiled``.
        artifact: The file.
        starts: Processes; the first one also warms the page cache.

    Returns:
        ``seconds`` from starting the process to its first answer and ``open_seconds`` from after
        the imports of NumPy, medians; ``resident_mib``, the largest resident memory of a process.

    Raises:
        BackendError: If a process fails, with its last line.
    """
    runs = [_start(back_end, artifact) for _ in range(starts)]
    return {
        "seconds": float(np.median([run["seconds"] for run in runs])),
        "open_seconds": float(np.median([run["open_seconds"] for run in runs])),
        "resident_mib": max(run["resident_mib"] for run in runs),
        "starts": starts,
    }


def _start(back_end: str, artifact: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "destseg_bench.cold_start", back_end, str(artifact)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"{artifact.name}: a fresh process failed: {last}")
    found: dict[str, float] = json.loads(done.stdout)
    return {"seconds": seconds, **found}


def _first_answer(back_end: str, artifact: Path) -> dict[str, float]:
    """Open and infer once; resident memory is this process's largest."""
    from destseg_bench.cpu_setups import Setup, open_setup

    start = time.perf_counter()
    runtime = open_setup(Setup(artifact, back_end, ""))
    height, width = runtime.spec.size
    count = runtime.spec.input.batch.min
    runtime.infer(np.zeros((count, height, width, 3), np.uint8))
    seconds = time.perf_counter() - start
    return {"open_seconds": seconds, "resident_mib": largest_resident_mib()}


def largest_resident_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB.

    From Linux's own count where it is there: ``getrusage`` also counts what the parent held when
    it started this process.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kibibytes) / 1024


if __name__ == "__main__":
    print(json.dumps(_first_answer(sys.argv[1], Path(sys.argv[2]))))
