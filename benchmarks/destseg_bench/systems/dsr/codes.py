"""DSR's codebooks: features become their nearest codes, or anomalous ones.

Zavrtanik et al., ECCV 2022, Section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEAREST_SKIPPED = 0.05
"""Share of the codebook that is too similar to the feature to be an anomaly."""


def nearest_codes(features: Tensor, codebook: Tensor) -> Tensor:
    """Replace features by their nearest codes in L2.

    Args:
        features: float (N, C, H, W).
        codebook: float (K, C).

    Returns:
        float (N, C, H, W): rows of the codebook, without a gradient.
    """
    rows = features.detach().permute(0, 2, 3, 1)
    codes = F.embedding(_distances(rows, codebook.detach()).argmin(dim=-1), codebook.detach())
    return codes.permute(0, 3, 1, 2).contiguous()


def straight_through(features: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes, with the gradient passed on to the features as it is."""
    return features + (nearest_codes(features, codebook) - features).detach()


def anomalous_codes(
    codes: Tensor,
    features: Tensor,
    codebook: Tensor,
    mask: Tensor,
    strengths: Tensor,
    chances: Tensor,
) -> Tensor:
    """Replace the codes under a mask by random ones that are not the nearest.

    Of the K codes in order of their distance to the feature, the first 5 % are skipped, and one is
    taken from those up to ``strength`` * K.

    Args:
        codes: float (N, C, H, W).
        features: float (N, C, H, W), what the codes stand for.
        codebook: float (K, C).
        mask: bool (N, 1, H, W).
        strengths: float (N,) in [0.2, 1].
        chances: float (N, H, W) in [0, 1): each position's choice among its codes.

    Returns:
        float (N, C, H, W); new memory.
    """
    ranks = allowed_ranks(len(codebook), strengths, chances)
    changed = codes.permute(0, 2, 3, 1).clone()
    # An image at a time: the distances of a whole batch to K codes may not fit a GPU.
    for i, where in enumerate(mask[:, 0]):
        order = _distances(features[i].permute(1, 2, 0)[where], codebook).argsort(dim=-1)
        changed[i][where] = F.embedding(order.gather(1, ranks[i][where][:, None])[:, 0], codebook)
    return changed.permute(0, 3, 1, 2).contiguous()


def allowed_ranks(count: int, strengths: Tensor, chances: Tensor) -> Tensor:
    """Return which of the codes in order of distance to take, int64 (N, H, W).

    They are uniform from 5 % of the number of codes up to the strength's share of it, exclusive.

    Args:
        count: Codes.
        strengths: float (N,), above 0.05.
        chances: float (N, H, W) in [0, 1).
    """
    first = int(NEAREST_SKIPPED * count)
    last = (strengths * count).long().clamp(first + 1, count).view(-1, 1, 1)
    return torch.minimum(first + (chances * (last - first)).long(), last - 1)


def _distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """Return squared L2 distances of rows (..., C) to codes, less each row's own square."""
    squares = codebook.square().sum(dim=1)
    flat = torch.addmm(squares, rows.reshape(-1, rows.shape[-1]), codebook.T, alpha=-2)
    return flat.view(*rows.shape[:-1], len(codebook))
