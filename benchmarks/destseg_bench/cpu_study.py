"""DeSTSeg on a CPU: speed, memory, cold start and accuracy of every setup, in one study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from destseg_bench.cold_start import measure_cold_start
from destseg_bench.cpu_setups import Setup, contender, open_setup
from destseg_bench.latency import find_frames, measure_latency
from destseg_deploy.evaluation import compute_metrics, score_test_set
from destseg_deploy.predictor import Predictor

Progress = Callable[[int, int, str], None]


def time_setups(
    setups: Sequence[Setup],
    category: Path,
    *,
    rounds: dict[int, int],
    warmup: int = 2,
    threads: int = 0,
    report: Progress = lambda done, total, name: None,
) -> list[dict[str, Any]]:
    """Time setups interleaved, batch size by batch size.

    Args:
        setups: The first is what the others are compared with.
        category: A folder in the MVTec AD layout.
        rounds: Batch size -> calls that count.
        warmup: Calls before.
        threads: Threads within an operator; 0 for each back end's choice.
        report: Called with the calls done, all calls, and the setup.

    Returns:
        The rows of ``measure_latency``.
    """
    contenders = [contender(setup, threads) for setup in setups]
    frames = find_frames(category / "test", max(rounds))
    rows: list[dict[str, Any]] = []
    for batch, count in rounds.items():
        for found in measure_latency(
            contenders, frames, batches=(batch,), rounds=count, warmup=warmup, report=report
        ):
            rows += found
    return rows


def start_setups(setups: Sequence[Setup], *, starts: int = 3) -> dict[str, dict[str, Any]]:
    """Return name -> cold start and memory; torch.compile, which compiles for minutes, has none."""
    return {
        setup.name: measure_cold_start(setup.back_end, setup.artifact, starts=starts)
        for setup in setups
        if setup.back_end != "compiled"
    }


def judge_setups(
    setups: Sequence[Setup],
    category: Path,
    *,
    threads: int = 0,
    report: Progress = lambda done, total, name: None,
) -> dict[str, dict[str, float]]:
    """Return name -> metrics on a test set, in [0, 1].

    Args:
        setups: Those to judge; torch.compile is left out, it computes what PyTorch does.
        category: A folder in the MVTec AD layout, with masks.
        threads: Threads within an operator.
        report: Called with the images done, their total over all setups, and the setup.
    """
    judged = [setup for setup in setups if setup.back_end != "compiled"]
    found: dict[str, dict[str, float]] = {}
    for i, setup in enumerate(judged):

        def step(done: int, total: int, image: str, i: int = i, name: str = setup.name) -> None:
            report(i * total + done, total * len(judged), name)

        with Predictor(open_setup(setup, threads)) as predictor:
            test = score_test_set(predictor, category, report=step)
        found[setup.name] = dict(compute_metrics(test).rows())
    return found
