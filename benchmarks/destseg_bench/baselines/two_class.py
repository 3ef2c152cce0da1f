"""Maps with a class "normal" and a class "anomaly", as DRAEM and DSR learn and read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5
POOL = 21


def focal_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the mean focal loss with exponent 2 and labels clamped to [1e-5, 1 - 1e-5].

    With p the softmax's share for a pixel's own class,
    q = p (1 - 1e-5) + (1 - p) 1e-5 + 1e-5 and the loss is -(1 - q)² log q.

    Args:
        logits: float (N, 2, H, W), normal and anomalous.
        mask: float (N, 1, H, W), 1 where anomalous, else 0.
    """
    anomalous = torch.softmax(logits, dim=1)[:, 1:]
    own = torch.where(mask > 0.5, anomalous, 1 - anomalous)
    smoothed = own * (1 - SMOOTH) + (1 - own) * SMOOTH + SMOOTH
    return (-(1 - smoothed).square() * smoothed.log()).mean()


def pooled_score(maps: Tensor) -> Tensor:
    """Return the highest mean over 21 x 21 pixels of maps (N, H, W), as (N,).

    A square may reach over the border; what is beyond counts as zero.
    """
    means = F.avg_pool2d(maps[:, None], POOL, stride=1, padding=POOL // 2, count_include_pad=True)
    return means.amax(dim=(1, 2, 3))
