"""Where the time of an artifact goes: layer by layer, as its back end tells.

Times of a profiled run are longer than those of a plain one; their shares count. Convolutions are
told apart by shape, with their arithmetic, so that their rate can be seen beside the machine's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_bench.speed.cpu_rates import Rate, machine_rate
from destseg_deploy.device import CPU
from destseg_deploy.errors import BackendError
from destseg_deploy.files import scratch
from destseg_deploy.options import OpenVinoOptions, OrtOptions
from destseg_deploy.runtime.offline import import_onnxruntime, import_openvino
from destseg_deploy.runtime.openvino_runtime import compile_config, open_core
from destseg_deploy.runtime.ort.session import open_session
from destseg_deploy.spec import ModelSpec

GROUPS = {
    "resizes and products of matrices": ("Resize", "Interpolate", "MatMul", "FusedMatMul", "Gemm"),
    "quantise and dequantise": (
        "QuantizeLinear", "DequantizeLinear", "FakeQuantize",
    ),
    "reorders and copies": (
        "Reorder", "ReorderInput", "ReorderOutput", "Transpose", "Concat", "Concatenation", "Split",
        "Slice", "StridedSlice", "Reshape", "Convert", "Cast", "Gather", "Pad", "Expand", "Tile",
    ),
    "top-T": ("TopK",),
    "pooling": ("MaxPool", "AveragePool", "GlobalAveragePool", "Pooling"),
    "norms and means": ("ReduceL2", "ReduceSum", "ReduceMean", "ReduceSumSquare", "Reduce"),
}  # fmt: skip
"""What a table calls a group of operators -> their names in ONNX Runtime and OpenVINO."""

REST = "sums, products, activations"
CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv", "NhwcFusedConv", "Convolution")


@dataclass(frozen=True)
class Layer:
    """One operator of a run.

    Attributes:
        kind: Its operator, as the back end calls it.
        milliseconds: Its time, a mean over the runs.
        precision: Of its output, such as ``fp32``, ``bf16`` or ``int8``.
        shape: Of a convolution: ``3x3, 64 to 64, 64x64``; empty for all else.
        macs: Multiply-accumulates of a convolution, all images together; 0 for all else.
    """

    kind: str
    milliseconds: float
    precision: str
    shape: str = ""
    macs: int = 0

    @property
    def group(self) -> str:
        """What a table calls it."""
        if self.kind in CONVOLUTIONS:
            return f"convolution {self.shape}"
        return next((name for name, kinds in GROUPS.items() if self.kind in kinds), REST)


def group_layers(layers: Sequence[Layer], rates: Sequence[Rate] = ()) -> list[dict[str, Any]]:
    """Return a row for each group of layers, the longest first.

    Args:
        layers: Of one run.
        rates: What the machine multiplies at best; none leaves the shares of it out.

    Returns:
        ``name``; ``count`` of layers; ``milliseconds``; ``share`` of the run's time;
        ``precisions``; and of convolutions ``gmac_per_second`` and, with rates,
        ``rate_share``, of the machine's rate in that precision.
    """
    groups: dict[str, list[Layer]] = {}
    for one in layers:
        groups.setdefault(one.group, []).append(one)
    whole = sum(one.milliseconds for one in layers)
    rows = []
    for name, same in groups.items():
        time, macs = (sum(getattr(x, key) for x in same) for key in ("milliseconds", "macs"))
        precisions = sorted({one.precision for one in same})
        row = {"name": name, "count": len(same), "milliseconds": time, "share": time / whole}
        row["precisions"] = precisions
        if macs and time:
            row["gmac_per_second"] = macs / time / 1e6
            best = machine_rate(rates, precisions[0]) if len(precisions) == 1 else None
            row |= {} if best is None else {"rate_share": row["gmac_per_second"] / best}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["milliseconds"])


def profile_layers(
    artifact: Path, frames: NDArray[np.uint8], options: OrtOptions | OpenVinoOptions, *, runs: int
) -> list[Layer]:
    """Run an artifact on the CPU and return what each operator took.

    Args:
        artifact: ``.onnx``, or ``.xml`` for OpenVINO; its spec beside it.
        frames: uint8 (N, H, W, 3) at its input size.
        options: Of the back end that runs it.
        runs: Runs that are measured, after one that is not.

    Raises:
        SpecError: If the spec is missing or belongs to another file.
        BackendError: If the back end is not installed or refuses the file or an option.
    """
    spec = ModelSpec.read(artifact)
    spec.check_artifact(artifact)
    if isinstance(options, OrtOptions):
        return list(_onnxruntime(artifact, spec, frames, options, runs))
    return list(_openvino(artifact, spec, frames, options, runs))


def _openvino(
    artifact: Path, spec: ModelSpec, frames: NDArray[np.uint8], options: OpenVinoOptions, runs: int
) -> Iterator[Layer]:
    openvino = import_openvino()
    core = open_core(CPU, options.precision)
    config = compile_config(openvino, core, spec, CPU, options)
    compiled = core.compile_model(str(artifact), "CPU", {**config, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    for _ in range(1 + runs):  # its counters are means over all runs; the first one is one of them
        request.infer({spec.input.name: frames})
    for operator in compiled.get_runtime_model().get_ordered_ops():
        said = operator.get_rt_info()
        time = said["execTimeMcs"].astype(str) if "execTimeMcs" in said else "not_executed"
        if time == "not_executed":
            continue
        kind = said["layerType"].astype(str)
        precision = _plain(said["outputPrecisions"].astype(str))
        if kind not in CONVOLUTIONS:
            yield Layer(kind, int(time) / 1e3, precision)
            continue
        out, weights = (list(one.get_shape()) for one in (operator.output(0), operator.input(1)))
        yield _convolution(kind, int(time) / 1e3, _plain(_computes(said)), out, weights)


def _computes(said: Any) -> str:
    """Return the precision in an implementation's name, such as ``brgconv_avx512_I8``."""
    return str(said["primitiveType"].astype(str)).rsplit("_", 1)[-1]


