"""Everything a GPU host must show, as steps that are separate commands, gathered in one file.

A step is a process of its own, as a user would run it: what one does to the GPU or to PyTorch's
switches cannot help another. A step that cannot run here is skipped with the reason, one that fails
is reported with the end of its output, and the others go on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from destseg_deploy.atomic import replacing
from destseg_deploy.environment import describe_environment
from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.trt_library import MODULES, load_library

TAIL = 2000
"""Characters of a step's output that are kept."""

PRECISIONS = ("fp32", "fp16", "bf16")
ENGINES = ("fp32", "fp16")
BATCHES = "1,8,32"


@dataclass(frozen=True)
class Step:
    """A command to run.

    Attributes:
        name: What it shows.
        command: Program and arguments.
        result: The JSON that it writes, to be taken over; None where it writes none.
        missing: Why it cannot run here; empty where it can.
    """

    name: str
    command: Sequence[str]
    result: Path | None = None
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        name: Of the step.
        command: As it was run.
        status: ``passed``, ``failed`` or ``skipped``.
        seconds: How long it took.
        reason: Why it was skipped, or the exit status of one that failed.
        output: The end of what it printed.
        result: What its JSON holds.
    """

    name: str
    command: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    output: str = ""
    result: dict[str, Any] = field(default_factory=dict)


def acceptance_steps(
    checkpoint: Path, category: Path, work: Path, tests: Path | None
) -> list[Step]:
    """Return the steps of ``make gpu-acceptance``.

    Args:
        checkpoint: A trained model.
        category: A folder in the MVTec AD layout, with test images.
        work: Folder for artifacts and results.
        tests: The project's tests; None where they are not at hand.
    """
    no_engine = _no_builder()
    onnx = [work / f"{checkpoint.stem}-{p}.onnx" for p in PRECISIONS]
    engines = [work / f"{checkpoint.stem}-{p}.engine" for p in ENGINES]
    artifacts = [checkpoint, *onnx, *([] if no_engine else engines)]
    return [
        _test_step(tests),
        *(_export_step(checkpoint, category, work, p, "onnx") for p in PRECISIONS),
        *(_export_step(checkpoint, category, work, p, "engine", no_engine) for p in ENGINES),
        _agreement_step(artifacts, category, work),
        _latency_step(artifacts, category, work),
    ]


def run_steps(
    steps: Sequence[Step],
    output: Path,
    *,
    limit: float = 600.0,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run steps one after another; the file is written anew after each.

    Args:
        steps: What to run.
        output: JSON; ``complete`` says whether every step had its turn.
        limit: Seconds after which a step is stopped and counts as failed.
        report: Called with each outcome.

    Raises:
        OSError: If the file cannot be written.
    """
    environment, outcomes = describe_environment(), list[Outcome]()
    for step in steps:
        outcomes.append(run_step(step, limit))
        result = {
            "environment": environment,
            "complete": len(outcomes) == len(steps),
            "steps": [asdict(outcome) for outcome in outcomes],
        }
        with replacing(output) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        report(outcomes[-1])
    return outcomes


def run_step(step: Step, limit: float) -> Outcome:
    """Run one step, unless something is missing for it."""
    command = " ".join([Path(step.command[0]).name, *step.command[1:]])
    if step.missing:
        return Outcome(step.name, command, "skipped", reason=step.missing)
    if step.result is not None:
        step.result.unlink(missing_ok=True)  # or an old one could pass for this run's
    start = time.monotonic()
    status, text = _run(step.command, limit)
    took = round(time.monotonic() - start, 1)
    if status:
        return Outcome(step.name, command, "failed", took, status, text[-TAIL:])
    try:
        result = {} if step.result is None else json.loads(step.result.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return Outcome(step.name, command, "failed", took, f"no result: {error}", text[-TAIL:])
    return Outcome(step.name, command, "passed", took, output=text[-TAIL:], result=result)


def _run(command: Sequence[str], limit: float) -> tuple[str, str]:
    """Return what went wrong, empty for nothing, and what was printed."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode(errors="replace") if error.stdout else ""
        return f"stopped after {limit:.0f} s", printed
    except OSError as error:
        return f"cannot be started: {error.strerror}", ""
    return (f"exit status {done.returncode}" if done.returncode else ""), done.stdout


# --- the steps


def _no_builder() -> str:
    """Return why no engine can be built here; empty where one can."""
    reasons = []
    for builder in MODULES:
        try:
            load_library(builder)
        except BackendError as error:
            reasons.append(str(error))
        else:
            return ""
    return " ".join(reasons)


def _test_step(tests: Path | None) -> Step:
    missing = "" if tests is not None else "the project's tests are not here; run it in a checkout"
    words = ["-m", "pytest", "-m", "gpu", "-q", "-ra", str(tests)]
    return Step("tests on the GPU", [sys.executable, *words], missing=missing)


def _export_step(
    checkpoint: Path, category: Path, work: Path, precision: str, kind: str, missing: str = ""
) -> Step:
    words = ["--checkpoint", str(checkpoint), "--output", str(work), "--batch", "1:8:32"]
    words += ["--precision", precision, "--format", kind, "--verify-images", str(category / "test")]
    return Step(f"{precision} {kind}", [_script("destseg-export"), *words], missing=missing)


def _agreement_step(artifacts: Sequence[Path], category: Path, work: Path) -> Step:
    result = work / "agreement.json"
    words = ["agreement", *map(str, artifacts), "--data", str(category)]
    words += ["--device", "cuda", "--output", str(result)]
    return Step("agreement", [_script("destseg-bench"), *words], result)


def _latency_step(artifacts: Sequence[Path], category: Path, work: Path) -> Step:
    result = work / "latency.json"
    words = ["latency", *map(str, artifacts), "--images", str(category / "test")]
    words += ["--device", "cuda", "--batch", BATCHES, "--compiled", "--rounds", "100"]
    words += ["--warmup", "10", "--output", str(result)]
    return Step("latency", [_script("destseg-bench"), *words], result)


def _script(name: str) -> str:
    """Return a command that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))
