"""PatchCore's patch features: two feature maps to one vector of 1024 per patch of the finer one.

The description takes the 3x3 neighbourhood of every position, flattens its C x 9 numbers, pools
them adaptively to 1024 (``MeanMapper``), enlarges the coarser grid bilinearly, and pools the two
vectors in a row to 1024. All of it is linear, and 1024 is a whole multiple of every C here, so that
no pooling window leaves a channel: each layer is one 3x3 convolution with fixed weights and
channels in groups, and enlarging comes after it. The result is the same, for 0.1 % of the work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from destseg_deploy.errors import ShapeError

WIDTH = 1024
"""Numbers per patch, after ``MeanMapper`` and at the end."""

KERNEL = 3


class PatchEmbedding(nn.Module):
    """Two feature maps, the finer one first, to patch features; nothing in it is trained."""

    fine: Tensor
    coarse: Tensor

    def __init__(self, channels: tuple[int, int]) -> None:
        """Make the fixed weights.

        Args:
            channels: Of the finer and the coarser map; each divides 1024.

        Raises:
            ShapeError: If one does not.
        """
        super().__init__()
        for number in channels:
            if WIDTH % number:
                raise ShapeError(f"channels {number}: expected a divisor of {WIDTH}.")
        self.register_buffer("fine", pooling_weights(channels[0]))
        self.register_buffer("coarse", pooling_weights(channels[1]))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map (N, C0, H, W) and (N, C1, h, w) to (N, H * W, 1024), rows of the grid in order."""
        fine = _pool(features[0], self.fine)
        coarse = _pool(features[1], self.coarse)
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([fine, coarse], dim=1).flatten(2).transpose(1, 2).contiguous()


def _pool(features: Tensor, weights: Tensor) -> Tensor:
    """Map (N, C, H, W) to (N, 512, H, W), with zeros beyond the border."""
    groups = features.shape[1] // weights.shape[1]
    return F.conv2d(features, weights, padding=KERNEL // 2, groups=groups)


def pooling_weights(channels: int) -> Tensor:
    """Return a layer's two poolings in a row as the weights of a convolution in groups.

    The second pooling of two layers of 1024 averages neighbours, since 2048 is twice 1024: of each
    layer it makes 512.

    Args:
        channels: C, a divisor of 1024.

    Returns:
        float32 (512, C / groups, 3, 3), where groups is C, or 512 for C = 1024.
    """
    inputs = max(1, channels * 2 // WIDTH)  # channels that one output reads
    unit = torch.eye(inputs * KERNEL**2)[:, None]
    outputs = WIDTH * inputs // channels
    pooled = F.avg_pool1d(F.adaptive_avg_pool1d(unit, outputs), 2)  # (inputs * 9, 1, outputs / 2)
    group = pooled.squeeze(1).T.reshape(-1, inputs, KERNEL, KERNEL)
    return group.repeat(channels // inputs, 1, 1, 1)
