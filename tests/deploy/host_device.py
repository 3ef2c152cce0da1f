"""A ``Device`` whose kernels run on the host: the kernel's own source, compiled by g++.

It keeps ``destseg_deploy.runtime.device`` as a GPU would: work waits in its stream until someone
waits for it, so memory that is reused or freed too early shows as wrong bytes; memory is fresh
noise between guards, which are checked when it is freed; arguments are checked against the kernel's
signature. Memory comes from the C library, so that an address sanitizer sees each piece.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError

HERE = Path(__file__).parent
GUARD = 8192
NOISE = 0xA5

_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]


def bytes_at(pointer: int, size: int) -> NDArray[np.uint8]:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), np.uint8)


def build(source: str, options: Sequence[str], folder: Path) -> Path:
    """Compile CUDA source as host code that exports ``launch_`` and ``signature_`` of kernels."""
    folder.mkdir(parents=True)
    (folder / "kernel.cu").write_text(source)
    names = re.findall(r"__global__ void (\w+)", source)
    exports = "".join(f"EXPORT_KERNEL({name})\n" for name in names)
    shim = f'#include "{HERE}/host_kernel.h"\n#include "kernel.cu"\n{exports}'
    (folder / "shim.cpp").write_text(shim)
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [*command, *options, "shim.cpp", "-o", "kernel.so"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return folder / "kernel.so"


class HostBuffer:
    def __init__(self, device: HostDevice, size: int, guard: int) -> None:
        self.size = size
        self._device = device
        self._guard = guard
        self._base = _libc.malloc(size + 2 * guard)
        self.pointer = self._base + guard
        self._all()[:] = NOISE
        device.live.append(self)

    def _all(self) -> NDArray[np.uint8]:
        return bytes_at(self._base, self.size + 2 * self._guard)

    def intact(self) -> bool:
        whole = self._all()
        guards = np.concatenate([whole[: self._guard], whole[self._guard + self.size :]])
        return bool((guards == NOISE).all())

    def close(self) -> None:
        """Spoil it and keep it aside, so that whoever still uses it is found out."""
        if self in self._device.live:
            assert self.intact(), f"written outside of a buffer of {self.size} bytes"
            self._device.live.remove(self)
            self._device.freed.append(self)
            self._spoilt = 1 + len(self._device.freed) % 250  # each its own
            self._all()[:] = self._spoilt

    def untouched(self) -> bool:
        return bool((self._all() == self._spoilt).all())

    def give_back(self) -> None:
        _libc.free(self._base)


class HostPinned(HostBuffer):
    def __init__(self, device: HostDevice, size: int, guard: int) -> None:
        super().__init__(device, size, guard)
        self.array = bytes_at(self.pointer, size)


class HostKernel:
    def __init__(self, device: HostDevice, library: ctypes.CDLL, name: str) -> None:
        self.run = getattr(library, f"launch_{name}")
        self.name = name
        sizes = (ctypes.c_int * 64)()
        self.sizes = list(sizes[: getattr(library, f"signature_{name}")(sizes)])
        self._device = device
        device.live.append(self)

    def close(self) -> None:
        if self in self._device.live:
            self._device.live.remove(self)


class HostEvent:
    def __init__(self, device: HostDevice) -> None:
        self._device = device
        self.stream: HostStream | None = None
        self.moment = 0
        device.live.append(self)

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.run_until(self.moment)

    def close(self) -> None:
        if self in self._device.live:
            self._device.live.remove(self)


class HostStream:
    def __init__(self, device: HostDevice) -> None:
        self.handle = 0x57
        self._device = device
        self._waiting: deque[Callable[[], None]] = deque()
        self._queued = 0
        self._done = 0
        self.launches: list[tuple[str, tuple[int, int, int], tuple[int, int, int]]] = []

    def _queue(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)
        self._queued += 1

    @property
    def pending(self) -> int:
        """Return how many pieces of work nobody has waited for."""
        return len(self._waiting)

    def run_until(self, moment: int) -> None:
        while self._done < moment:
            self._done += 1
            self._waiting.popleft()()

    def copy_in(self, pointer: int, source: NDArray[np.uint8]) -> None:
        assert source.flags.c_contiguous
        assert source.dtype == np.uint8
        address, size = source.ctypes.data, source.size
        self._queue(lambda: ctypes.memmove(pointer, address, size) and None)

    def copy_out(self, target: NDArray[np.uint8], pointer: int) -> None:
        assert target.flags.c_contiguous
        address, size = target.ctypes.data, target.size
        self._queue(lambda: ctypes.memmove(address, pointer, size) and None)

    def launch(
        self,
        kernel: HostKernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Any],
    ) -> None:
        assert kernel in self._device.live, "launched after close"
        assert [ctypes.sizeof(argument) for argument in arguments] == kernel.sizes
        assert 1 <= grid[0] < 2**31
        assert all(1 <= side <= 65535 for side in grid[1:])
        assert np.prod(block) <= 1024
        self.launches.append((kernel.name, grid, block))
        kept = list(arguments)
        geometry = (ctypes.c_uint * 6)(*grid, *block)

        def run() -> None:
            addresses = (ctypes.c_void_p * len(kept))(*map(ctypes.addressof, kept))
            assert kernel.run(geometry, addresses) == 0, "threads part at a barrier"

        self._queue(run)

    def record(self, event: HostEvent) -> None:
        event.stream, event.moment = self, self._queued

    def synchronize(self) -> None:
        self._device.waits += 1
        self.run_until(self._queued)

    def close(self) -> None:
        self.synchronize()


class HostDevice:
    binding = "host"
    name = "this machine"
    sm = "sm_00"

    def __init__(
        self,
        folder: Path,
        *,
        options: Sequence[str] = (),
        guard: int = GUARD,
        fail_at: int = 0,
        change: tuple[str, str] = ("", ""),
    ) -> None:
        """Build kernels in a folder, which keeps them.

        Args:
            folder: Where libraries are kept, to be built once.
            options: Further ones for g++.
            guard: Bytes around each piece of memory.
            fail_at: Which of the things made, counted from 1, is refused; 0 for none.
            change: What to replace in the kernels' source, to see a test fail.
        """
        self.live: list[Any] = []
        self.waits = 0
        self._folder = folder
        self._options = tuple(options)
        self._change = change
        self._guard = guard
        self._fail_at = fail_at
        self.made = 0
        self.freed: list[HostBuffer] = []

    def close(self) -> None:
        """Make sure that nothing is left, and that nothing freed was written to."""
        assert not self.live, f"not closed: {self.live}"
        assert all(buffer.untouched() for buffer in self.freed), "written to after it was freed"
        while self.freed:
            self.freed.pop().give_back()

    def _make(self) -> None:
        """Count what is made, and fail at one of them where a test asks for it."""
        self.made += 1
        if self.made == self._fail_at:
            raise BackendError("out of memory")

    def allocate(self, size: int) -> HostBuffer:
        self._make()
        return HostBuffer(self, size, self._guard)

    def allocate_pinned(self, size: int) -> HostPinned:
        self._make()
        return HostPinned(self, size, self._guard)

    def stream(self) -> HostStream:
        return HostStream(self)

    def event(self, *, timing: bool = False) -> HostEvent:
        self._make()
        return HostEvent(self)

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> HostKernel:
        self._make()
        old, new = self._change
        assert old in source, f"the source has no {old!r}"
        source = source.replace(old, new) if old else source
        options = (*options, *self._options)
        key = hashlib.sha256(repr((source, options)).encode()).hexdigest()[:16]
        library = self._folder / key / "kernel.so"
        if not library.exists():
            library = build(source, options, self._folder / key)
        return HostKernel(self, ctypes.CDLL(str(library)), name)
