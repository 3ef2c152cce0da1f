"""Images to calibrate 8 bit on: normal ones, and the same with a synthetic anomaly in each.

What lies beyond the normal range is what the network is there to see, and ranges from normal images
alone cut it off.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.images import list_images, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.synthesis import draw, synthesize
from destseg_deploy.data.texture_source import Textures, open_textures
from destseg_deploy.errors import DataError
from destseg_deploy.spec import ModelSpec

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with their truth.

    Attributes:
        frames: uint8 (N, H, W, 3), at the graph's input size.
        masks: bool (N, H, W), the defects.
    """

    frames: Bytes
    masks: NDArray[np.bool_]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Bool (N,): whether an image has a defect."""
        return np.asarray(self.masks.any(axis=(1, 2)))


def read_normal(folder: Path, spec: ModelSpec, count: int) -> Bytes:
    """Read normal images, spread over a folder, at the size that the graph takes.

    Args:
        folder: Images of good parts.
        spec: The artifact's.
        count: How many at most.

    Returns:
        uint8 (N, H, W, 3), at least two that differ.

    Raises:
        DataError: If the folder is empty, all images are the same, or one has another size than
            the camera whose resize is in the graph.
    """
    paths = list_images(folder)
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
    frames = [_fit(paths[i], spec) for i in chosen]
    if len({frame.tobytes() for frame in frames}) < 2:
        raise DataError(
            f"{folder}: {len(frames)} images that are all the same. Expected at least 2 different "
            "good parts; 32 or more are better."
        )
    return np.stack(frames)


def _fit(path: Path, spec: ModelSpec) -> Bytes:
    frame = read_image(path)
    if spec.size != spec.network_size and frame.shape[:2] != spec.size:
        raise DataError(
            f"{path}: {frame.shape[1]}x{frame.shape[0]} pixels, the graph takes "
            f"{spec.size[1]}x{spec.size[0]} and resizes inside. Pass images of the camera."
        )
    return resize_image(frame, spec.size)


def add_anomalies(normal: Bytes, *, textures: Path | None = None, seed: int = 0) -> Labelled:
    """Return the images twice: as they are, and each with a synthetic anomaly.

    Args:
        normal: uint8 (N, H, W, 3).
        textures: Folder such as DTD's; built-in ones unless given.
        seed: Of every choice.
    """
    source = open_textures(textures, (normal.shape[1], normal.shape[2]))
    made = [
        _spoil(frame, source, np.random.default_rng([seed, i])) for i, frame in enumerate(normal)
    ]
    masks = np.stack([mask for _, mask in made])
    return Labelled(
        np.concatenate([normal, np.stack([frame for frame, _ in made])]),
        np.concatenate([np.zeros_like(masks), masks]),
    )


def _spoil(
    frame: Bytes, textures: Textures, rng: np.random.Generator
) -> tuple[Bytes, NDArray[np.bool_]]:
    """Return an image with an anomaly that has at least one pixel, and where it is."""
    while True:
        texture = textures.read(int(rng.integers(len(textures))))
        anomaly = synthesize(frame, texture, draw(rng))
        if anomaly.mask.any():
            return np.round(anomaly.image).astype(np.uint8), anomaly.mask
