"""Tuning: try what a CPU can do with an artifact, in turns, and keep what is fastest.

First back ends and precisions compete, each with its own choice of threads. Then the fastest one
competes with other numbers of threads and, for several cameras, of streams. Of two that the
measurement cannot tell apart, the one that stands first stays, and the default stands first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from destseg_bench.speed.fusions import Ratio, paired_ratio
from destseg_bench.speed.latency import stack_frames
from destseg_bench.timing import Advance, at_once, ignore, interleave
from destseg_deploy.environment import allowed_cores
from destseg_deploy.errors import BackendError, DataError, ParityError
from destseg_deploy.loading import load
from destseg_deploy.runtime.base import Prediction, Runtime
from destseg_deploy.runtime.parity import check_difference, measure_difference
from destseg_deploy.spec import FileRecord, ModelSpec
from destseg_deploy.tuning import Choice, Machine, Measured, Tuning

BACK_ENDS = (Choice("onnxruntime"), Choice("openvino"), Choice("openvino", "bf16"))
"""What competes first. The first that runs is the default: how ``load`` opens it unasked."""

COMPARED = 8
"""Images, at most, on which a precision is compared with the default."""

WARMUP = 2


@dataclass(frozen=True)
class Trial:
    """A choice that was tried.

    Attributes:
        choice: What was tried.
        stage: ``back ends`` or ``threads``.
        milliseconds: Median of a call; None where it did not run.
        ratio: Its time divided by the default's, round by round; None where it did not run.
        skipped: Why it did not run; empty where it did.
    """

    choice: Choice
    stage: str
    milliseconds: float | None = None
    ratio: Ratio | None = None
    skipped: str = ""


def tune(
    artifact: Path,
    images: Sequence[Path],
    *,
    rounds: int = 15,
    batch: int = 1,
    cameras: int = 1,
    report: Advance = ignore,
) -> tuple[Tuning, list[Trial]]:
    """Find how an artifact runs fastest on this CPU.

    Args:
        artifact: ``.onnx`` or ``.xml``, its spec beside it.
        images: At least two, of the part. Precisions are compared on up to ``COMPARED`` of them.
        rounds: Timed calls of each choice, in each of the two stages.
        batch: Images in a call.
        cameras: Calls at the same time; what is timed ends when all of them have their answer.
        report: Called with the calls done in a stage, all of them, and the choice.

    Returns:
        What ``Tuning.write`` writes beside the artifact, and everything that was tried.

    Raises:
        SpecError: If the spec is missing or belongs to another file.
        BackendError: If the file is of another kind, or no back end opens it.
        DataError: If there are too few images, or one cannot be read.
    """
    spec = ModelSpec.read(artifact)
    kinds = [one for one in BACK_ENDS if _runs(one, artifact)]
    if not kinds:
        raise BackendError(
            f"{artifact}: expected an .onnx or .xml, which several back ends of a CPU run. Export "
            "it first."
        )
    if len(images) < 2:
        raise DataError(f"{len(images)} images, expected at least 2 to compare precisions on.")
    compared = stack_frames(images, spec.size, min(len(images), COMPARED))
    frames = compared[np.arange(batch) % len(compared)]
    with ThreadPoolExecutor(cameras) as pool:
        time_them = partial(
            _time,
            artifact=artifact,
            compared=compared,
            calls_of=lambda runtime: at_once(partial(runtime.infer, frames), cameras, pool),
            rounds=rounds,
            report=report,
        )
        first = time_them(kinds, "back ends")
        default, best = next(iter(first.seconds)), _fastest(first.seconds)
        others = dict.fromkeys((default, best, *_variations(best, cameras)))
        second = time_them(list(others), "threads")
    chosen = _fastest(second.seconds)
    times, usual = second.seconds[chosen], second.seconds[default]
    measured = Measured(
        batch=batch,
        cameras=cameras,
        images=len(compared),
        milliseconds=1e3 * median(times),
        default_milliseconds=1e3 * median(usual),
        times_faster=paired_ratio(usual, times).median,
    )
    machine = Machine.here(chosen.backend)
    found = Tuning(1, FileRecord.of(artifact), chosen, machine, measured)
    return found, [*first.trials(default), *second.trials(default)]


def compare_tuned(
    found: Mapping[Path, Tuning],
    images: Sequence[Path],
    *,
    rounds: int = 15,
    report: Advance = ignore,
) -> dict[Path, float]:
    """Return artifact -> median of a call in milliseconds, each as it was tuned, in turns."""
    most = max(tuning.measured.cameras for tuning in found.values())
    with ThreadPoolExecutor(most) as pool, ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        for artifact, tuning in found.items():
            choice = tuning.choice
            predictor = load(artifact, backend=choice.backend, options=choice.options)
            stack.callback(predictor.close)
            frames = stack_frames(images, predictor.spec.size, tuning.measured.batch)
            call = partial(predictor.runtime.infer, frames)
            calls[str(artifact)] = at_once(call, tuning.measured.cameras, pool)
        told = partial(_tell, report, "artifacts")
        seconds = interleave(calls, rounds=rounds, warmup=WARMUP, report=told)
    return {artifact: 1e3 * median(seconds[str(artifact)]) for artifact in found}


@dataclass(frozen=True)
class _Stage:
    """Seconds of each choice that ran, round by round, and why others did not."""

    name: str
    seconds: dict[Choice, list[float]]
    skipped: dict[Choice, str]

    def trials(self, default: Choice) -> Iterator[Trial]:
        usual = self.seconds[default]
        for one, times in self.seconds.items():
            ratio = paired_ratio(times, usual)
            yield Trial(one, self.name, 1e3 * median(times), ratio)
        for one, reason in self.skipped.items():
            yield Trial(one, self.name, skipped=reason)


def _runs(one: Choice, artifact: Path) -> bool:
    suffixes = {"onnxruntime": (".onnx",), "openvino": (".onnx", ".xml")}
    return artifact.suffix.lower() in suffixes[one.backend]


def _time(
    choices: Sequence[Choice],
    stage: str,
    *,
    artifact: Path,
    compared: NDArray[np.uint8],
    calls_of: Callable[[Runtime], Callable[[], object]],
    rounds: int,
    report: Advance,
) -> _Stage:
    """Open choices side by side and time them in turns.

    Raises:
        BackendError: If none runs.
    """
    skipped: dict[Choice, str] = {}
    calls: dict[str, Callable[[], object]] = {}
    names = {str(one): one for one in choices}
    exact: Prediction | None = None
    with ExitStack() as stack:
        for one in choices:
            try:
                predictor = load(artifact, backend=one.backend, options=one.options)
                stack.callback(predictor.close)
                answers = _answers(predictor.runtime, compared)
                if exact is not None:
                    found = measure_difference(exact, answers)
                    check_difference(found, budget_of(one, predictor.spec), str(one))
            except (BackendError, ParityError) as error:
                skipped[one] = str(error)
                continue
            exact = answers if exact is None else exact
            calls[str(one)] = calls_of(predictor.runtime)
        if not calls:
            raise BackendError(f"{artifact}: no back end opens it. {next(iter(skipped.values()))}")
        told = partial(_tell, report, stage)
        seconds = interleave(calls, rounds=rounds, warmup=WARMUP, report=told)
    return _Stage(stage, {names[name]: times for name, times in seconds.items()}, skipped)


def budget_of(one: Choice, spec: ModelSpec) -> str:
    """Return the precision whose budget a choice must keep to.

    Two back ends round an INT8 artifact's sums in other orders, and a sum that falls into the next
    step of 8 bits moves the map by up to a hundredth (0.0096 measured). bf16's budget holds that.
    """
    return "bf16" if spec.precision == "int8" else one.precision


def _tell(report: Advance, stage: str, done: int, total: int, name: str) -> None:
    report(done, total, f"{stage}: {name}")


def _answers(runtime: Runtime, frames: NDArray[np.uint8]) -> Prediction:
    """Score frames one at a time: every artifact takes such a batch."""
    return Prediction.concatenate([runtime.infer(frames[i : i + 1]) for i in range(len(frames))])


def _fastest(seconds: dict[Choice, list[float]]) -> Choice:
    """Return the fastest choice; a later one has to be faster beyond doubt."""
    best = next(iter(seconds))
    for one, times in seconds.items():
        if paired_ratio(times, seconds[best]).high < 1:
            best = one
    return best


def _variations(best: Choice, cameras: int = 1) -> Iterator[Choice]:
    """Yield the choice with other threads: in another number, asleep at once, or in streams.

    OpenVINO computes one call after another unless it has streams, each with its share of the
    cores. ONNX Runtime computes calls at the same time anyway.
    """
    cores = len(allowed_cores())
    for threads in sorted({cores, cores // 2, 1} - {0}, reverse=True):
        yield replace(best, threads=threads)
    if best.backend == "onnxruntime":
        yield replace(best, spinning=False)
    elif cameras > 1:
        for streams in sorted({min(cameras, cores), cameras} - {1}):
            yield replace(best, streams=streams)
