"""Structural similarity, against the sum over one window."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from destseg_bench.baselines.similarity import structural_similarity


def window_similarity(
    one: np.ndarray, two: np.ndarray, row: int, column: int, sigma: float = 1.5, border: str = ""
) -> float:
    """SSIM of the 11 x 11 pixels around one pixel, summed one by one."""
    weights, values = [], []
    for down in range(-5, 6):
        for right in range(-5, 6):
            y, x = row + down, column + right
            if border == "clamped":
                y, x = np.clip([y, x], 0, np.array(one.shape) - 1)
            inside = 0 <= y < one.shape[0] and 0 <= x < one.shape[1]
            weights.append(math.exp(-(down**2 + right**2) / (2 * sigma**2)))
            values.append((one[y, x], two[y, x]) if inside else (0.0, 0.0))
    w = np.array(weights) / sum(weights)
    a, b = np.array(values, np.float64).T
    mean_a, mean_b = (w * a).sum(), (w * b).sum()
    var_a, var_b = (w * a * a).sum() - mean_a**2, (w * b * b).sum() - mean_b**2
    covariance = (w * a * b).sum() - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    return top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))


@pytest.mark.parametrize("pixel", [(8, 9), (0, 0), (14, 3)])
def test_similarity_is_that_of_the_gaussian_window_around_each_pixel(pixel) -> None:
    one, two = np.random.default_rng(0).random((2, 15, 17))
    computed = structural_similarity(torch.tensor(one)[None, None], torch.tensor(two)[None, None])
    found = float(computed[0, 0, pixel[0], pixel[1]])
    assert computed.shape == (1, 1, 15, 17)
    assert found == pytest.approx(window_similarity(one, two, *pixel), abs=1e-9)
    assert found != pytest.approx(window_similarity(one, two, *pixel, sigma=1.6), abs=1e-4)
    if pixel != (8, 9):
        clamped = window_similarity(one, two, *pixel, border="clamped")
        assert found != pytest.approx(clamped, abs=1e-4)


def test_an_image_is_like_itself_and_channels_do_not_mix() -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(structural_similarity(image, image), torch.ones(()), atol=1e-5)
    other = image.clone()
    other[1, 2] = 1 - other[1, 2]
    similarity = structural_similarity(image, other)
    assert similarity[1, 2].mean() < 0.2
    similarity[1, 2] = 1
    assert torch.allclose(similarity, torch.ones(()), atol=1e-5)
