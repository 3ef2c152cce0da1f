"""Evaluating an artifact on labelled images: one inference pass, then numbers and pictures.

The output folder gets four files, or none if anything fails:

- ``curves.png``: ROC, scores, and with ground truth precision-recall and PRO
- ``worst.png``: the worst errors; worst_errors.py says how they are chosen
- ``metrics.json``: everything that was measured, and the score and verdict of each image
- ``report.html``: the report to look at; html_report.py says what is in it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from destseg_deploy.data.datasets import DataSet, open_dataset
from destseg_deploy.data.seen import seen_in_training
from destseg_deploy.evaluation.curves import draw_curves, require_matplotlib
from destseg_deploy.evaluation.html_report import PICTURES, html_report, is_report
from destseg_deploy.evaluation.measured import Report
from destseg_deploy.evaluation.test_set import (
    TABLE_S1,
    check_ts,
    compute_metrics,
    compute_metrics_and_curves,
    score_test_set,
    sweep_top_k,
)
from destseg_deploy.evaluation.worst_errors import draw_worst, operating_point
from destseg_deploy.files import making, refuse_others, replacing, staging
from destseg_deploy.locks import locked
from destseg_deploy.pictures.overlays import write_png
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import HasStudentTeacherMap
from destseg_deploy.spec import verdicts
from destseg_deploy.text import load_json, printable

FILES = ("curves.png", "worst.png", "metrics.json", "report.html")


def evaluate_category(
    predictor: Predictor,
    artifact: Path | str,
    data: Path | str | DataSet,
    *,
    ts: Sequence[int] = (),
    output: Path | str | None = None,
    batch_size: int | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Report:
    """Run a model over labelled images once and measure everything.

    Args:
        predictor: The model.
        artifact: What to call it.
        data: A data set with labels, or the folder or list that holds one.
        ts: Values of T for ``sweep_top_k``. Where none is given there is no sweep, but
            ``metrics.json`` has that of the paper's Table S1.
        output: Folder to write pictures and numbers to; older ones are replaced.
        batch_size: Images per call; the artifact's optimum unless given.
        report: Called with the number of images done, their total, and the latest one's name.

    Raises:
        BackendError: If pictures are wanted and matplotlib is not installed.
        DataError: If the data set is not as expected, or a file cannot be read.
        MetricError: If a T is out of range, or the maps hold NaN.
        OutputError: If another run writes to the folder, or a file there is not of an earlier one.
        OSError: If the output cannot be written.
    """
    data, artifact = open_dataset(data), Path(artifact)
    output = None if output is None else Path(output)
    if ts:
        check_ts(ts)
    if output is not None:
        require_matplotlib()
    # The folder is made before the work, so that one that cannot be written costs no time.
    with nullcontext() if output is None else _staged(output) as staged:
        answer = _measure(predictor, artifact, data, batch_size, report)
        if ts:
            answer = replace(answer, sweep=sweep_top_k(answer.test, ts))
        if isinstance(predictor.runtime, HasStudentTeacherMap):
            second = Predictor(predictor.runtime.student_teacher())
            scored = score_test_set(second, data, batch_size=batch_size, report=report)
            answer = replace(answer, student_teacher=compute_metrics(scored))
        if staged is not None:
            _write(answer, staged)
    return answer


def report_category(
    predictor: Predictor,
    artifact: Path | str,
    data: Path | str | DataSet,
    output: Path | str,
    *,
    pictures: int = PICTURES,
    batch_size: int | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Report:
    """Run a model over labelled images once and write the report to look at.

    Args:
        predictor: The model.
        artifact: What to call it.
        data: A data set with labels, or the folder or list that holds one.
        output: The HTML file; an older report is replaced.
        pictures: Images that are shown, at most; all are counted.
        batch_size: Images per call; the artifact's optimum unless given.
        report: Called with the number of images done, their total, and the latest one's name.

    Raises:
        DataError: If the data set is not as expected, or a file cannot be read.
        MetricError: If the maps hold NaN.
        OutputError: If the file is there and is not a report, or another run writes it.
        OSError: If the file cannot be written.
    """
    data, artifact, output = open_dataset(data), Path(artifact), Path(output)
    with making(output.parent), locked(output), replacing(output, durable=False) as temporary:
        refuse_others([output], is_report)
        answer = _measure(predictor, artifact, data, batch_size, report)
        temporary.write_text(html_report(answer, pictures=pictures), encoding="utf-8")
    return answer


def _measure(
    predictor: Predictor,
    artifact: Path,
    data: DataSet,
    batch_size: int | None,
    report: Callable[[int, int, str], None],
) -> Report:
    test = score_test_set(predictor, data, batch_size=batch_size, report=report)
    result, curves = compute_metrics_and_curves(test)
    seen = seen_in_training(predictor.spec.training, [sample.image for sample in test.samples])
    spec = predictor.spec
    return Report(artifact, data.source, test, result, curves, spec, trained_on=tuple(seen))


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """Give a temporary folder whose files replace those of an earlier evaluation only."""
    held = locked(output / "metrics", output)
    with making(output), held, staging(output, durable=False) as staged:
        refuse_others([output / name for name in FILES], _is_ours)
        yield staged


def _is_ours(path: Path) -> bool:
    """Tell whether a file is of an earlier evaluation: our numbers are beside it."""
    if path.name == "report.html" and is_report(path):  # destseg-report writes no numbers
        return True
    try:
        return "pictures_judged_by" in load_json(path.with_name("metrics.json"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _write(report: Report, folder: Path) -> None:
    """Write the files that the top of this file names."""
    test, result = report.test, report.result
    point = operating_point(report.threshold, result)
    picture = draw_curves(
        test,
        result,
        report.curves,
        threshold=point.score,
        threshold_name=point.source,
        title=f"{printable(report.artifact.name)} on {printable(report.folder.name)}: "
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
    (folder / "report.html").write_text(html_report(report), encoding="utf-8")


def _image_rows(report: Report) -> list[dict[str, Any]]:
    """Return file, label, score and verdict of each image; the verdict needs a threshold."""
    test, threshold = report.test, report.threshold
    judged: Sequence[str | None] = [None] * len(test.samples)
    if threshold is not None:
        judged = verdicts(test.scores, threshold.score)
    return [
        {
            "image": str(sample.image),
            "defect": sample.defect,
            "anomalous": sample.anomalous,
            "score": float(score),
            "verdict": verdict,
        }
        for sample, score, verdict in zip(test.samples, test.scores, judged, strict=True)
    ]
