"""Calibration: which range each tensor's values take on normal images and on synthetic anomalies.

Half of the images are normal, half have a synthetic anomaly in them: what lies beyond the normal
range is what the network is there to see, and ranges from normal images alone cut it off. The
ranges are a JSON file that can be read, compared and corrected by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from destseg_deploy.atomic import replacing
from destseg_deploy.data.images import list_images, read_image
from destseg_deploy.data.resize import resize_image
from destseg_deploy.data.synthesis import draw, synthesize
from destseg_deploy.data.texture_source import Textures, open_textures
from destseg_deploy.errors import DataError, ExportError
from destseg_deploy.spec import ModelSpec
from destseg_export.qdq import Range
from destseg_export.session import open_session

Bytes = NDArray[np.uint8]

TAIL = 1e-4
"""Share of an image's values beyond either end of its range. Rare peaks would coarsen all steps."""


@dataclass(frozen=True)
class Calibration:
    """Measured ranges.

    Attributes:
        normal: Normal images seen.
        synthetic: Images with a synthetic anomaly seen.
        source: Folder of the normal images.
        tail: See ``TAIL``.
        ranges: Tensor -> range.
    """

    normal: int
    synthetic: int
    source: str
    tail: float
    ranges: Mapping[str, Range]

    def write(self, path: Path) -> None:
        """Write the JSON file whole."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read what ``write`` wrote.

        Raises:
            ExportError: If it cannot be read.
        """
        try:
            data = json.loads(path.read_text())
            ranges = {name: Range(**values) for name, values in data.pop("ranges").items()}
            return cls(ranges=ranges, **data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExportError(f"{path}: no calibration ({error}). Calibrate again.") from error


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


def measure_ranges(
    proto: onnx.ModelProto, tensors: Sequence[str], frames: Bytes, tail: float = TAIL
) -> dict[str, Range]:
    """Run a graph on images and return the range of each tensor over all of them.

    Args:
        proto: The FP32 graph.
        tensors: Names of tensors in it.
        frames: uint8 (N, H, W, 3), normal and anomalous.
        tail: Share of an image's values left outside at each end.
    """
    watched = onnx.ModelProto.FromString(proto.SerializeToString())
    for name in tensors:
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    run = open_session(watched, tensors)
    found: dict[str, Range] = {}
    for frame in frames:
        for name, values in zip(tensors, run(frame[None]), strict=True):
            low, high = (float(q) for q in np.quantile(values, [tail, 1 - tail]))
            known = found.get(name, Range(low, high))
            found[name] = Range(min(known.low, low), max(known.high, high))
    return found
