"""What the two phases minimise (methods.md 3.1.7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from destseg_deploy.models.destseg import cosine_distances, upsample


def student_loss(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Return the sum over levels and batch of the mean over pixels of 1 - cos."""
    distances = cosine_distances(teacher, student)
    return torch.stack([d.mean(dim=(1, 2, 3)).sum() for d in distances]).sum()


def segmentation_loss(segmentation: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return focal loss plus L1, both means over all pixels.

    Args:
        segmentation: float (N, 1, h, w), in [0, 1].
        mask: float (N, 1, H, W) of 0 and 1; resized to (h, w) and cut at one half.
        gamma: Exponent of the focal loss; no class weights.
    """
    target = (upsample(mask, segmentation.shape[-2:]) >= 0.5).to(segmentation.dtype)
    p = torch.where(target > 0, segmentation, 1 - segmentation)
    focal = -((1 - p) ** gamma) * p.clamp_min(1e-7).log()
    return focal.mean() + functional.l1_loss(segmentation, target)
