"""Measure what the C ABI costs over the back end alone, and write it as JSON.

    python cpp/test/measure_overhead.py PROGRAM ARTIFACT... --calls 200 --output FILE

PROGRAM is ``destseg_overhead`` of a build with ``-DDESTSEG_BUILD_TOOLS=ON``; see its source for
what is timed. The overhead is the median of the differences of paired calls, over the median of
the bare calls; its uncertainty is the standard error of that median.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np

from destseg_deploy.environment import describe_environment
from destseg_deploy.spec import ModelSpec


def measure(program: Path, artifact: Path, backend: str, calls: int, threads: int) -> dict:
    """Return a row: milliseconds of each contender and the overhead in per cent."""
    command = [program, artifact, backend, str(calls), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    times = {name: np.array(values) for name, values in json.loads(done.stdout).items()}
    differences = times["abi"] - times["bare"]
    bare = float(np.median(times["bare"]))
    error = 1.2533 * float(np.std(differences)) / len(differences) ** 0.5
    spec = ModelSpec.read(artifact)
    return {
        "artifact": artifact.name,
        "size": list(spec.size),
        "network": list(spec.network_size),
        "backend": backend,
        "threads": threads,
        "calls": calls,
        "milliseconds": {
            name: {f"p{q}": float(np.percentile(values, q)) for q in (10, 50, 90)}
            for name, values in times.items()
        },
        "overhead_ms": float(np.median(differences)),
        "overhead_ms_standard_error": error,
        "overhead_percent": 100 * float(np.median(differences)) / bare,
        "overhead_percent_standard_error": 100 * error / bare,
        "overhead_percent_of_p10": 100
        * (float(np.percentile(times["abi"], 10)) / float(np.percentile(times["bare"], 10)) - 1),
    }


def main() -> None:
    """Measure every artifact on both back ends."""
    parser = argparse.ArgumentParser(description="Measure the overhead of the C ABI.")
    parser.add_argument("program", type=Path)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    rows = [
        measure(given.program, artifact, backend, given.calls, given.threads)
        for artifact in given.artifacts
        for backend in ("onnxruntime", "openvino")
    ]
    for row in rows:
        print(
            f"{row['artifact']} on {row['backend']}: bare {row['milliseconds']['bare']['p50']:.3f} "
            f"ms, overhead {row['overhead_percent']:+.3f} % "
            f"± {row['overhead_percent_standard_error']:.3f} %"
        )
    result = {"environment": describe_environment(), "rows": rows}
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
