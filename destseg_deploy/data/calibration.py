"""Images for the calibration of INT8: normal ones, and the same with a synthetic anomaly in each.

An anomaly gives activations beyond the range of normal images. Ranges that are measured on normal
images alone would cut these activations off.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.data.datasets import DataSet, open_dataset
from destseg_deploy.data.images import read_image
from destseg_deploy.data.resize import remark_squeeze, resize_image
from destseg_deploy.data.synthesis import draw, synthesize
from destseg_deploy.data.textures import Textures, open_textures
from destseg_deploy.errors import DataError
from destseg_deploy.spec import ModelSpec

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with their ground truth.

    Attributes:
        frames: uint8 (N, H, W, 3), at the graph's input size.
        masks: bool (N, H, W), the defects.
        labels: bool (N,), whether an image has a defect. The mask of a small one may be empty at
            this size.
    """

    frames: Bytes
    masks: NDArray[np.bool_]
    labels: NDArray[np.bool_]


def read_normal(source: Path | DataSet, spec: ModelSpec, count: int) -> Bytes:
    """Read normal images, spread evenly over a data set, at the input size of the graph.

    Args:
        source: A data set, or the folder or list that holds it; its images of good parts are read.
        spec: The spec of the artifact.
        count: Largest number of images.

    Returns:
        uint8 (N, H, W, 3), at least two that differ.

    Raises:
        DataError: If the folder is empty, all images are the same, or the graph contains the
            camera's resize and an image has another size than the camera, or an image has a single
            colour.
    """
    data = open_dataset(source)
    paths = data.train()
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
    frames = [_fit(paths[i], spec) for i in chosen]
    if len({frame.tobytes() for frame in frames}) < 2:
        raise DataError(
            f"{data.source}: {len(frames)} images, all the same. Expected images of at least 2 "
            "different good parts; 32 or more are better."
        )
    return np.stack(frames)


def _fit(path: Path, spec: ModelSpec) -> Bytes:
    frame = read_image(path)
    if (frame == frame[0, 0]).all():
        raise DataError(
            f"{path}: all pixels have the colour {frame[0, 0].tolist()}, expected a photograph of "
            "a good part. Remove it from the folder."
        )
    if not spec.takes_any_size and frame.shape[:2] != spec.size:
        raise DataError(
            f"{path}: {frame.shape[1]}x{frame.shape[0]} pixels, the graph takes "
            f"{spec.size[1]}x{spec.size[0]} and resizes inside. Pass images of the camera."
        )
    remark_squeeze(frame.shape[:2], spec.working_size)
    return resize_image(frame, spec.size)


def add_anomalies(normal: Bytes, *, textures: Path | None = None, seed: int = 0) -> Labelled:
    """Return the images twice: as they are, and each with a synthetic anomaly.

    Args:
        normal: uint8 (N, H, W, 3).
        textures: Folder of texture images such as DTD's; built-in ones unless given.
        seed: Seed of every random choice.
    """
    source = open_textures(textures, (normal.shape[1], normal.shape[2]))
    made = [
        _spoil(frame, source, np.random.default_rng([seed, i])) for i, frame in enumerate(normal)
    ]
    masks = np.stack([mask for _, mask in made])
    return Labelled(
        np.concatenate([normal, np.stack([frame for frame, _ in made])]),
        np.concatenate([np.zeros_like(masks), masks]),
        np.repeat([False, True], len(normal)),
    )


def _spoil(
    frame: Bytes, textures: Textures, rng: np.random.Generator
) -> tuple[Bytes, NDArray[np.bool_]]:
    """Return an image with an anomaly of at least one pixel, and the anomaly's mask."""
    # A mask of Perlin noise may be empty, and an empty one would be a normal image.
    while True:
        texture = textures.read(int(rng.integers(len(textures))))
        anomaly = synthesize(frame, texture, draw(rng))
        if anomaly.mask.any():
            return np.round(anomaly.image).astype(np.uint8), anomaly.mask
