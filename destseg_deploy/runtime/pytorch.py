"""PyTorch back end: runs a checkpoint as it was trained. The reference for every other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.models.inference import InferenceGraph
from destseg_deploy.models.weights import load_checkpoint
from destseg_deploy.runtime.base import Prediction, check_images, check_open
from destseg_deploy.spec import ModelSpec

_SWITCH = threading.Lock()
"""PyTorch has one switch for TF32 in the whole process."""


class PyTorchRuntime:
    """A checkpoint in eager PyTorch, in float32."""

    def __init__(self, model: DeSTSeg, spec: ModelSpec, device: str = "cpu") -> None:
        """Take a model in memory; use ``open`` for a file.

        Raises:
            BackendError: If the device is not there.
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise BackendError(
                f"device {device!r}: this PyTorch ({torch.__version__}) sees no CUDA GPU. Use "
                "device 'cpu', or install the driver and a CUDA build of torch."
            )
        self.spec = spec
        self._device = torch.device(device)
        self._graph: InferenceGraph | None = InferenceGraph(
            model, network_size=spec.network_size, top_k=spec.output.top_k
        ).to(self._device)

    @classmethod
    def open(cls, path: Path, device: str = "cpu") -> PyTorchRuntime:
        """Load a checkpoint.

        Raises:
            WeightsError: If the file is damaged or of another model.
            SpecError: If its spec is missing or of another file.
            BackendError: If the device is not there.
        """
        return cls(*load_checkpoint(path), device)

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._graph, self.spec)
        check_images(images, self.spec)
        assert self._graph is not None
        with torch.inference_mode(), _float32_convolutions(self._device):
            pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
            anomaly_map, score = self._graph(pixels)
        return Prediction(anomaly_map.cpu().numpy(), score.cpu().numpy())

    def close(self) -> None:
        """Drop the networks."""
        self._graph = None


@contextmanager
def _float32_convolutions(device: torch.device) -> Iterator[None]:
    """Keep a GPU's convolutions in float32; PyTorch's default is TF32, which moves scores."""
    if device.type != "cuda":
        yield
        return
    with _SWITCH:
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before
