"""Runs steps within a budget of time: each is a process with a limit, and its results are kept.

A borrowed GPU is there for minutes. So no step may take more than what is left of them; what a
stopped step had written counts; and each step is a command as a user would run it, so that none
depends on what another did to the GPU or to PyTorch's switches.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from destseg_bench.results import start_result, write_result
from destseg_deploy.environment import allowed_cores
from destseg_deploy.text import load_json

TAIL = 2000
"""Characters of a step's output that are kept."""

LEAST = 5.0
"""Seconds below which no step is begun."""

GRACE = 3.0
"""Seconds of the budget that a step may not use: it gets them to end when it is stopped."""


@dataclass(frozen=True)
class Step:
    """A command to run.

    Attributes:
        name: What it shows.
        command: Program and arguments.
        limit: Seconds that it may take.
        result: The JSON that it writes, copied into the outcome; None if it writes none.
        needs: Files of earlier steps; without one of them it is skipped.
        unless: Files of earlier steps; where one of them is there, this stand-in is skipped.
        takes: Arguments that are files of earlier steps; one that is missing is left out.
        beside: It times nothing: it is started with the step before it and runs beside that one.
    """

    name: str
    command: Sequence[str]
    limit: float
    result: Path | None = None
    needs: Sequence[Path] = ()
    unless: Sequence[Path] = ()
    takes: Sequence[Path] = ()
    beside: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        name: Of the step.
        command: As it was run.
        verdict: ``OK``, ``NG`` or ``skipped``.
        seconds: How long it took.
        reason: Why it is not OK, or what was left out.
        output: The end of what it printed.
        result: Content of the JSON that it wrote, also where it did not end well.
    """

    name: str
    command: str
    verdict: str
    seconds: float = 0.0
    reason: str = ""
    output: str = ""
    result: dict[str, Any] = field(default_factory=dict)


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    budget: float,
    *,
    environment: Mapping[str, str] | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
    **settings: Any,
) -> list[Outcome]:
    """Run steps in their order; ``gpu.json`` in the folder is written anew after each.

    Those that time nothing run beside each other, since they wait for the host's cores.

    Args:
        steps: What to run.
        folder: For results and logs.
        budget: Seconds for all of them together.
        environment: Variables of the processes; this process's unless given.
        report: Called with each outcome.
        **settings: What ``gpu.json`` says of how it was made.

    Raises:
        OSError: If the folder cannot be written.
    """
    end = time.monotonic() + budget
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    result = start_result("gpu", budget=budget, **settings, complete=False, steps=[])
    # A folder that cannot be written is refused before any of the GPU's time is spent.
    write_result(folder / "gpu.json", result)
    for together in group_steps(steps):
        left = end - time.monotonic() - GRACE
        for outcome in _run_together(together, folder, left, environment):
            outcomes.append(outcome)
            result["steps"].append(asdict(outcome))
            result["complete"] = len(outcomes) == len(steps)
            write_result(folder / "gpu.json", result)
            report(outcome)
    return outcomes


def group_steps(steps: Sequence[Step]) -> list[list[Step]]:
    """Put each step that runs beside the one before it into that one's group."""
    groups: list[list[Step]] = []
    for step in steps:
        if step.beside and groups:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _run_together(
    steps: Sequence[Step], folder: Path, left: float, environment: Mapping[str, str] | None
) -> Iterator[Outcome]:
    """Run steps at the same time, each on its share of the cores; yield outcomes in their order.

    On all cores, each would start a thread for each, and all of them would wait for each other.
    """
    cores = allowed_cores()

    def run(number: int) -> Outcome:
        if len(steps) > 1 and hasattr(os, "sched_setaffinity"):
            # Of this thread alone, from which the step's process inherits it.
            os.sched_setaffinity(0, cores[number :: len(steps)] or cores)
        return run_step(steps[number], folder, left, environment)

    with ThreadPoolExecutor(len(steps)) as pool:
        yield from pool.map(run, range(len(steps)))


def run_step(
    step: Step, folder: Path, left: float, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Run one step for at most the seconds left; skip it for want of them, or of what it needs.

    A stand-in is skipped where what it stands for is there.
    """
    gone = [path for path in step.takes if not path.exists()]
    words = [word for word in step.command if word not in map(str, gone)]
    command = " ".join([Path(words[0]).name, *words[1:]])
    if made := [path.name for path in step.unless if path.exists()]:
        return Outcome(step.name, command, "skipped", reason=f"{made[0]} was made")
    missing = [path.name for path in step.needs if not path.exists()]
    if missing:
        return Outcome(step.name, command, "skipped", reason=f"{missing[0]} was not made")
    if left < LEAST:
        reason = f"{max(left, 0):.0f} s of the budget are left, expected {LEAST:.0f} or more"
        return Outcome(step.name, command, "skipped", reason=reason)
    if step.result is not None:
        step.result.unlink(missing_ok=True)  # an old file must not pass for this run's
    log, start = folder / f"{step.name.replace(' ', '-')}.log", time.monotonic()
    reason = _run(words, log, min(step.limit, left), environment)
    took = round(time.monotonic() - start, 1)
    output = log.read_text("utf-8", errors="replace")[-TAIL:]
    result = _read(step.result)
    if not reason and step.result is not None and not result:
        reason = f"no result: {step.result} was not written"
    verdict = "NG" if reason else "OK"
    left_out = ", ".join(path.name for path in gone)
    reason = reason or (f"without {left_out}" if left_out else "")
    return Outcome(step.name, command, verdict, took, reason, output, result)


def _run(
    command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str] | None
) -> str:
    """Run a command into a log and return what went wrong; empty if nothing did.

    The log is a file, since a pipe would stay open in the processes that the command has started.
    """
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            _stop(process)
            return f"stopped after {limit:.0f} s"
        except BaseException:
            _stop(process)
            raise
    return f"exit status {status}" if status else ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and the processes that it has started, which hold the GPU's memory."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE / 2)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _read(path: Path | None) -> dict[str, Any]:
    """Return a result, also a part of one; empty if there is none."""
    if path is None:
        return {}
    try:
        found = load_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
