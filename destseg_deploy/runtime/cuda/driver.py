"""NVIDIA's driver library through ``ctypes``: every call checked, every error named.

The bindings that Python offers differ in what they can do: pycuda has no graphs, torch copies no
plain addresses and launches no kernels. The driver itself is on every machine with a GPU and can
do all of it, so streams, events, graphs and kernels are made here, alike under every binding.
Names ending in ``_v2`` are what ``cuda.h`` calls by the plain name.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from destseg_deploy.errors import BackendError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

NOT_THERE = (
    "device {device!r}: no NVIDIA driver with a GPU on this machine ({reason}). Install one, or "
    "load the .onnx on device 'cpu'."
)

OUT_OF_MEMORY = 2
MAJOR, MINOR = 75, 76
"""Numbers of the attributes that make up a compute capability."""
POINTER_MEMORY_TYPE, POINTER_DEVICE = 2, 9
"""Numbers of a pointer's attributes."""
DEVICE_MEMORY = 2
"""What ``POINTER_MEMORY_TYPE`` says of memory that lies on a GPU."""
THREAD_LOCAL = 1
"""Of a capture: what other threads do at the same time spoils nothing. Of a thread: captures of
other threads forbid it nothing."""

SIGNATURES = {
    "cuMemcpyHtoDAsync_v2": "pPnp",
    "cuMemcpyDtoHAsync_v2": "Ppnp",
    "cuMemFree_v2": "p",
    "cuMemFreeHost": "p",
    "cuStreamSynchronize": "p",
    "cuStreamDestroy_v2": "p",
    "cuStreamBeginCapture_v2": "pi",
    "cuStreamEndCapture": "pP",
    "cuStreamWaitEvent": "ppi",
    "cuEventRecord": "pp",
    "cuEventSynchronize": "p",
    "cuEventDestroy_v2": "p",
    "cuGraphInstantiateWithFlags": "PpL",
    "cuGraphDestroy": "p",
    "cuGraphLaunch": "pp",
    "cuGraphExecDestroy": "p",
    "cuModuleGetFunction": "Pps",
    "cuModuleUnload": "p",
    "cuCtxPushCurrent_v2": "p",
    "cuCtxSetCurrent": "p",
    "cuPointerGetAttribute": "Pip",
    "cuMemAlloc_v2": "Pn",
    "cuMemAllocHost_v2": "Pn",
    "cuLaunchKernel": "piiiiiiipPP",
    "cuModuleLoadData": "PP",
    "cuStreamCreate": "Pi",
    "cuEventCreate": "Pi",
    "cuDevicePrimaryCtxRetain": "Pi",
    "cuDevicePrimaryCtxRelease_v2": "i",
    "cuThreadExchangeStreamCaptureMode": "P",
}
"""Function -> one letter per argument, see ``TYPES``; handles would be cut to 32 bits without."""

TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "P": ctypes.c_void_p,
    "n": ctypes.c_size_t,
    "i": ctypes.c_int,
    "L": ctypes.c_ulonglong,
    "s": ctypes.c_char_p,
}
"""``p`` handle or address, ``P`` the address of something of ours, ``n`` bytes, and so on."""


class Driver:
    """The driver's functions."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take a loaded library, and start it.

        Raises:
            BackendError: If the driver does not start or is too old for a function used here.
        """
        self._library = library
        for name, letters in SIGNATURES.items():
            self._function(name).argtypes = [TYPES[letter] for letter in letters]
        self.call("cuInit", 0)

    @classmethod
    def open(cls, device: str = "cuda") -> Driver:
        """Load the driver of this machine.

        Args:
            device: What the user asked for, for the message.

        Raises:
            BackendError: If there is none.
        """
        try:
            return cls(ctypes.CDLL(LIBRARY))
        except (OSError, BackendError) as error:
            reason = " ".join(str(error).split())
            raise BackendError(NOT_THERE.format(device=device, reason=reason)) from error

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            BackendError: If it reports an error.
        """
        code = self._function(name)(*arguments)
        if code:
            raise BackendError(f"CUDA: {name} failed: {self._explain(code)}")

    def get(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument receives a handle, an address or a number."""
        received = ctypes.c_void_p(0)
        self.call(name, ctypes.byref(received), *arguments)
        return received.value or 0

    def count(self) -> int:
        """Return the number of GPUs."""
        return self.get("cuDeviceGetCount")

    def name(self, device: int) -> str:
        """Return what a GPU is called, such as ``NVIDIA H100 80GB HBM3``."""
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), device)
        return text.value.decode()

    def sm(self, device: int) -> str:
        """Return a GPU's compute capability, such as ``sm_90``."""
        major, minor = (self.get("cuDeviceGetAttribute", a, device) for a in (MAJOR, MINOR))
        return f"sm_{major}{minor}"

    def owner(self, pointer: int) -> int | None:
        """Return the GPU in whose memory an address lies, or None if it is in none's."""
        try:
            where = self.get("cuPointerGetAttribute", POINTER_MEMORY_TYPE, pointer)
            if where != DEVICE_MEMORY:
                return None
            return self.get("cuPointerGetAttribute", POINTER_DEVICE, pointer)
        except BackendError:  # an address that CUDA never heard of
            return None

    @contextmanager
    def within(self, context: int) -> Iterator[None]:
        """Make a context current for a block, then give the thread back its own.

        ONNX Runtime records its graphs so that other threads must neither allocate, free nor wait
        meanwhile, or the recording is lost. What is done here is no part of it, so this thread
        leaves captures of others alone for the block.
        """
        self.call("cuCtxPushCurrent_v2", context)
        try:
            with self._ignoring_captures():
                yield
        finally:
            self.get("cuCtxPopCurrent_v2")

    @contextmanager
    def _ignoring_captures(self) -> Iterator[None]:
        mode = ctypes.c_int(THREAD_LOCAL)
        exchange = "cuThreadExchangeStreamCaptureMode", ctypes.byref(mode)
        self.call(*exchange)  # from here on ``mode`` is what the thread had before
        try:
            yield
        finally:
            self.call(*exchange)

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._library, name)
        except AttributeError as error:
            raise BackendError(
                f"CUDA: the driver has no {name}. Update it to one for CUDA 11.4 or newer."
            ) from error

    def _explain(self, code: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorString(code, ctypes.byref(text)) or not text.value:
            return f"error {code}"
        advice = ". Free memory on the GPU, or use a smaller batch or fewer contexts"
        return f"{text.value.decode()}{advice if code == OUT_OF_MEMORY else ''}"
