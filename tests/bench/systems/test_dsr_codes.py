"""DSR's codebooks, against a search one by one."""

import numpy as np
import pytest
import torch

from destseg_bench.systems.dsr.codes import (
    allowed_ranks,
    anomalous_codes,
    nearest_codes,
    straight_through,
)

COUNT, WIDTH = 40, 6
"""Of a small codebook: its nearest 5 % are 2 codes."""


def features_and_codes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(2, WIDTH, 3, 5)).astype(np.float32),
        rng.normal(size=(COUNT, WIDTH)).astype(np.float32),
    )


def order_of(feature: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Codes from the nearest on, by the squares of the differences themselves."""
    return np.argsort([((feature.astype(np.float64) - code) ** 2).sum() for code in book])


def test_nearest_codes_are_those_of_a_search_one_by_one() -> None:
    features, book = features_and_codes()
    found = nearest_codes(torch.from_numpy(features), torch.from_numpy(book)).numpy()
    assert found.shape == features.shape
    by_product = 0
    for n, y, x in np.ndindex(2, 3, 5):
        feature = features[n, :, y, x]
        assert np.array_equal(found[n, :, y, x], book[order_of(feature, book)[0]])
        by_product += np.array_equal(found[n, :, y, x], book[np.argmax(book @ feature)])
    assert by_product < 30  # the codes' own lengths matter


def test_gradient_passes_straight_through() -> None:
    features, book = (torch.from_numpy(a).requires_grad_() for a in features_and_codes())
    codes = straight_through(features, book)
    assert torch.allclose(codes, nearest_codes(features, book), atol=1e-6)
    assert not torch.allclose(codes, features, atol=0.1)
    weights = torch.rand(features.shape, generator=torch.Generator().manual_seed(0))
    (weights * codes).sum().backward()
    assert torch.equal(features.grad, weights)
    assert book.grad is None


def test_ranks_lie_between_the_skipped_share_and_the_strength() -> None:
    strengths, chances = torch.tensor([0.2, 1.0]), torch.rand(2, 50, 50)
    chances[:, 0, 0], chances[:, 0, 1] = 0.0, 1 - 2**-24
    ranks = allowed_ranks(4096, strengths, chances)
    assert ranks[:, 0, 0].tolist() == [204, 204]
    assert ranks[:, 0, 1].tolist() == [818, 4095]
    assert (ranks >= 204).all()
    share = (ranks[1].float().mean() - 204) / (4096 - 204)
    assert float(share) == pytest.approx(0.5, abs=0.03)


def test_anomalous_codes_are_allowed_neighbours_and_only_under_the_mask() -> None:
    features, book = features_and_codes()
    rng = np.random.default_rng(1)
    codes = rng.normal(size=features.shape).astype(np.float32)
    mask = rng.random((2, 1, 3, 5)) < 0.6
    strengths = np.array([0.3, 1.0], np.float32)  # 12 codes, and all 40
    seen: list[set[int]] = [set(), set()]
    for chances in rng.random((150, 2, 3, 5)).astype(np.float32):
        changed = anomalous_codes(
            *map(torch.from_numpy, (codes, features, book, mask, strengths, chances))
        ).numpy()
        for n, y, x in np.ndindex(2, 3, 5):
            if not mask[n, 0, y, x]:
                assert np.array_equal(changed[n, :, y, x], codes[n, :, y, x])
                continue
            (code,) = np.flatnonzero((book == changed[n, :, y, x]).all(axis=1))
            rank = order_of(features[n, :, y, x], book).tolist().index(code)
            seen[n].add(rank)
    assert seen[0] == set(range(2, 12))
    assert seen[1] == set(range(2, 40))
