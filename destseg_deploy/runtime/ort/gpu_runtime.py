"""ONNX Runtime on a GPU: its CUDA or TensorRT provider, in the slots that TensorRT's runtime uses.

**The TensorRT provider was not run on a GPU yet.**
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from destseg_deploy.device import CUDA, Device
from destseg_deploy.options import OrtOptions
from destseg_deploy.runtime.cuda.device import open_device
from destseg_deploy.runtime.cuda.runtime import GpuRuntime
from destseg_deploy.runtime.ort.bindings import OrtNetwork
from destseg_deploy.runtime.ort.session import (
    check_artifact,
    open_session,
)

SLOTS = 2
"""Calls on their way at the same time: what double buffering needs. The network itself runs on one
stream, so more would only take memory."""


class OrtGpuRuntime(GpuRuntime):
    """An exported graph in ONNX Runtime, on exactly the provider that was asked for.

    Beside TensorRT, CUDA may run what TensorRT cannot, but no convolution; the CPU only computes
    shapes.
    """

    def __init__(
        self, path: Path, device: Device = CUDA, options: OrtOptions | None = None
    ) -> None:
        """Open an artifact after checking it against its spec.

        Args:
            path: The ``.onnx`` file; its spec lies beside it.
            device: A CUDA GPU.
            options: See ``OrtOptions``; defaults unless given.

        Raises:
            SpecError: If the spec is missing or was written for another file.
            BackendError: If ONNX Runtime or the GPU is not there, refuses the file or runs only a
                part of it, or an option does not fit the device.
        """
        options = options or OrtOptions()
        ort, spec = check_artifact(path, device, options)
        with ExitStack() as owned:
            gpu = open_device(device)
            owned.callback(gpu.close)
            compute = gpu.stream()
            owned.callback(compute.close)
            session = open_session(ort, path, spec, device, options, stream=compute.handle)
            network = OrtNetwork(ort, session, spec, gpu, compute, graphs=options.cuda_graph)
            super().__init__(network, gpu, SLOTS, owned.pop_all())
