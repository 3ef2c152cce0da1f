"""Scores a test set with a compared system, as evaluation does with an artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from destseg_bench.baselines.system import System, detect
from destseg_deploy.data.images import read_image, read_mask
from destseg_deploy.data.mvtec import list_test
from destseg_deploy.evaluation import TestSet


def score_system(
    system: System,
    category: Path,
    *,
    device: torch.device,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> TestSet:
    """Score every test image of a category, one at a time.

    Masks are made as DeSTSeg's are: resized with antialiasing to the size of a frame and cut at
    0.5; a system whose map covers a window in the middle is judged there.

    Args:
        system: Trained.
        category: A folder in the MVTec AD layout.
        device: Where the system runs.
        report: Called with the images done, their number, and the latest one's name.

    Raises:
        DataError: If the folder is not as expected, or an image or mask cannot be read.
    """
    samples = list_test(category)
    maps, scores, masks = [], [], []
    for sample in samples:
        frame = read_image(sample.image)
        images = torch.from_numpy(system.prepare(frame))[None].to(device)
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
