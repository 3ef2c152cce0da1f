"""Two-class maps: the focal loss against its formula, the score against every square."""

import numpy as np
import pytest
import torch

from destseg_bench.systems.two_class import focal_loss, pooled_score


def literal_focal(logits: np.ndarray, mask: np.ndarray, gamma: int, smooth: float) -> float:
    """The loss by its description: labels as one-hot vectors, clamped, times softmax."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    labels = np.clip(np.concatenate([1 - mask, mask], axis=1), smooth, 1 - smooth)
    own = (labels * shares).sum(axis=1) + smooth
    return float(np.mean(-((1 - own) ** gamma) * np.log(own)))


def test_focal_loss_is_the_clamped_one_of_exponent_two() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 2, 5, 7))
    logits[0, :, 0, 0] = (60, -60)  # wrong without doubt: only the clamp keeps the loss finite
    mask = (rng.random((2, 1, 5, 7)) < 0.3).astype(np.float64)
    mask[0, 0, 0, 0] = 1
    found = float(focal_loss(torch.tensor(logits), torch.tensor(mask)))
    assert found == pytest.approx(literal_focal(logits, mask, 2, 1e-5), rel=1e-9)
    assert found != pytest.approx(literal_focal(logits, mask, 4, 1e-5), rel=1e-2)
    assert found != pytest.approx(literal_focal(logits, mask, 2, 1e-6), rel=1e-2)


def test_focal_loss_of_saturated_logits_has_a_finite_gradient() -> None:
    logits = torch.tensor([[[[200.0, -200.0]], [[-200.0, 200.0]]]], requires_grad=True)
    focal_loss(logits, torch.tensor([[[[0.0, 0.0]]]])).backward()
    assert torch.isfinite(logits.grad).all()


def test_score_is_the_highest_mean_of_a_square_with_the_border_counted() -> None:
    maps = np.random.default_rng(0).random((2, 30, 41)).astype(np.float32)
    padded = np.pad(maps, ((0, 0), (10, 10), (10, 10)))
    expected = [
        max(one[y : y + 21, x : x + 21].sum() / 441 for y in range(30) for x in range(41))
        for one in padded
    ]
    assert pooled_score(torch.from_numpy(maps)).tolist() == pytest.approx(expected, rel=1e-5)
    small = pooled_score(torch.ones(1, 15, 15))  # no square lies inside
    assert float(small[0]) == pytest.approx(225 / 441)
    assert float(small[0]) != pytest.approx(1, rel=0.1)
