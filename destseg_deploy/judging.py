"""Reading and setting the threshold of an artifact on disk. The artifact itself is not touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from destseg_deploy import thresholds
from destseg_deploy.data.images import list_images
from destseg_deploy.evaluation import score_images, score_test_set
from destseg_deploy.predictor import load
from destseg_deploy.runtime.cpu_options import OpenVinoOptions
from destseg_deploy.spec import ModelSpec, Threshold


def read(artifact: Path) -> Threshold | None:
    """Return the threshold of an artifact, or None when none was set yet.

    Raises:
        SpecError: If the spec is missing or unreadable.
    """
    return ModelSpec.read(artifact).threshold


def set_by_hand(artifact: Path, score: float, pixel: float | None = None) -> Threshold:
    """Set a chosen threshold; see ``thresholds.by_hand``.

    Raises:
        SpecError: If the spec is missing or unreadable.
        MetricError: If a value is out of range.
    """
    return _write(artifact, thresholds.by_hand(score, pixel))


def set_from_normal(
    artifact: Path,
    folder: Path,
    *,
    rate: float = 0.01,
    device: str | None = None,
    openvino: OpenVinoOptions | None = None,
) -> Threshold:
    """Score a folder of normal images and set the threshold for a false-reject rate.

    Args:
        artifact: The model; its spec is rewritten.
        folder: Images of good parts that were not trained on.
        rate: Share of good parts that may be rejected.
        device: Where to run; see ``load``.
        openvino: How OpenVINO runs it; the threshold belongs to that precision.
    """
    with load(artifact, device=device, openvino=openvino) as predictor:
        scores, peaks = score_images(predictor, list_images(folder))
    return _write(artifact, thresholds.from_normal(scores, peaks, rate))


def set_from_labelled(
    artifact: Path,
    category: Path,
    *,
    device: str | None = None,
    openvino: OpenVinoOptions | None = None,
) -> Threshold:
    """Score a labelled category and set the threshold of the best F1.

    Args:
        artifact: The model; its spec is rewritten.
        category: A folder in the MVTec AD layout.
        device: Where to run; see ``load``.
        openvino: How OpenVINO runs it; the threshold belongs to that precision.
    """
    with load(artifact, device=device, openvino=openvino) as predictor:
        test = score_test_set(predictor, category)
    peaks = test.maps.max(axis=(1, 2))
    return _write(artifact, thresholds.from_labelled(test.scores, test.labels, peaks))


def _write(artifact: Path, threshold: Threshold) -> Threshold:
    replace(ModelSpec.read(artifact), threshold=threshold).write(artifact)
    return threshold
