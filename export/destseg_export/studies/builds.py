"""Which exported graphs build ahead of time, how long that takes and how large the engines are.

Needs no GPU: TensorRT-RTX parses and compiles on a CPU. The engines are not run, so this says
nothing about their answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from destseg_deploy.errors import ExportError
from destseg_deploy.files import scratch
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.runtime.tracebacks import letting_go
from destseg_deploy.spec import BatchRange, FileRecord, ModelSpec
from destseg_export.engine.builder import (
    ParsedNetwork,
    check_options,
    serialize,
)
from destseg_export.engine.layers import check_precision, count_in_network
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.site import AHEAD, Site, open_site
from destseg_export.graph.architecture import unmatched_weights, weight_shapes
from destseg_export.half.convert import to_half
from destseg_export.to_onnx import OLDEST_OPSETS, OnnxOptions, served_spec, trace

SIZES = (None, (1024, 1024))
"""Input sizes: the network's, and a camera's."""
PRECISIONS = ("fp32", "fp16", "bf16")
BATCH = BatchRange(1, 8, 32)


def study_builds(
    checkpoint: Path,
    targets: Sequence[str],
    report: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> dict[str, Any]:
    """Build a checkpoint's graphs ahead of time, for each target alone and for all at once.

    The graphs are those of all ``SIZES`` and ``PRECISIONS``.

    Args:
        checkpoint: The ``.safetensors`` or official ``.pckl``.
        targets: Compute capabilities, such as ``sm86``.
        report: Called with the builds done, all of them, and what comes next.

    Returns:
        ``builder``, ``batch``, and ``rows``, one for each build: ``input``, ``precision``,
        ``targets``, ``onnx_bytes``, ``engine_bytes``, ``parse_seconds``, ``build_seconds``,
        ``convolutions``, ``half_convolutions``, ``weights`` and ``unmatched_weights``, those that
        a refit could not name. A build that is refused has ``refused`` with the reason instead.

    Raises:
        BackendError: If TensorRT-RTX is not there.
        ExportError: If a target is not one of its own.
    """
    model, trained = load_checkpoint(checkpoint)
    with open_site(AHEAD, targets) as site:
        alone = [(target,) for target in site.targets]
        groups = [*alone, site.targets] if len(alone) > 1 else alone
        total, rows = len(SIZES) * len(PRECISIONS) * len(groups), list[dict[str, Any]]()
        for size in SIZES:
            spec = served_spec(trained, OnnxOptions(input_size=size, batch=BATCH))
            traced = dict[int, onnx.ModelProto]()
            for precision in PRECISIONS:
                opset = OLDEST_OPSETS[precision]
                if opset not in traced:
                    report(len(rows), total, f"tracing at opset {opset}")
                    traced[opset] = trace(model, spec, opset)
                with write_graph(traced[opset], spec, precision) as (path, written):
                    for group in groups:
                        report(len(rows), total, f"{precision} for {', '.join(group)}")
                        rows.append(_row(path, written, replace(site, targets=group)))
    report(total, total, "")
    return {"builder": site.title, "batch": str(BATCH), "rows": rows}


@contextmanager
def write_graph(
    traced: onnx.ModelProto, spec: ModelSpec, precision: str
) -> Iterator[tuple[Path, ModelSpec]]:
    """Bring a traced graph to a precision, and give it as a file for a while.

    It is not compared with PyTorch. Use ``export_onnx`` for a file that is to be run.
    """
    proto = traced if precision == "fp32" else to_half(traced, precision)[0]
    with scratch() as folder:
        path = folder / f"{spec.category}-{precision}.onnx"
        onnx.save_model(proto, path)
        yield path, replace(spec, precision=precision, artifact=FileRecord.of(path))


def _row(path: Path, spec: ModelSpec, site: Site) -> dict[str, Any]:
    try:
        return measure_build(path, spec, site)
    except ExportError as error:
        head = {"input": list(spec.size), "precision": spec.precision}
        return {**head, "targets": list(site.targets), "refused": str(error)}


@letting_go()
def measure_build(path: Path, spec: ModelSpec, site: Site) -> dict[str, Any]:
    """Parse and build one graph; see ``study_builds``.

    Raises:
        ExportError: If it does not build.
    """
    check_options(spec, site, BuildOptions())
    graph = ParsedNetwork(site, path)
    found = count_in_network(site.library, graph.network, spec.precision)
    check_precision(found, spec.precision, path.name)
    started = time.perf_counter()
    engine = serialize(graph, spec, BuildOptions())
    seconds = time.perf_counter() - started
    proto = onnx.load(path)
    return {
        "input": list(spec.size),
        "precision": spec.precision,
        "targets": list(site.targets),
        "onnx_bytes": path.stat().st_size,
        "engine_bytes": len(engine),
        "parse_seconds": round(graph.parse_seconds, 3),
        "build_seconds": round(seconds, 3),
        "convolutions": found.count,
        "half_convolutions": found.half,
        "weights": len(weight_shapes(proto)),
        "unmatched_weights": unmatched_weights(graph.network, proto),
    }
