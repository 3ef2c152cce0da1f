"""Measure what the C ABI costs over the back end alone, and write it as JSON.

    python cpp/test/measure_overhead.py PROGRAM [ARTIFACT...] --output FILE

PROGRAM is ``destseg_overhead`` of a build with ``-DDESTSEG_BUILD_TOOLS=ON``; see its source for
what is timed. The first artifact is made here: one that only copies, so that its own time does not
hide the ABI's. The overhead is the median of the differences of paired calls, its uncertainty the
standard error of that median; the control is the same for a second opening of the back end, whose
difference has no cause but the memory and the machine. A difference below it is not told apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from destseg_deploy.environment import describe_environment
from destseg_deploy.spec import (
    BatchRange,
    FileRecord,
    InputSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
)

BACKENDS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Plan:
    """How calls are made.

    Args:
        threads: Threads within one inference.
        rest_ms: Milliseconds of rest before each call; 0 with one thread.
        rounds: Processes that the calls are shared among, each with openings of its own: where an
            opening puts its memory decides some microseconds.
    """

    threads: int
    rest_ms: int
    rounds: int


def write_copying(folder: Path, size: int) -> Path:
    """Write an artifact whose map is the frame's first third, and whose score is its maximum.

    It takes the bytes in their order, which no back end makes slow, and divides them by 255.

    Args:
        folder: Receives ``copies-<size>.onnx`` and its spec.
        size: Of the square frame, in pixels.
    """
    path = folder / f"copies-{size}.onnx"
    helper, types = onnx.helper, onnx.TensorProto
    constants = {
        "flat": np.array([-1, size * size * 3], np.int64),
        "begin": np.array([0], np.int64),
        "end": np.array([size * size], np.int64),
        "axis": np.array([1], np.int64),
        "square": np.array([-1, size, size], np.int64),
        "white": np.array(255, np.float32),
        "sides": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["bytes"]),
        helper.make_node("Slice", ["bytes", "begin", "end", "axis"], ["third"]),
        helper.make_node("Reshape", ["third", "square"], ["map_bytes"]),
        helper.make_node("Cast", ["map_bytes"], ["values"], to=types.FLOAT),
        helper.make_node("Div", ["values", "white"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "sides"], ["score"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("image", types.UINT8, ["n", size, size, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", types.FLOAT, ["n", size, size]),
            helper.make_tensor_value_info("score", types.FLOAT, ["n"]),
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)
    record = FileRecord.of(path)
    ModelSpec(
        kind="onnx",
        category="copies",
        precision="fp32",
        input=InputSpec(size, size, BatchRange(1, 1, 1)),
        network=NetworkSpec(size, size),
        output=OutputSpec(size, size, top_k=1),
        artifact=record,
        checkpoint=record,
        tools={"onnx": onnx.__version__},
    ).write(path)
    return path


def call(program: Path, artifact: Path, backend: str, calls: int, plan: Plan) -> dict:
    """Return the milliseconds of each contender, those of all rounds one after the other."""
    found: dict[str, list[float]] = {}
    for seed in range(plan.rounds):
        share = calls // plan.rounds + (seed < calls % plan.rounds)
        numbers = map(str, (share, plan.threads, plan.rest_ms, seed))
        done = subprocess.run(
            [program, artifact, backend, *numbers], check=True, stdout=subprocess.PIPE, text=True
        )
        for name, values in json.loads(done.stdout).items():
            found.setdefault(name, []).extend(values)
    return {name: np.array(values) for name, values in found.items()}


def standard_error_of_median(values: np.ndarray) -> float:
    """Return it from the order of the values, so that a few very slow calls do not decide it.

    The median lies between the values of rank n/2 -+ sqrt(n)/2 with 68 %.
    """
    half = 0.5 / len(values) ** 0.5
    low, high = np.quantile(values, [max(0.0, 0.5 - half), min(1.0, 0.5 + half)])
    return float(high - low) / 2


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Return p10, p50 and p90."""
    return {f"p{q}": float(np.percentile(values, q)) for q in (10, 50, 90)}


def measure(program: Path, artifact: Path, backend: str, calls: int, plan: Plan) -> dict:
    """Return a row: milliseconds of each contender and the overhead in per cent."""
    times = call(program, artifact, backend, calls, plan)
    differences, control = (times[name] - times["bare"] for name in ("abi", "bare-again"))
    bare, median = float(np.median(times["bare"])), float(np.median(differences))
    error = standard_error_of_median(differences)
    spec = ModelSpec.read(artifact)
    return {
        "artifact": artifact.name,
        "size": list(spec.size),
        "network": list(spec.network_size),
        "backend": backend,
        "threads": plan.threads,
        "rest_ms": plan.rest_ms,
        "rounds": plan.rounds,
        "calls": len(times["bare"]),
        "milliseconds": {name: percentiles(values) for name, values in times.items()},
        "difference_ms": percentiles(differences),
        "overhead_ms": median,
        "overhead_ms_standard_error": error,
        "overhead_percent": 100 * median / bare,
        "overhead_percent_standard_error": 100 * error / bare,
        "control_ms": float(np.median(control)),
        "control_ms_standard_error": standard_error_of_median(control),
    }


def show(row: dict) -> str:
    """Return a row as two lines."""
    bare, difference = row["milliseconds"]["bare"], row["difference_ms"]
    error, percent = row["overhead_ms_standard_error"], row["overhead_percent"]
    control, noise = row["control_ms"], row["control_ms_standard_error"]
    return (
        f"{row['artifact']} on {row['backend']}, {row['calls']} calls: bare p10 {bare['p10']:.3f} "
        f"p50 {bare['p50']:.3f} p90 {bare['p90']:.3f} ms\n"
        f"  ABI {1000 * row['overhead_ms']:+.1f} ± {1000 * error:.1f} us ({percent:+.3f} %), "
        f"p10 {1000 * difference['p10']:+.1f} p90 {1000 * difference['p90']:+.1f} us; a second "
        f"opening {1000 * control:+.1f} ± {1000 * noise:.1f} us"
    )


def main() -> None:
    """Measure the copying artifact, and every other one, on both back ends."""
    parser = argparse.ArgumentParser(
        description="Measure the overhead of the C ABI.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("program", type=Path, help="destseg_overhead")
    parser.add_argument("artifacts", type=Path, nargs="*", help="real networks")
    parser.add_argument("--calls", type=int, default=25, help="of each contender and network")
    parser.add_argument("--copying-calls", type=int, default=5000, help="of the copying artifact")
    parser.add_argument("--copying-size", type=int, default=256, help="side of its frame")
    parser.add_argument("--threads", type=int, default=1, help="within one inference")
    parser.add_argument(
        "--rest",
        type=int,
        default=0,
        help="milliseconds before each call; 100 for OpenVINO with more than one thread",
    )
    parser.add_argument("--rounds", type=int, default=5, help="processes the calls are split among")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    plan = Plan(given.threads, given.rest, given.rounds)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copying = write_copying(Path(folder), given.copying_size)
        counts = {copying: given.copying_calls} | dict.fromkeys(given.artifacts, given.calls)
        for artifact, calls in counts.items():
            for backend in BACKENDS:
                rows.append(measure(given.program, artifact, backend, calls, plan))
                print(show(rows[-1]), flush=True)
    result = {"environment": describe_environment(), "rows": rows}
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
