"""Trains compared systems on a category and scores its test set: is each one what it claims to be?

With the ``quick`` schedule the numbers only say that a system works; they do not reproduce the
paper's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from destseg_bench.accuracy.paper import OURS, paper_table
from destseg_bench.systems.catalogue import open_system
from destseg_bench.systems.system import Report, System, Task, detect
from destseg_bench.systems.training import fit
from destseg_deploy.data.images import read_image
from destseg_deploy.data.masks import read_mask
from destseg_deploy.data.mvtec import list_test, read_masks
from destseg_deploy.errors import DestsegError
from destseg_deploy.evaluation.test_set import TestSet, compute_metrics

Bar = Callable[[str], AbstractContextManager[Report]]
"""``console.progress``: given a label, a bar that shows reports."""

ENDS = 10
"""Losses averaged at both ends of a stage."""


def measure_systems(
    names: Sequence[str],
    task: Task,
    *,
    progress: Bar,
    save: Callable[[dict[str, Any]], None] = lambda systems: None,
) -> dict[str, Any]:
    """Train and score systems one after another.

    Args:
        names: Of ``catalogue.SYSTEMS``.
        task: What they are trained and judged on.
        progress: Shows how far training or scoring is, under a label.
        save: Called with the rows so far after each system.

    Returns:
        Name -> its facts, ``weights``, ``minutes`` of training, ``losses`` (of each stage the mean
        of the first and of the last steps), ``metrics`` in [0, 1] and the ``paper``'s image AUROC
        in percent; or ``skipped``, the reason.
    """
    rows: dict[str, Any] = {}
    for name in names:
        try:
            rows[name] = _measure(name, task, progress)
        except DestsegError as error:
            rows[name] = {"skipped": " ".join(str(error).split())}
        save(rows)
    return rows


def _measure(name: str, task: Task, progress: Bar) -> dict[str, Any]:
    system = open_system(name, task)
    start = time.perf_counter()
    with progress(f"{name}: training") as advance:
        losses = fit(system, advance)
    minutes = (time.perf_counter() - start) / 60
    with progress(f"{name}: scoring") as advance:
        test = score_system(system, advance)
    return {
        "name": system.facts.name,
        "source": system.facts.source,
        "differs": list(system.facts.differs),
        "weights": system.weights,
        "minutes": minutes,
        "losses": {stage: _ends(values) for stage, values in losses.items()},
        "metrics": dict(compute_metrics(test).rows()),
        "paper": paper_auroc(system.facts.name, task.category.name),
    }


def _ends(losses: list[float]) -> dict[str, Any]:
    return {
        "steps": len(losses),
        "first": float(np.mean(losses[:ENDS])),
        "last": float(np.mean(losses[-ENDS:])),
    }


def score_system(system: System, report: Report = lambda done, total, name: None) -> TestSet:
    """Score every test image of its category with a trained system, one at a time.

    Masks are made as DeSTSeg's are: resized with antialiasing to the size of a frame and cut at
    0.5. A system whose map covers a window around the centre is judged there.

    Args:
        system: Trained.
        report: Called with the images done, their number, and the latest one's name.

    Raises:
        DataError: If the folder is not as expected, or an image or mask cannot be read.
    """
    samples = list_test(system.task.category)
    read_masks(samples, (1, 1))  # an error in the last mask would cost the whole run
    maps, scores, masks = [], [], []
    for sample in samples:
        frame = read_image(sample.image)
        images = torch.from_numpy(system.prepare(frame))[None].to(system.task.device)
        anomaly_map, score = detect(system, images)
        maps.append(anomaly_map[0].cpu().numpy())
        scores.append(float(score[0]))
        masks.append(_mask(sample.mask, frame, maps[-1].shape, system.window))
        report(len(maps), len(samples), sample.image.name)
    has_truth = any(sample.mask is not None for sample in samples)
    return TestSet(
        tuple(samples),
        np.array(scores, np.float32),
        np.stack(maps).astype(np.float32),
        np.stack(masks) if has_truth else None,
    )


def _mask(
    path: Path | None, frame: NDArray[np.uint8], shape: tuple[int, ...], window: float
) -> NDArray[np.bool_]:
    """Return the mask of a frame over the window, bool at the map's shape."""
    height, width = shape
    if path is None:
        return np.zeros((height, width), np.bool_)
    whole = (round(height / window), round(width / window))
    mask = read_mask(path, (frame.shape[0], frame.shape[1]), whole)
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    return mask[top : top + height, left : left + width]


def paper_auroc(system: str, category: str) -> str | None:
    """Return the paper's image AUROC of a system on a category, as printed; None without."""
    table = paper_table("S5")
    column = OURS if system.startswith(OURS) else system
    if column not in table.columns or category not in table.rows:
        return None
    return str(table.value(column, category))
