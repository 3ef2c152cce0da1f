"""The module that is exported: it takes pixels and returns the anomaly map and the score.

It wraps a trained ``DeSTSeg`` and adds every step between the camera's bytes and the two outputs:
the antialiased resize, the normalisation, one pass of the teacher, the upsampling and the image
score. So no host has to repeat these steps, and the training code knows nothing of export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from destseg_deploy.data.resize import resize_matrix
from destseg_deploy.models.destseg import DeSTSeg, dest_map, upsample
from destseg_deploy.models.fused import FusedDeSTSeg
from destseg_deploy.models.tiles import TiledMap
from destseg_deploy.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelSpec,
    RegionSpec,
    TileGrid,
    TilingSpec,
)


def imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of ImageNet's pixels on a device, float32 (3, 1, 1)."""
    mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.view(3, 1, 1), std.view(3, 1, 1)


def normalize_pixels(images: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Map float (N, 3, H, W) in [0, 255] to ImageNet-normalised values.

    Args:
        images: The pixels.
        statistics: ``imagenet_statistics`` of the images' device. Unless given, they are copied to
            the device now, and the host waits for a GPU.
    """
    mean, std = statistics or imagenet_statistics(images.device)
    return (images / 255 - mean) / std


def top_k_mean(anomaly_map: Tensor, k: int) -> Tensor:
    """Return the mean of the ``k`` largest values of each map (N, H, W); (N,)."""
    return anomaly_map.flatten(1).topk(k, dim=1, sorted=False).values.mean(dim=1)


class PixelResize(nn.Module):
    """The resize of ``data.resize`` as two constant matrix products with rounding."""

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
        """Resize float (N, 3, H, W) of whole grey levels; the result is whole grey levels again."""
        # floor(x + 0.5) and not round(): round() takes halves to the even number, Pillow takes them
        # up. Width before height, each rounded, as Pillow does it.
        images = torch.floor(torch.matmul(images, self.columns) + 0.5)
        return torch.floor(torch.matmul(self.rows, images) + 0.5)


class Region(nn.Module):
    """Sets a map to 0 outside of a region."""

    inside: Tensor

    def __init__(
        self, region: RegionSpec | None, frame: tuple[int, int], size: tuple[int, int]
    ) -> None:
        """Make the mask of a region of the ``frame`` for maps of a ``size``; None keeps all."""
        super().__init__()
        self.given = region is not None
        if region is not None:
            mask = torch.from_numpy(region.mask_at(frame, size))
            self.register_buffer("inside", mask, persistent=False)

    def forward(self, anomaly_map: Tensor) -> Tensor:
        """Return the map (N, 1, H, W) with 0 outside."""
        if not self.given:
            return anomaly_map
        # Not a product: 0 times a value that is not finite would not be 0.
        return torch.where(self.inside, anomaly_map, 0.0)


class InferenceGraph(nn.Module):
    """uint8 (N, H, W, 3) RGB -> anomaly map float32 (N, h, w) and score float32 (N,)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: DeSTSeg | FusedDeSTSeg,
        *,
        network_size: tuple[int, int],
        input_size: tuple[int, int] | None = None,
        map_size: tuple[int, int] | None = None,
        top_k: int,
        tiling: TilingSpec | None = None,
        region: RegionSpec | None = None,
    ) -> None:
        """Wrap a trained model, in eval mode.

        Args:
            model: The trained networks.
            network_size: Height and width at which the network was trained; of a tile.
            input_size: Height and width of the camera's frames; the network's unless given.
            map_size: Height and width of the returned map; that of the map that the score is taken
                from unless given.
            top_k: Pixels that are averaged into the score, of the map at the network's size, or of
                the one that is blended from tiles.
            tiling: How the frame is cut into tiles; it is resized to the network's size unless
                given.
            region: Outside of it the map is 0; all of the frame unless given.
        """
        super().__init__()
        self.model = model.eval()
        self.network_size = network_size
        frame = input_size or network_size
        grid = None if tiling is None else TileGrid.of(frame, network_size, tiling)
        self.working_size = network_size if grid is None else grid.working
        self.map_size = map_size or self.working_size
        self.top_k = top_k
        # Buffers move with the module. Made in forward, they would be copied from the host in every
        # call, for which a GPU waits, and which a CUDA graph cannot record.
        mean, std = imagenet_statistics(torch.device("cpu"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.resize: nn.Module = nn.Identity()
        if frame != self.working_size:
            self.resize = PixelResize(frame, self.working_size)
        inside = None if region is None else region.mask_at(frame, self.working_size)
        self.region = Region(region, frame, self.working_size)
        self.map_region = Region(region, frame, self.map_size)
        self.tiles = (
            None if tiling is None or grid is None else TiledMap(grid, inside, tiling.tile_batch)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map (N, *map_size) and the score (N,)."""
        # The cast comes before the transpose, because TensorRT cannot transpose uint8.
        pixels = self.resize(image.float().permute(0, 3, 1, 2))
        image = normalize_pixels(pixels, (self.mean, self.std))
        tiles, network = self.tiles, self.network_map
        anomaly_map = self.region(network(image) if tiles is None else tiles(image, network))
        # The score comes from the map at the network's size, because T counts pixels there
        # (supplement, section A); a larger map would make the same T a smaller area.
        score = top_k_mean(anomaly_map.squeeze(1), self.top_k)
        if self.map_size != self.working_size:
            # Again, since interpolation carries values over the region's border.
            anomaly_map = self.map_region(upsample(anomaly_map, torch.Size(self.map_size)))
        return anomaly_map.squeeze(1), score

    def network_map(self, image: Tensor) -> Tensor:
        """Map normalised pixels at the network's size to their map of the same size."""
        teacher, student = self.model.features(image)
        return upsample(self.raw_map(teacher, student), torch.Size(self.network_size))

    def raw_map(self, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        """Return the map of unit-length features, in [0, 1], (N, 1, H/4, W/4)."""
        return self.model.segment(teacher, student)


class StudentTeacherGraph(InferenceGraph):
    """The same with the student-teacher map, the paper's DeST, in place of the segmentation."""

    def raw_map(self, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        """Return the map over 8, its largest value: exact, so no metric changes."""
        return dest_map(teacher, student) / 8


def served_graph(
    model: DeSTSeg | FusedDeSTSeg, spec: ModelSpec, kind: type[InferenceGraph] = InferenceGraph
) -> InferenceGraph:
    """Wrap a trained model as a spec says; the one place where a spec becomes a graph."""
    return kind(
        model,
        network_size=spec.network_size,
        input_size=spec.size,
        map_size=spec.map_size,
        top_k=spec.output.top_k,
        tiling=spec.tiling,
        region=spec.region,
    )
