"""ONNX Runtime on a CPU: runs ``.onnx``, reading and writing the host's arrays where they are.

An FP16 graph on the CPU provider is computed in float32 between casts; it shows that the file loads
and answers, and nothing about half precision. ``ort.gpu_runtime`` runs the same files on a GPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.device import CPU, Device
from destseg_deploy.errors import BackendError
from destseg_deploy.memory import refuse_shortage
from destseg_deploy.options import OrtOptions
from destseg_deploy.runtime.base import Prediction, check_images, check_open, kept_by_children
from destseg_deploy.runtime.cuda.slots import Addresses
from destseg_deploy.runtime.ort.session import (
    bind,
    check_artifact,
    one_line,
    open_session,
)


class OrtRuntime:
    """An exported graph in ONNX Runtime on the CPU.

    Attributes:
        spec: The artifact's contract.
    """

    def __init__(self, path: Path, device: Device = CPU, options: OrtOptions | None = None) -> None:
        """Open an artifact after checking it against its spec.

        Args:
            path: The ``.onnx`` file; its spec lies beside it.
            device: The CPU; ``ort.gpu_runtime`` runs it on a GPU.
            options: See ``OrtOptions``; defaults unless given.

        Raises:
            SpecError: If the spec is missing or was written for another file.
            BackendError: If ONNX Runtime is not there or refuses the file, or an option does not
                fit the CPU.
        """
        options = options or OrtOptions()
        self._process = os.getpid()
        ort, self.spec = check_artifact(path, device, options)
        self._session: Any = open_session(ort, path, self.spec, device, options)
        self._keep = kept_by_children(self, self._session)

    def infer(self, images: NDArray[np.uint8]) -> Prediction:
        """Score images; see ``Runtime.infer``."""
        check_open(self._session, self.spec, self._process)
        check_images(images, self.spec)
        batch, read = len(images), np.ascontiguousarray(images)
        # Bound to the arrays that the caller gets, so that no answer is copied.
        anomaly_map = np.empty((batch, *self.spec.map_size), np.float32)
        score = np.empty(batch, np.float32)
        where = Addresses(*(array.ctypes.data for array in (read, anomaly_map, score)))
        try:
            binding = bind(self._session, self.spec, batch, where, ("cpu", 0))
            self._session.run_with_iobinding(binding)
        except Exception as error:  # its errors share no base class
            refuse_shortage(error, self.spec.artifact.file)
            raise BackendError(
                f"{self.spec.artifact.file}: ONNX Runtime failed on device 'cpu' "
                f"({one_line(error)}). Export it again."
            ) from error
        return Prediction(anomaly_map, score)

    def close(self) -> None:
        """Release the session and all memory; a second call does nothing."""
        self._session = None
        self._keep()
