"""ONNX Runtime back end: runs ``.onnx`` on a CPU or, with onnxruntime-gpu, on CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.base import Prediction, check_images, check_open
from destseg_deploy.spec import ModelSpec

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OrtRuntime:
    """An exported graph in ONNX Runtime, on exactly the provider that was asked for."""

    def __init__(self, path: Path, device: str = "cpu", *, threads: int = 0) -> None:
        """Open an artifact after checking it against its spec.

        Args:
            path: The ``.onnx`` file; its spec lies beside it.
            device: ``cpu``, ``cuda`` or ``cuda:<index>``.
            threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.

        Raises:
            SpecError: If the spec is missing or was written for another file.
            BackendError: If ONNX Runtime or the device is not there, or refuses the file.
        """
        self.spec = ModelSpec.read(path)
        if not path.is_file():
            raise BackendError(
                f"{path}: no such file. Run destseg-export --category NAME to make it."
            )
        self.spec.check_artifact(path)
        self._session: Any = _open_session(path, device, threads)
        output = self.spec.output
        self._outputs = [output.map_name, output.score_name]

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._session, self.spec)
        check_images(images, self.spec)
        feed = {self.spec.input.name: np.ascontiguousarray(images)}
        anomaly_map, score = self._session.run(self._outputs, feed)
        return Prediction(anomaly_map, score)

    def close(self) -> None:
        """Release the session."""
        self._session = None


def _open_session(path: Path, device: str, threads: int) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(
            f"{path}: ONNX Runtime is not installed. pip install 'destseg-deploy[onnxruntime]', or "
            "[gpu] for CUDA."
        ) from error
    name, _, index = device.partition(":")
    if name not in PROVIDERS:
        raise BackendError(f"device {device!r}: expected cpu, cuda or cuda:<index>.")
    provider = PROVIDERS[name]
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"device {device!r}: this ONNX Runtime ({ort.__version__}) has no {provider}, only "
            f"{', '.join(ort.get_available_providers())}. Install onnxruntime-gpu, or use 'cpu'."
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    settings = {"device_id": index or "0"} if name == "cuda" else {}
    try:
        session = ort.InferenceSession(str(path), options, providers=[(provider, settings)])
    except Exception as error:  # its errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"{path}: ONNX Runtime cannot open it ({reason}). Export it again."
        ) from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"device {device!r}: {provider} did not start and ONNX Runtime fell back to "
            f"{session.get_providers()[0]}. Check the driver, CUDA and cuDNN versions it needs."
        )
    return session
