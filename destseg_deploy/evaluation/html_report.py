"""The report that people read: one HTML file in which thresholds can be moved.

It holds every score, so that its counts are exact at any threshold, and pictures of a limited
number of images: wrong verdicts and right ones, half of each where there are enough.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy import environment
from destseg_deploy.data.images import read_image
from destseg_deploy.data.masks import read_mask
from destseg_deploy.data.resize import resize_image
from destseg_deploy.evaluation.measured import Report
from destseg_deploy.evaluation.metrics import Curves, pixel_curves
from destseg_deploy.evaluation.ranking import rank_images
from destseg_deploy.evaluation.test_set import TestSet
from destseg_deploy.evaluation.worst_errors import OperatingPoint, operating_point
from destseg_deploy.spec import ModelSpec, ParityRecord, Threshold, exceeds
from destseg_deploy.text import printable
from destseg_deploy.web.document import document
from destseg_deploy.web.encoding import encode_picture

PICTURES = 200
"""Images that are shown, unless another number is asked for."""

SIDE, CELLS, LIMIT = 256, 64, 8_500
"""Longest side of a picture in pixels and of its map in cells, and the bytes of its WebP: as text,
100 images stay under 2 MB."""

BEGINNING = "<!doctype html>\n<!-- destseg-deploy report -->"
"""By which a file is known as a report of ours."""


def is_report(path: Path) -> bool:
    """Tell whether a file is a report that this project wrote."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(len(BEGINNING)) == BEGINNING
    except OSError:
        return False


