"""Whether artifacts agree: the same test set through each, metrics and differences side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from destseg_bench.speed.contenders import open_runtime
from destseg_bench.timing import Advance, Contender, ignore
from destseg_deploy.errors import BackendError, ParityError, WeightsError
from destseg_deploy.evaluation.test_set import TestSet, compute_metrics, score_test_set
from destseg_deploy.predictor import Predictor, resize_map
from destseg_deploy.spec import ModelSpec, other_scores

TRAINING = ("recipe", "images", "device", "precision", "seconds", "losses")


def measure_agreement(
    contenders: Sequence[Contender],
    category: Path,
    *,
    report: Advance = ignore,
    save: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Evaluate each contender and compare its maps and scores with those of the first that runs.

    Args:
        contenders: The reference, usually the checkpoint, then what was made from it.
        category: A folder in the MVTec AD layout; all artifacts must take its images.
        report: See ``score_each``.
        save: Called after each contender with the rows so far.

    Returns:
        A row for each contender: either ``skipped``, the reason; or its metrics, and the largest
        absolute differences of scores and maps from the reference. Maps of another size are
        compared at the reference's size. ``other_scores`` says why scores must differ, if so.

    Raises:
        BackendError: If none of them runs.
    """
    rows: list[dict[str, Any]] = []
    reference: TestSet | None = None
    first = contenders[0]
    opens = [partial(open_runtime, one) for one in contenders]
    for one, test in zip(contenders, score_each(opens, category, report), strict=True):
        row: dict[str, Any] = {"artifact": one.name, "precision": one.precision}
        if isinstance(test, Skipped):
            row["skipped"] = test.reason
        else:
            if reference is None:
                reference, first = test, one
            row |= {**compute_metrics(test).to_dict(), **_differences(reference, test)}
            specs = (ModelSpec.read(first.artifact), ModelSpec.read(one.artifact))
            if reason := other_scores(*specs, f"in {first.name}"):
                row["other_scores"] = reason
        rows.append(row)
        save(rows)
    if reference is None:
        raise BackendError(f"{rows[0]['artifact']}: {rows[0]['skipped']}")
    return rows


@dataclass(frozen=True)
class Skipped:
    """What could not run, and why."""

    reason: str


def score_each(
    opens: Sequence[Callable[[], Predictor]], category: Path, report: Advance
) -> Iterator[TestSet | Skipped]:
    """Score a test set with several predictors, of which one is open at a time.

    A back end that fails, such as a provider without a kernel for a precision, costs its own row.
    A category that cannot be read fails for all, so its error is raised.

    Args:
        opens: Open the predictors.
        category: A folder in the MVTec AD layout.
        report: Called with the images done, their total over all predictors, and the latest image.
    """
    for i, opened in enumerate(opens):

        def step(done: int, total: int, name: str, before: int = i) -> None:
            report(before * total + done, total * len(opens), name)

        try:
            with opened() as predictor:
                test: TestSet | Skipped = score_test_set(predictor, category, report=step)
        except (BackendError, ParityError, WeightsError, RuntimeError) as error:
            test = Skipped(" ".join(str(error).split())[:300])
        yield test  # closed before the caller works on it: memory of one predictor at a time


def describe_training(artifact: Path) -> dict[str, Any]:
    """Return how the model of an artifact was trained, without paths of that machine."""
    spec = ModelSpec.read(artifact)
    record = {name: getattr(spec.training, name, None) for name in TRAINING}
    teacher = {} if spec.teacher is None else asdict(spec.teacher)
    known = {name: value for name, value in teacher.items() if value is not None}
    return {"checkpoint": spec.checkpoint.sha256, "teacher": known, **record}


def _differences(reference: TestSet, test: TestSet) -> dict[str, float]:
    size = (reference.maps.shape[1], reference.maps.shape[2])
    pairs = zip(reference.maps, test.maps, strict=True)
    return {
        "score_max_abs": float(np.abs(reference.scores - test.scores).max()),
        "map_max_abs": max(float(np.abs(a - resize_map(b, size)).max()) for a, b in pairs),
    }
