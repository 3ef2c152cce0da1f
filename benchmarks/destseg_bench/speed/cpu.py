"""DeSTSeg on a CPU: speed, cold start, memory and accuracy of every way to run it, in one study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from destseg_bench.speed.agreement import Skipped, score_each
from destseg_bench.speed.cold_start import measure_cold_start
from destseg_bench.speed.contenders import CPU_BACK_ENDS, open_artifact
from destseg_bench.speed.cpu_rates import machine_rate, measure_cpu_rates
from destseg_bench.speed.latency import find_frames, measure_latency
from destseg_bench.speed.torch_contenders import computes_bf16
from destseg_bench.timing import Advance, Contender
from destseg_deploy.evaluation.test_set import compute_metrics
from destseg_deploy.spec import ModelSpec

OPENVINO_SUFFIX = ".xml"
"""OpenVINO's own format, which ONNX Runtime does not open."""


def list_cpu_contenders(
    checkpoint: Path,
    plain: Path,
    fused: Path,
    int8: Sequence[Path],
    *,
    threads: int = 0,
    compiled: bool = False,
) -> list[Contender]:
    """Return what the study compares: PyTorch first, then every file in every back end.

    Args:
        checkpoint: ``.safetensors``.
        plain: The export without fusions.
        fused: The same with fusions.
        int8: INT8 artifacts; those in OpenVINO's own format run on OpenVINO alone.
        threads: Threads within an operator; 0 for each back end's choice.
        compiled: Include torch.compile.

    Raises:
        SpecError: If a spec is missing.
    """

    def one(back_end: str, artifact: Path, note: str) -> Contender:
        spec = ModelSpec.read(artifact)
        precision = spec.precision
        if back_end == "openvino-bf16" and precision == "fp32":
            precision = "bf16"  # convolutions in INT8 stay as they are
        name = f"{back_end}, {note}"
        return Contender(name, artifact, precision, spec.size, back_end, threads=threads)

    found = [one("pytorch", checkpoint, "fp32")]
    if computes_bf16():
        half = replace(found[0], precision="bf16", torch_way="eager")
        found.append(replace(half, name="pytorch, bf16"))
    if compiled:
        found.append(replace(found[0], name="compiled, fp32", torch_way="compiled"))
    for back_end in CPU_BACK_ENDS:
        if back_end != "pytorch":
            files = [p for p in int8 if back_end != "onnxruntime" or p.suffix != OPENVINO_SUFFIX]
            found += [one(back_end, plain, "plain"), one(back_end, fused, "fused")]
            found += [one(back_end, path, path.stem) for path in files]
    return found


def measure_cpu(
    contenders: Sequence[Contender],
    category: Path,
    *,
    rounds: dict[int, int],
    warmup: int = 2,
    starts: int = 3,
    progress: Callable[[str], AbstractContextManager[Advance]],
    save: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Time contenders interleaved, start each in fresh processes, and score a test set with each.

    PyTorch's other ways are only timed: torch.compile compiles for minutes and computes what
    PyTorch does, and bf16's answers are measured in OpenVINO.

    Args:
        contenders: The others are compared with the first.
        category: A folder in the MVTec AD layout, with masks.
        rounds: Batch size -> timed calls of each contender.
        warmup: Calls of each before, not timed.
        starts: Fresh processes of each contender.
        progress: Makes the function that is told what is done, from a label.
        save: Called after each of the parts with what was found so far.

    Returns:
        ``latency``, the rows of ``measure_latency``; ``rates``, what the CPU multiplies at best,
        see ``cpu_rates``; each row of a precision that is among them has its ``rate_share``;
        ``start``, name -> ``measure_cold_start``; ``accuracy``, name -> metrics in [0, 1].
    """
    found: dict[str, Any] = {"latency": []}
    gmac = _least_gmac(contenders)
    frames = find_frames(category / "test", max(rounds))
    with progress("timing") as advance:
        for batch, count in rounds.items():
            for rows in measure_latency(
                contenders, frames, batches=(batch,), rounds=count, warmup=warmup, report=advance
            ):
                found["latency"] += rows
    save(found)
    with progress("measuring the CPU") as advance:
        rates = measure_cpu_rates(report=advance)
    found["rates"] = [asdict(one) for one in rates]
    for row, one in product(found["latency"], contenders):
        if row["name"] == one.name and gmac and "lowest" in row:
            best = machine_rate(rates, one.precision)
            fastest = (
                1e3 * row["batch"] * gmac / row["lowest"]
            )  # GMAC a second, of the fastest call
            row |= {} if best is None else {"rate_share": fastest / best}
    save(found)
    runtimes = [one for one in contenders if not one.torch_way]
    found["start"] = {
        one.name: measure_cold_start(one.back_end, one.artifact, starts=starts) for one in runtimes
    }
    save(found)
    opens = [
        partial(open_artifact, one.artifact, one.back_end, threads=one.threads) for one in runtimes
    ]
    with progress("scoring") as advance:
        tests = zip(runtimes, score_each(opens, category, advance), strict=True)
        found["accuracy"] = {
            one.name: {"skipped": test.reason}
            if isinstance(test, Skipped)
            else dict(compute_metrics(test).rows())
            for one, test in tests
        }
    save(found)
    return found


def _least_gmac(contenders: Sequence[Contender]) -> float | None:
    """Return the least arithmetic that the answers need: the fused graph's, in 1e9 MAC an image.

    None if no spec says it.
    """
    specs = (ModelSpec.read(one.artifact) for one in contenders)
    known = [one.fusion.macs_after for one in specs if one.fusion and one.fusion.macs_after]
    return min(known) / 1e9 if known else None
