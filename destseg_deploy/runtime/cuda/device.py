"""Open a GPU with the CUDA binding that a process is best served by.

``DriverGpu`` needs no package. The other bindings take their memory from elsewhere and leave the
rest to it: ``torch_device``, ``cuda_core_device`` and ``pycuda_device``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda.driver import NOT_THERE, Driver
from destseg_deploy.runtime.cuda.memory import Memory, PinnedMemory, array_at
from destseg_deploy.runtime.cuda.nvrtc import Nvrtc
from destseg_deploy.runtime.cuda.protocols import (
    Buffer,
    Event,
    Gpu,
    Kernel,
    PinnedBuffer,
    Stream,
)
from destseg_deploy.runtime.cuda.stream import ContextCalls, DriverEvent, DriverKernel, DriverStream


class DriverGpu:
    """See ``Gpu``. Subclasses take memory from another binding and change nothing else."""

    binding = "driver"

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Open a GPU's primary context.

        Args:
            index: Which of the GPUs that the process sees.
            driver: The driver's library; that of this machine unless given.

        Raises:
            BackendError: If there is no driver or no such GPU.
        """
        self.driver = driver or Driver.open(f"cuda:{index}")
        if not index < (count := self.driver.count()):
            raise BackendError(
                f"device 'cuda:{index}': the driver sees {count} GPU{'s' * (count != 1)}, numbered "
                "from 0. See nvidia-smi, and CUDA_VISIBLE_DEVICES."
            )
        self.index = index
        self._ordinal = self.driver.get("cuDeviceGet", index)
        self.name = self.driver.name(self._ordinal)
        self.sm = self.driver.sm(self._ordinal)
        self._context: int | None = self.driver.get("cuDevicePrimaryCtxRetain", self._ordinal)
        self.calls = ContextCalls(self.driver, self.current)
        self._images: dict[tuple[str, tuple[str, ...]], bytes] = {}

    @property
    def context(self) -> int:
        """The primary context's handle.

        Raises:
            BackendError: If the GPU is closed.
        """
        if self._context is None:
            raise BackendError(f"device 'cuda:{self.index}': closed. Open it again.")
        return self._context

    @contextmanager
    def current(self) -> Iterator[None]:
        """See ``Gpu.current``."""
        with self.driver.within(self.context):
            yield

    def allocate(self, size: int) -> Buffer:
        """See ``Gpu.allocate``."""
        with self.current(), self._taking(size):
            return self._take(size)

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        """See ``Gpu.allocate_pinned``."""
        with self.current(), self._taking(size):
            return self._take_pinned(size)

    def stream(self) -> Stream:
        """See ``Gpu.stream``."""
        return DriverStream(self.calls)

    def foreign_stream(self, handle: int) -> Stream:
        """See ``Gpu.foreign_stream``."""
        return DriverStream(self.calls, handle)

    def event(self) -> Event:
        """See ``Gpu.event``."""
        return DriverEvent(self.calls)

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> Kernel:
        """See ``Gpu.compile``."""
        key = source, tuple(options)
        if key not in self._images:  # an image holds all functions of its source
            self._images[key] = Nvrtc.open().compile(source, self.sm, options)
        return DriverKernel(self.calls, self._images[key], name)

    def holds(self, pointer: int) -> bool:
        """See ``Gpu.holds``."""
        with self.current():
            return self.driver.owner(pointer) == self._ordinal

    def close(self) -> None:
        """See ``Gpu.close``."""
        context, self._context = self._context, None
        if context is not None:
            self.driver.call("cuDevicePrimaryCtxRelease_v2", self._ordinal)

    def _take(self, size: int) -> Memory:
        """Allocate on the GPU; the context is current. Any exception means too little memory."""
        pointer = self.driver.get("cuMemAlloc_v2", size)
        return Memory(pointer, size, lambda: self.calls.call("cuMemFree_v2", pointer))

    def _take_pinned(self, size: int) -> PinnedMemory:
        """Allocate page-locked memory; as ``_take``."""
        address = self.driver.get("cuMemAllocHost_v2", size)
        return PinnedMemory(
            array_at(address, size), lambda: self.calls.call("cuMemFreeHost", address)
        )

    @contextmanager
    def _taking(self, size: int) -> Iterator[None]:
        """Turn what a binding raises into ``BackendError``; the bindings' errors share no base."""
        try:
            yield
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(
                f"CUDA: {self.binding} gives no {size} bytes ({_first_line(error)}). Free memory "
                "on the GPU, or use a smaller batch or fewer contexts."
            ) from error

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Start a binding with the context current; give the context back where that fails."""
        try:
            with self.driver.within(self.context):
                yield
        except Exception as error:  # the bindings' errors share no base class
            DriverGpu.close(self)  # the binding has nothing to give back yet
            reason = _first_line(error)
            raise BackendError(
                NOT_THERE.format(device=f"cuda:{self.index}", reason=reason)
            ) from error


def _first_line(error: Exception) -> str:
    """Return the first line of an error, at most 200 characters of it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


BINDINGS = {
    "torch": ("torch_device", "TorchGpu", "a CUDA build of torch"),
    "cuda.core": ("cuda_core_device", "CudaCoreGpu", "pip install cuda-core"),
    "pycuda": ("pycuda_device", "PyCudaGpu", "pip install pycuda (needs CUDA's headers)"),
    "driver": ("device", "DriverGpu", "NVIDIA's driver"),
}
"""Binding -> its file, its class, and how to get it."""


def open_device(device: str | Device, *, binding: str = "auto") -> Gpu:
    """Open a GPU.

    Args:
        device: ``cuda`` or ``cuda:<index>``.
        binding: ``torch``, ``cuda.core``, ``pycuda`` or ``driver`` (NVIDIA's driver and no package
            at all). ``auto`` takes torch where the process has loaded it and it sees a GPU, else
            cuda.core, else pycuda, else the driver.

    Raises:
        BackendError: If the GPU, the driver or the binding asked for is not there, or the device
            is not an NVIDIA GPU.
    """
    place = Device.parse(device)
    if place.kind != "cuda":
        raise BackendError(f"device '{place}': expected an NVIDIA GPU, cuda or cuda:<index>.")
    if binding == "auto":
        return _open_best(place.index)
    if binding not in BINDINGS:
        raise BackendError(f"binding {binding!r}: expected auto, {', '.join(BINDINGS)}.")
    return _open(binding, place.index)


def _open_best(index: int) -> Gpu:
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


def _open(binding: str, index: int) -> Gpu:
    file, name, install = BINDINGS[binding]
    try:
        module = importlib.import_module(f"destseg_deploy.runtime.cuda.{file}")
    except (ImportError, OSError, RuntimeError) as error:  # pycuda loads the driver at once
        reason = " ".join(str(error).split())[:160]
        raise MissingBindingError(
            f"binding {binding!r} is not usable here ({reason}). It needs {install}; or leave the "
            "choice to binding 'auto'."
        ) from error
    opened: Gpu = getattr(module, name)(index)
    return opened


def _torch_sees_a_gpu() -> bool:
    """Whether the process has torch loaded and it works on CUDA; nothing is imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())
