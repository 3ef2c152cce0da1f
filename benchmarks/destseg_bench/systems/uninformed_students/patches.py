"""Networks that describe a patch, and their descriptors of the patch about every pixel at once.

Bergmann et al., CVPR 2020, Section 3.1. A patch network makes p x p pixels one descriptor. Sliding
it over an image would compute the same features again and again. Here each pooling is done at every
position instead, and the positions of either parity are put into the batch as images of their own,
so that the later convolutions see what they would see in a patch (Bailer et al., Fast Dense Feature
Extraction with CNNs with Pooling Layers, 2018). At the end they are put back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from destseg_deploy.errors import BackendError

SLOPE = 5e-3
"""Of the leaky ReLUs."""

PLANS: dict[int, tuple[tuple[int, int] | str, ...]] = {
    17: ((6, 128), (5, 256), (5, 256), (4, 128)),
    33: ((5, 128), "pool", (5, 256), "pool", (2, 256), (4, 128)),
    65: ((5, 128), "pool", (5, 128), "pool", (5, 128), "pool", (4, 256), (1, 128)),
}
"""Patch size -> kernel and channels of each convolution, and where a 2 x 2 pooling stands."""


class PatchNetwork(nn.Module):
    """Describes patches; see ``describe`` for all of an image's.

    Attributes:
        patch: Height and width of a patch.
        width: Numbers of a descriptor.
    """

    def __init__(self, patch: int, narrow: int = 1) -> None:
        """Make a network with random weights.

        Args:
            patch: 17, 33 or 65.
            narrow: Divisor of every number of channels.

        Raises:
            BackendError: If there is no network for such patches.
        """
        super().__init__()
        if patch not in PLANS:
            raise BackendError(f"patch {patch}: expected one of {', '.join(map(str, PLANS))}.")
        self.patch = patch
        self.width = 3
        self.layers = nn.Sequential()
        for layer in PLANS[patch]:
            if isinstance(layer, str):
                self.layers.append(nn.MaxPool2d(2))
                continue
            kernel, channels = layer[0], layer[1] // narrow
            self.layers.append(nn.Conv2d(self.width, channels, kernel))
            self.layers.append(nn.LeakyReLU(SLOPE))
            self.width = channels
        del self.layers[-1]  # a descriptor may be negative

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (N, 3, p, p) to descriptors (N, width)."""
        descriptors: Tensor = self.layers(patches).flatten(1)
        return descriptors

    def describe(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the descriptor of the patch about every pixel.

        Beyond the border the patches see zeros.

        Returns:
            (N, width, H, W).
        """
        x = F.pad(images, [self.patch // 2] * 4)
        halvings = 0
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                x = split_parities(F.max_pool2d(x, 2, stride=1))
                halvings += 1
            else:
                x = layer(x)
        for _ in range(halvings):
            x = join_parities(x)
        return x[:, :, : images.shape[2], : images.shape[3]]


def split_parities(x: Tensor) -> Tensor:
    """Map (N, C, H, W) to (4 N, C, ceil(H / 2), ceil(W / 2)): even and odd rows and columns.

    An odd side first gets a row or column of zeros at its end. Its results are at the end again,
    beyond the pixels of the image, where ``describe`` cuts them off.
    """
    x = F.pad(x, [0, x.shape[3] % 2, 0, x.shape[2] % 2])
    return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def join_parities(x: Tensor) -> Tensor:
    """Undo ``split_parities``, (4 N, C, H, W) to (N, C, 2 H, 2 W)."""
    count, (_, channels, height, width) = len(x) // 4, x.shape
    parts = x.view(2, 2, count, channels, height, width)
    return parts.permute(2, 3, 4, 0, 5, 1).reshape(count, channels, 2 * height, 2 * width)
