"""The export twin: the module that *is* the served graph. Pixels in, answers out.

Training code never learns about serving. This wraps a trained ``DeSTSeg`` and adds everything
between the camera's bytes and the two outputs, so that no host has to repeat it: the antialiased
resize, the normalisation, one pass of the teacher, the upsampling and the image score.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from destseg_deploy.data.resize import resize_matrix
from destseg_deploy.models.destseg import DeSTSeg, upsample
from destseg_deploy.spec import IMAGENET_MEAN, IMAGENET_STD


def imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of ImageNet's pixels on a device, float32 (3, 1, 1)."""
    mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.view(3, 1, 1), std.view(3, 1, 1)


def normalize_pixels(images: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Map float (N, 3, H, W) in [0, 255] to ImageNet-normalised values.

    Args:
        images: The pixels.
        statistics: ``imagenet_statistics`` of their device. Without them they are copied there,
            and a GPU is waited for.
    """
    mean, std = statistics or imagenet_statistics(images.device)
    return (images / 255 - mean) / std


def top_k_mean(anomaly_map: Tensor, k: int) -> Tensor:
    """Return the mean of the ``k`` largest values of each map (N, H, W); (N,)."""
    return anomaly_map.flatten(1).topk(k, dim=1, sorted=False).values.mean(dim=1)


class PixelResize(nn.Module):
    """THE resize as two constant matrix products with rounding; see ``data.resize``."""

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        """Make the matrices from ``source`` (height, width) to ``target``."""
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(resize_matrix(source[0], target[0])))
        self.register_buffer(
            "columns", torch.from_numpy(resize_matrix(source[1], target[1]).T.copy())
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map whole grey levels as float (N, 3, H, W) to the target size, whole again."""
        images = torch.floor(torch.matmul(images, self.columns) + 0.5)
        return torch.floor(torch.matmul(self.rows, images) + 0.5)


class InferenceGraph(nn.Module):
    """uint8 (N, H, W, 3) RGB -> anomaly map float32 (N, h, w) and score float32 (N,)."""

    def __init__(
        self,
        model: DeSTSeg,
        *,
        network_size: tuple[int, int],
        input_size: tuple[int, int] | None = None,
        map_size: tuple[int, int] | None = None,
        top_k: int,
    ) -> None:
        """Wrap a trained model, in eval mode.

        Args:
            model: The trained networks.
            network_size: Height and width at which the network was trained.
            input_size: Height and width of the camera's frames; the network's unless given.
            map_size: Height and width of the returned map; the network's unless given.
            top_k: Pixels of the network-sized map that are averaged into the score.
        """
        super().__init__()
        self.model = model.eval()
        self.network_size = network_size
        self.map_size = map_size or network_size
        self.top_k = top_k
        self.resize: nn.Module = nn.Identity()
        if input_size is not None and input_size != network_size:
            self.resize = PixelResize(input_size, network_size)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map (N, *map_size) and the score (N,)."""
        # The cast comes first: TensorRT transposes no uint8.
        pixels = self.resize(image.float().permute(0, 3, 1, 2))
        teacher, student = self.model.features(normalize_pixels(pixels))
        segmentation = self.model.segment(teacher, student)
        anomaly_map = upsample(segmentation, torch.Size(self.network_size))
        score = top_k_mean(anomaly_map.squeeze(1), self.top_k)
        if self.map_size != self.network_size:
            anomaly_map = upsample(anomaly_map, torch.Size(self.map_size))
        return anomaly_map.squeeze(1), score