def html_report(
    report: Report,
    *,
    pictures: int = PICTURES,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> str:
    """Return the report as one HTML file. The images that it shows are read again.

    Args:
        report: What was measured.
        pictures: Images that are shown, at most.
        progress: Called with the number of pictures done, their total, and the latest one's name.

    Raises:
        DataError: If an image or mask is no longer readable.
    """
    test, result, spec = report.test, report.result, report.spec
    point = operating_point(report.threshold, result)
    moment = datetime.now().astimezone()
    kinds = _names_of_kinds(test)
    pixel = (
        [] if result.pixel is None else [("pixel AP", result.pixel.ap), ("PRO", result.pixel.pro)]
    )
    data = {
        "title": f"{printable(report.artifact.name)} on {printable(report.folder.name)}",
        "about": f"{result.images} images, {result.anomalous} with defects, scored "
        f"{moment:%Y-%m-%d %H:%M}.",
        "foot": f"Written by destseg-deploy {environment.VERSION}. This file asks the network for "
        "nothing.",
        "command": f"destseg-threshold {shlex.quote(str(report.artifact))}",
        "threshold": report.threshold and asdict(report.threshold),
        "point": _point(point, report.threshold),
        "metrics": [("image AUROC", result.image_auroc), ("image F1", result.image_f1_max), *pixel],
        "trained_on": _trained_on(report),
        "images": list(_images(test, kinds, shown(test, point, pictures), progress)),
        "defects": [asdict(row) | {"defect": kinds[row.defect]} for row in result.defects],
        "curves": list(_curves(test, report.curves)),
        "facts": [{"title": title, "rows": rows} for title, rows in _facts(spec) if rows],
    }
    return document("report.html", data)


def shown(test: TestSet, point: OperatingPoint, count: int) -> list[int]:
    """Choose the images that are shown: the worst wrong verdicts, the right ones least certain.

    Half of them are of each kind where there are enough.
    """
    judge = Threshold(point.score, 0.0, point.source)
    distance = np.array([abs(judge.normalized(float(score)) - 0.5) for score in test.scores])
    is_wrong = exceeds(test.scores, point.score) != test.labels
    wrong = sorted(np.flatnonzero(is_wrong), key=lambda i: -distance[i])
    right = sorted(np.flatnonzero(~is_wrong), key=lambda i: distance[i])
    most = max(count - count // 2, count - len(right))
    chosen = wrong[:most]
    return [int(i) for i in (*chosen, *right[: count - len(chosen)])]


def _point(point: OperatingPoint, threshold: Threshold | None) -> dict[str, Any]:
    """Return where the sliders begin; without masks, the pixel one at the score's."""
    pixel = point.score if point.pixel is None else point.pixel
    source = "as in the artifact" if threshold is not None else point.source
    return {"score": point.score, "pixel": pixel, "source": source}


def _trained_on(report: Report) -> dict[str, int]:
    """Count the images, and the good ones, that the model was trained on."""
    good = {sample.image for sample in report.test.samples if not sample.anomalous}
    return {"images": len(report.trained_on), "good": len(good.intersection(report.trained_on))}


def _names_of_kinds(test: TestSet) -> dict[str, str]:
    """Return how each kind of defect is shown; no two alike, since the page counts by them."""
    names: dict[str, str] = {}
    for kind in dict.fromkeys(sample.defect for sample in test.samples):
        name = printable(kind)
        while name in names.values():
            name += "'"
        names[kind] = name
    return names


def _images(
    test: TestSet,
    kinds: Mapping[str, str],
    chosen: list[int],
    progress: Callable[[int, int, str], None],
) -> Iterator[dict[str, Any]]:
    wanted, done = set(chosen), 0
    for i, sample in enumerate(test.samples):
        row = {
            "name": printable(sample.image.name),
            "kind": kinds[sample.defect],
            "bad": sample.anomalous,
            "score": float(test.scores[i]),
            "peak": float(test.maps[i].max()),
        }
        if i in wanted:
            row["picture"] = _picture(test, i)
            done += 1
            progress(done, len(wanted), sample.image.name)
        yield row


def _picture(test: TestSet, index: int) -> dict[str, Any]:
    sample = test.samples[index]
    image = read_image(sample.image)
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    mask = None if sample.mask is None else read_mask(sample.mask, (height, width), size)
    small = resize_image(image, size)
    return encode_picture(small, test.maps[index], mask, cells=CELLS, limit=LIMIT)


def _curves(test: TestSet, pixels: Curves | None) -> Iterator[dict[str, Any]]:
    images = pixel_curves(rank_images(test.scores, test.labels))  # each image as one pixel
    for unit, curves in (("Image", images), ("Pixel", pixels)):
        if curves is None:
            continue
        marked = unit == "Image"  # the dot of the threshold follows the images' counts
        yield {
            "title": f"{unit} ROC",
            "x": "false positive rate",
            "y": "true positive rate",
            "points": _points(curves.roc_fpr, curves.roc_tpr),
            "kind": "roc" if marked else None,
        }
        steps = np.repeat(curves.pr_precision, 2)[1:]
        yield {
            "title": f"{unit} precision-recall",
            "x": "recall",
            "y": "precision",
            # Each precision holds back to the recall before.
            "points": _points(np.repeat(curves.pr_recall, 2)[:-1], steps),
            "kind": "pr" if marked else None,
        }


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[list[float]]:
    """Return points rounded to what a screen shows, repetitions left out."""
    rounded = np.stack([x, y], axis=1).round(3)
    kept = np.append(True, (np.diff(rounded, axis=0) != 0).any(axis=1))
    points: list[list[float]] = rounded[kept].tolist()
    return points


Rows = list[tuple[str, str]]


def _facts(spec: ModelSpec) -> Iterator[tuple[str, Rows]]:
    """Yield what the spec says of the artifact, card by card."""
    threshold, training, teacher = spec.threshold, spec.training, spec.teacher
    yield (
        "Artifact",
        [
            ("file", spec.artifact.file),
            ("SHA-256", spec.artifact.sha256),
            ("category", spec.category),
            ("precision", spec.precision),
            ("input", f"{spec.input.width}x{spec.input.height} pixels"),
            ("network", f"{spec.network.width}x{spec.network.height} pixels"),
            ("threshold", "none" if threshold is None else threshold.rule),
        ],
    )
    yield "Parity", _parity(spec.parity)
    rows = [("checkpoint", spec.checkpoint.file), ("SHA-256", spec.checkpoint.sha256)]
    if training is not None:
        recipe = training.recipe
        rows += [
            ("recipe", str(recipe.get("name", "unknown"))),
            ("steps", f"{recipe.get('student_steps')} + {recipe.get('segmentation_steps')}"),
            ("trained on", f"{training.images} images, {len(training.held_out)} held out"),
            ("textures", str(training.textures)),
            ("device", f"{training.device}, {training.precision}"),
        ]
    if teacher is not None:
        rows.append(("teacher", teacher.source))
    rows += [(name, version) for name, version in sorted(spec.tools.items())]
    yield "Provenance", rows


def _parity(record: ParityRecord | None) -> Rows:
    if record is None:
        return [("compared", "not recorded: this is the checkpoint itself, or an older file")]
    budget = record.budget
    allowed = ("", "") if budget is None else (budget.anomaly_map, budget.score)
    largest = zip((record.map_max_abs, record.score_max_abs), allowed, strict=True)
    maps, scores = (
        f"{value:.2g}" + (f" of {most:g} allowed" if most else "") for value, most in largest
    )
    return [
        ("compared", f"{record.compared} with the checkpoint in PyTorch"),
        ("images", f"{record.count} ({record.images})"),
        ("largest map difference", maps),
        ("largest score difference", scores),
        ("control", f"{record.control:.2g} between different images"),
        *([("rounding", record.rounding)] if record.rounding else []),
    ]
