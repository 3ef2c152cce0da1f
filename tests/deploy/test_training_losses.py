"""What the two phases minimise, against plain loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from destseg_deploy.training.losses import segmentation_loss, student_loss


def features(seed: int) -> list[NDArray[np.float64]]:
    """Unit-length features of three levels, (2, C, H, W)."""
    rng = np.random.default_rng(seed)
    levels = [rng.standard_normal((2, c, s, s)) for c, s in ((6, 8), (12, 4), (24, 2))]
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in levels]


def test_student_loss_sums_over_levels_and_images() -> None:
    teacher, student = features(0), features(1)
    expected = 0.0
    for t, s in zip(teacher, student, strict=True):
        for image in range(2):
            expected += float(np.mean(1 - (t[image] * s[image]).sum(axis=0)))
    as_tensors = [[torch.from_numpy(x) for x in levels] for levels in (teacher, student)]
    assert abs(float(student_loss(*as_tensors)) - expected) < 1e-9
    assert expected > 1  # a mean over images or levels would be half or a third of it
    assert abs(float(student_loss(as_tensors[0], as_tensors[0]))) < 1e-9


def plain_segmentation_loss(
    p: NDArray[np.float64], mask: NDArray[np.float64], gamma: float
) -> float:
    """Masks are four times as large; bilinear then takes the middle two by two of each four."""
    n, _, h, w = p.shape
    blocks = mask.reshape(n, 1, h, 4, w, 4)[:, :, :, 1:3, :, 1:3]
    target = (blocks.mean(axis=(3, 5)) >= 0.5).astype(float)
    total = 0.0
    for probability, truth in zip(p.ravel(), target.ravel(), strict=True):
        right = probability if truth else 1 - probability
        total += -((1 - right) ** gamma) * math.log(right) + abs(probability - truth)
    return total / p.size


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
def test_segmentation_loss_is_focal_plus_l1(gamma: float) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.99, (2, 1, 8, 6))
    mask = (rng.random((2, 1, 32, 24)) > 0.7).astype(float)
    loss = segmentation_loss(torch.from_numpy(p), torch.from_numpy(mask), gamma)
    assert abs(float(loss) - plain_segmentation_loss(p, mask, gamma)) < 1e-9
    assert abs(float(loss) - plain_segmentation_loss(p, mask, gamma + 1)) > 1e-3
    assert abs(float(loss) - plain_segmentation_loss(p, 1 - mask, gamma)) > 1e-3


def test_segmentation_loss_is_zero_when_right_and_finite_when_wrong() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, :8] = 1
    right = mask[:, :, ::4, ::4].clone()
    assert float(segmentation_loss(right, mask, 4.0)) == 0
    wrong = (1 - right).requires_grad_()
    loss = segmentation_loss(wrong, mask, 4.0)
    torch.autograd.backward(loss)
    assert wrong.grad is not None
    assert wrong.grad.isfinite().all()
    assert float(loss.detach()) > 10