def _onnxruntime(
    artifact: Path, spec: ModelSpec, frames: NDArray[np.uint8], options: OrtOptions, runs: int
) -> Iterator[Layer]:
    ort = import_onnxruntime()
    with scratch() as folder:
        profile = folder / "layers"
        session = open_session(ort, artifact, spec, CPU, options, profile=profile)
        for _ in range(1 + runs):
            session.run(None, {spec.input.name: frames})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [one for one in events if one["cat"] == "Node" and one["name"].endswith("_kernel_time")]
    first = len(nodes) // (1 + runs)
    if not nodes or first * (1 + runs) != len(nodes):
        raise BackendError(
            f"{artifact}: ONNX Runtime told of {len(nodes)} nodes in {1 + runs} runs, expected as "
            "many in each. Use another version of it."
        )
    for place in range(first):
        same = nodes[first + place :: first]  # the same node in each measured run
        yield _node(same[0]["args"], sum(one["dur"] for one in same) / len(same) / 1e3)


def _node(said: dict[str, Any], milliseconds: float) -> Layer:
    kind = said["op_name"]
    ((precision, out),) = said["output_type_shape"][0].items()
    if kind not in CONVOLUTIONS:
        return Layer(kind, milliseconds, _plain(precision))
    sizes = [next(iter(one.values())) for one in said["input_type_shape"]]
    weights = next(size for size in sizes[1:] if len(size) == 4)
    channels_last = out[-1] == weights[0] != out[1]
    out = [out[0], out[3], out[1], out[2]] if channels_last else out
    return _convolution(kind, milliseconds, _plain(precision), out, weights)


def _convolution(
    kind: str, milliseconds: float, precision: str, out: list[int], weights: list[int]
) -> Layer:
    """Return a convolution from its output (N, C, H, W) and its weights (O, I, h, w)."""
    outputs, inputs, height, width = weights[-4:]
    shape = f"{height}x{width}, {inputs} to {outputs}, {out[-2]}x{out[-1]}"
    return Layer(kind, milliseconds, precision, shape, prod(out) * inputs * height * width)


def _plain(precision: str) -> str:
    """Return the name of a precision as this project writes it."""
    names = {"f32": "fp32", "float": "fp32", "i8": "int8", "u8": "int8", "uint8": "int8"}
    return names.get(precision.lower(), precision.lower())
