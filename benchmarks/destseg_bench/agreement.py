"""Whether artifacts agree: the same test set through each, metrics and differences side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from destseg_deploy.evaluation import TestSet, compute_metrics, score_test_set
from destseg_deploy.predictor import load, resize_map
from destseg_deploy.spec import ModelSpec


def measure_agreement(
    artifacts: Sequence[Path],
    category: Path,
    *,
    device: str = "cpu",
    threads: int = 0,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[dict[str, Any]]:
    """Evaluate each artifact and compare its maps and scores with the first one's.

    Args:
        artifacts: The reference, usually the checkpoint, then what was exported from it.
        category: A folder in the MVTec AD layout; all artifacts must take its images.
        device: Where to run.
        threads: Threads within an operator.
        report: Called with the images done, their total over all artifacts, and the latest.

    Returns:
        A row for each artifact: its metrics, and the largest absolute differences of scores and
        maps to the reference. Maps of another size are compared at the reference's.
    """
    rows: list[dict[str, Any]] = []
    reference: TestSet | None = None
    for i, artifact in enumerate(artifacts):

        def step(done: int, total: int, name: str, before: int = i) -> None:
            report(before * total + done, total * len(artifacts), name)

        with load(artifact, device=device, threads=threads) as predictor:
            test = score_test_set(predictor, category, report=step)
        reference = reference or test
        metrics = compute_metrics(test).to_dict()
        rows.append({"artifact": str(artifact), **metrics, **_differences(reference, test)})
    return rows


TRAINING = ("recipe", "images", "device", "precision", "seconds", "losses")


def describe_training(artifact: Path) -> dict[str, Any]:
    """Return how the model behind an artifact was trained, without paths of that machine."""
    spec = ModelSpec.read(artifact)
    record = {name: spec.training.get(name) for name in TRAINING}
    return {"checkpoint": spec.checkpoint.sha256, "teacher": spec.teacher, **record}


def _differences(reference: TestSet, test: TestSet) -> dict[str, float]:
    size = (reference.maps.shape[1], reference.maps.shape[2])
    pairs = zip(reference.maps, test.maps, strict=True)
    return {
        "score_max_abs": float(np.abs(reference.scores - test.scores).max()),
        "map_max_abs": max(float(np.abs(a - resize_map(b, size)).max()) for a, b in pairs),
    }
