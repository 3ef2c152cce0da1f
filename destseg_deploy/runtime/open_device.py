"""Pick the CUDA binding that a process is best served by, and open a GPU with it."""

from __future__ import annotations

import importlib
import re
import sys

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.device import Device

BINDINGS = {
    "torch": ("device_torch", "TorchDevice", "a CUDA build of torch"),
    "cuda.core": ("device_cuda_core", "CudaCoreDevice", "pip install cuda-core"),
    "pycuda": ("device_pycuda", "PyCudaDevice", "pip install pycuda (needs CUDA's headers)"),
    "driver": ("device_driver", "DriverDevice", "NVIDIA's driver"),
}
"""Binding -> its file, its class, and how to get it."""


def open_device(device: str = "cuda", *, binding: str = "auto") -> Device:
    """Open a GPU.

    Args:
        device: ``cuda`` or ``cuda:<index>``.
        binding: ``torch``, ``cuda.core``, ``pycuda`` or ``driver`` (NVIDIA's driver and no package
            at all). ``auto`` takes torch where the process has loaded it and it sees a GPU, else
            cuda.core, else pycuda, else the driver.

    Raises:
        BackendError: If the GPU, the driver or the binding asked for is not there.
    """
    if not (found := re.fullmatch(r"cuda(?::(\d+))?", device)):
        raise BackendError(f"device {device!r}: expected cuda or cuda:<index>.")
    index = int(found[1] or 0)
    if binding == "auto":
        return _open_best(index)
    if binding not in BINDINGS:
        raise BackendError(f"binding {binding!r}: expected auto, {', '.join(BINDINGS)}.")
    return _open(binding, index)


def _open_best(index: int) -> Device:
    candidates = ["cuda.core", "pycuda", "driver"]
    if _torch_sees_a_gpu():
        candidates.insert(0, "torch")
    for binding in candidates[:-1]:
        try:
            return _open(binding, index)
        except MissingBindingError:  # the next one needs less
            continue
    return _open(candidates[-1], index)


class MissingBindingError(BackendError):
    """The binding itself is not installed, whatever the machine has."""


def _open(binding: str, index: int) -> Device:
    file, name, install = BINDINGS[binding]
    try:
        module = importlib.import_module(f"destseg_deploy.runtime.{file}")
    except (ImportError, OSError, RuntimeError) as error:  # pycuda loads the driver at once
        reason = " ".join(str(error).split())[:160]
        raise MissingBindingError(
            f"binding {binding!r} is not usable here ({reason}). It needs {install}; or leave the "
            "choice to binding 'auto'."
        ) from error
    opened: Device = getattr(module, name)(index)
    return opened


def _torch_sees_a_gpu() -> bool:
    """Whether the process has torch loaded and it works on CUDA; nothing is imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())
