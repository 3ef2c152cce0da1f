"""Evaluating an artifact on a category: one inference pass, then numbers, and pictures if wanted.

``<output>`` gets, all together or not at all:

- ``curves.png``: ROC, scores, and with ground truth precision-recall and PRO
- ``worst.png``: the worst errors; worst_errors.py says which these are
- ``metrics.json``: everything that was measured, and the score and verdict of each image
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from destseg_deploy.atomic import staging
from destseg_deploy.curve_plot import draw_curves, require_matplotlib
from destseg_deploy.evaluation import (
    TABLE_S1,
    Evaluation,
    Judged,
    TestSet,
    TopKRow,
    check_ts,
    compute_metrics,
    compute_metrics_and_curves,
    score_test_set,
    sweep_top_k,
)
from destseg_deploy.metrics import Curves
from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import Threshold
from destseg_deploy.visualize import write_png
from destseg_deploy.worst_errors import draw_worst, operating_point

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Report:
    """What was measured of an artifact on a category.

    Attributes:
        artifact: The model.
        folder: The category.
        test: Its images, with scores and maps.
        result: The metrics.
        threshold: The artifact's; None where none was set.
        sweep: Image AUROC for other scores; empty unless asked for.
    """

    artifact: Path
    folder: Path
    test: TestSet
    result: Evaluation
    threshold: Threshold | None
    sweep: tuple[TopKRow, ...] = ()

    @property
    def judged(self) -> Judged | None:
        """Wrong verdicts at the artifact's threshold; None without one."""
        return None if self.threshold is None else self.test.judged(self.threshold.score)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "artifact": str(self.artifact),
            "data": str(self.folder),
            **self.result.to_dict(),
            "threshold": None if self.threshold is None else asdict(self.threshold),
            "judged": None if self.judged is None else asdict(self.judged),
            "sweep_t": [asdict(row) for row in self.sweep],
        }


def evaluate_category(
    predictor: Predictor,
    artifact: Path,
    folder: Path,
    *,
    ts: Sequence[int] = (),
    output: Path | None = None,
    batch_size: int | None = None,
    report: Progress = lambda done, total, name: None,
) -> Report:
    """Run a model over a category's test images once and measure everything.

    Args:
        predictor: The model.
        artifact: What to call it.
        folder: A category in the MVTec AD layout.
        ts: Values of T for ``sweep_top_k``. Where none is given there is no sweep, but
            ``metrics.json`` has that of the paper's Table S1.
        output: Folder to write pictures and numbers to; older ones are replaced.
        batch_size: Images per call; the artifact's optimum unless given.
        report: Called with the number of images done, their total, and the latest one's name.

    Raises:
        BackendError: If pictures are wanted and matplotlib is not installed.
        DataError: If the category is not as expected, or a file cannot be read or written.
        MetricError: If a T is out of range, or the maps hold NaN.
        OSError: If the output folder cannot be made.
    """
    if ts:
        check_ts(ts)
    if output is None:
        test = score_test_set(predictor, folder, batch_size=batch_size, report=report)
        return _report(predictor, artifact, folder, test, compute_metrics(test), ts)
    require_matplotlib()
    with staging(output) as staged:
        test = score_test_set(predictor, folder, batch_size=batch_size, report=report)
        result, curves = compute_metrics_and_curves(test)
        answer = _report(predictor, artifact, folder, test, result, ts)
        write_report(answer, curves, staged)
    return answer


def write_report(report: Report, curves: Curves | None, folder: Path) -> None:
    """Write ``curves.png``, ``worst.png`` and ``metrics.json`` into a folder.

    Args:
        report: What was measured.
        curves: The pixel curves; None without ground truth.
        folder: Where to write; made if missing.

    Raises:
        BackendError: If matplotlib is not installed.
        DataError: If an image is no longer readable, or a picture cannot be written.
    """
    test, result = report.test, report.result
    point = operating_point(report.threshold, result)
    picture = draw_curves(
        test,
        result,
        curves,
        threshold=point.score,
        threshold_name=point.source,
        title=f"{report.artifact.name} on {report.folder.name}: "
        f"{result.images} images, {result.anomalous} anomalous",
    )
    write_png(folder / "curves.png", picture)
    write_png(folder / "worst.png", draw_worst(test, point))
    sweep = report.sweep or sweep_top_k(test, TABLE_S1)
    answer = {
        **report.to_dict(),
        "sweep_t": [asdict(row) for row in sweep],
        "pictures_judged_by": asdict(point),
        "scores": _image_rows(report),
    }
    (folder / "metrics.json").write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")


def _report(
    predictor: Predictor,
    artifact: Path,
    folder: Path,
    test: TestSet,
    result: Evaluation,
    ts: Sequence[int],
) -> Report:
    sweep = sweep_top_k(test, ts) if ts else ()
    return Report(artifact, folder, test, result, predictor.spec.threshold, sweep)


def _image_rows(report: Report) -> list[dict[str, Any]]:
    """Return file, label, score and verdict of each image; ``unjudged`` without a threshold."""
    test, threshold = report.test, report.threshold
    verdicts = ["unjudged"] * len(test.samples)
    if threshold is not None:
        verdicts = ["anomalous" if found else "normal" for found in test.scores > threshold.score]
    return [
        {
            "image": str(sample.image),
            "defect": sample.defect,
            "anomalous": sample.anomalous,
            "score": float(score),
            "verdict": verdict,
        }
        for sample, score, verdict in zip(test.samples, test.scores, verdicts, strict=True)
    ]
