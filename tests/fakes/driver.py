"""The fake driver of ``libcuda.c``, and the three bindings on top of it.

The bindings are stood for by modules with the few names that the adapters use, which behave as
theirs do, down to pycuda's own stack of contexts. ``test_bindings.py`` holds the names
against the real packages where they are installed.
"""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda.device import DriverGpu
from destseg_deploy.runtime.cuda.driver import Driver
from destseg_deploy.runtime.cuda.memory import array_at

SOURCE = Path(__file__).with_name("libcuda.c")
KINDS = {"memory": 1, "pinned": 2, "stream": 3, "event": 4, "graph": 5, "exec": 6, "module": 7}


def compiler():
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path, name="libfakecuda.so") -> Path:
    """Compile the library.

    Once a library that calls itself libcuda.so.1 is loaded, everything in the process that asks
    for the driver gets it; so that name is for processes of their own.
    """
    library = folder / name
    command = [compiler(), "-shared", "-fPIC", "-O1", f"-Wl,-soname,{name}"]
    subprocess.run([*command, "-o", library, SOURCE, "-lpthread", "-ldl"], check=True, timeout=120)
    return library


class FakeDriver:
    """The library, loaded; and what tests ask of it."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        self.driver = Driver(self.library)

    def fail(self, name="", code=0):
        """Let a function return an error from now on; nothing does without a name."""
        self.library.fake_fail(name.encode(), code)

    def depth(self):
        """Return how many contexts lie on the calling thread's stack."""
        return self.library.fake_depth()

    def mode(self):
        """Return the calling thread's mode beside captures of others; 0 forbids unsafe calls."""
        return self.library.fake_mode()

    def capture_elsewhere(self):
        """Let another thread record as ONNX Runtime does, until ``end_capture_elsewhere``."""
        self.library.fake_capture_elsewhere(1)

    def end_capture_elsewhere(self):
        """End that recording; return whether a call of another thread has spoilt it."""
        spoilt = self.library.fake_captured_elsewhere() == 2
        self.library.fake_capture_elsewhere(0)
        return spoilt

    def references(self, device=0):
        """Return how often a primary context is held."""
        return self.library.fake_references(device)

    def live(self):
        """Return what was made and not destroyed: kind -> count."""
        counts = {name: self.library.fake_live(kind) for name, kind in KINDS.items()}
        return {name: count for name, count in counts.items() if count}


# --- torch


class FakeTensor:
    def __init__(self, driver, pointer, size, free):
        self._driver, self._pointer, self._size, self._free = driver, pointer, size, free

    def data_ptr(self):
        return self._pointer

    def numpy(self):
        return array_at(self._pointer, self._size)

    def __del__(self):
        """As torch, free it whatever context is current."""
        context = self._driver.get("cuDevicePrimaryCtxRetain", 0)
        with self._driver.within(context):
            self._driver.call(self._free, self._pointer)
        self._driver.call("cuDevicePrimaryCtxRelease_v2", 0)


def fake_torch(fake: FakeDriver, *, available=True):
    """Return what the torch adapter uses of ``torch``; a tensor is freed with its last name.

    Memory on the GPU was somebody's before, whose kernels still write to it until torch's stream
    is waited for.
    """
    queued = []

    def synchronize():
        while queued:
            queued.pop()()

    def empty(size, *, dtype, device=None, pin_memory=False):
        assert dtype == "uint8"
        assert (device is None) == pin_memory
        get, free = (
            ("cuMemAllocHost_v2", "cuMemFreeHost")
            if pin_memory
            else ("cuMemAlloc_v2", "cuMemFree_v2")
        )
        try:
            tensor = FakeTensor(fake.driver, fake.driver.get(get, size), size, free)
        except BackendError as error:
            raise RuntimeError(f"CUDA out of memory. Tried to allocate {size}\nmore") from error
        if not pin_memory:
            queued.append(lambda: tensor.numpy().fill(0xEE))
        return tensor

    def current_stream(device):
        assert device[0] == "cuda"
        return types.SimpleNamespace(synchronize=synchronize)

    return types.SimpleNamespace(
        __version__="2.0",
        uint8="uint8",
        empty=empty,
        device=lambda kind, index: (kind, index),
        cuda=types.SimpleNamespace(
            is_available=lambda: available, init=lambda: None, current_stream=current_stream
        ),
    )


# --- cuda.core


def fake_cuda_core(fake: FakeDriver):
    """Return what the adapter uses of ``cuda.core``."""
    driver = fake.driver

    class Buffer:
        def __init__(self, pointer, free):
            self.handle, self._free = pointer, free

        def close(self, stream=None):
            assert isinstance(stream, Stream)
            free, self._free = self._free, None
            if free:
                driver.call(free, self.handle)

    class Stream:
        def __init__(self):
            self.handle = driver.get("cuStreamCreate", 1)

        def sync(self):
            driver.call("cuStreamSynchronize", self.handle)

        def close(self):
            driver.call("cuStreamDestroy_v2", self.handle)

    class Device:
        def __init__(self, device_id):
            self.device_id = device_id

        def set_current(self):
            self._context = driver.get("cuDevicePrimaryCtxRetain", self.device_id)
            driver.call("cuDevicePrimaryCtxRelease_v2", self.device_id)
            driver.call("cuCtxSetCurrent", self._context)

        def create_stream(self):
            return Stream()

        def allocate(self, size, *, stream):
            assert isinstance(stream, Stream)
            return Buffer(driver.get("cuMemAlloc_v2", size), "cuMemFree_v2")

    class LegacyPinnedMemoryResource:
        def allocate(self, size, *, stream=None):
            return Buffer(driver.get("cuMemAllocHost_v2", size), "cuMemFreeHost")

    return types.SimpleNamespace(
        Device=Device, LegacyPinnedMemoryResource=LegacyPinnedMemoryResource
    )


# --- pycuda


class Error(Exception):
    """``pycuda.driver.Error``, the base of its errors."""


class FakePyCuda(types.ModuleType):
    """``pycuda.driver``: one stack of contexts per thread beside the driver's."""

    Error = Error

    def __init__(self, fake: FakeDriver):
        super().__init__("pycuda.driver")
        self._fake = fake
        self._here = threading.local()
        outer = self

        class Device:
            def __init__(self, number):
                self.number = number

            def retain_primary_context(self):
                outer.call("cuDevicePrimaryCtxRetain", ctypes.byref(ctypes.c_void_p()), self.number)
                return Context(self.number)

        class Context:
            def __init__(self, number):
                self.number, self.valid, self.thread = number, True, threading.get_ident()

            @property
            def handle(self):
                held = fake.driver.get("cuDevicePrimaryCtxRetain", self.number)
                fake.driver.call("cuDevicePrimaryCtxRelease_v2", self.number)
                return held

            def push(self):
                outer.prepare()
                outer.call("cuCtxPushCurrent_v2", self.handle)
                outer.stack().append(self)

            @staticmethod
            def pop():
                outer.prepare()
                if not outer.stack():
                    raise Error("context::pop failed: invalid device context")
                outer.stack().pop()
                if outer.stack():
                    outer.call("cuCtxPushCurrent_v2", outer.stack()[-1].handle)

            def detach(self):
                active = bool(outer.stack()) and outer.stack()[-1] is self
                if active:
                    outer.call("cuDevicePrimaryCtxRelease_v2", self.number)
                elif self.thread == threading.get_ident():
                    outer.call("cuCtxPushCurrent_v2", self.handle)
                    outer.call("cuDevicePrimaryCtxRelease_v2", self.number)
                self.valid = False
                if active:
                    outer.stack().pop()
                    if outer.stack():
                        outer.call("cuCtxPushCurrent_v2", outer.stack()[-1].handle)

        self.Device, self.Context = Device, Context

    def stack(self):
        if not hasattr(self._here, "stack"):
            self._here.stack = []
        return self._here.stack

    def prepare(self):
        if self.stack():
            self._fake.driver.get("cuCtxPopCurrent_v2")

    def call(self, name, *arguments):
        try:
            self._fake.driver.call(name, *arguments)
        except BackendError as error:
            raise Error(str(error)) from error

    def init(self, flags=0):
        self.call("cuInit", flags)

    def mem_alloc(self, size):
        return Allocation(self, "cuMemAlloc_v2", "cuMemFree_v2", size)

    def pagelocked_empty(self, shape, dtype):
        assert dtype is np.uint8
        allocation = Allocation(self, "cuMemAllocHost_v2", "cuMemFreeHost", shape)
        return array_at(int(allocation), shape).view(_Based).based_on(allocation)


class _Based(np.ndarray):
    """An array whose ``base`` is pycuda's allocation, as PyArray_SetBaseObject makes it."""

    def based_on(self, allocation):
        self._allocation = allocation
        return self

    @property
    def base(self):
        return self._allocation

    def __array_finalize__(self, source):
        self._allocation = getattr(source, "_allocation", None)


class Allocation:
    """``DeviceAllocation`` or ``PagelockedHostAllocation``."""

    def __init__(self, module, allocate, free, size):
        if not module.stack():
            raise Error("explicit_context_dependent failed: no currently active context?")
        self._module, self._function, self._ward = module, free, module.stack()[-1]
        found = ctypes.c_void_p()
        module.call(allocate, ctypes.byref(found), size)
        self._pointer = found.value

    def __int__(self):
        return self._pointer

    def free(self):
        stack = self._module.stack()
        assert stack, "freed without its context"
        assert stack[-1] is self._ward, "cannot activate out-of-thread context"
        self._module.call(self._function, self._pointer)


# --- devices


def open_over(fake: FakeDriver, binding: str, monkeypatch, index=0, **options):
    """Open a device of a binding that is stood for, on the fake driver."""
    if binding == "driver":
        return DriverGpu(index, fake.driver)
    name = {"torch": "torch", "cuda.core": "cuda.core", "pycuda": "pycuda.driver"}[binding]
    module = types.ModuleType(name)
    if binding == "pycuda":
        module = FakePyCuda(fake)
    else:
        make = {"torch": fake_torch, "cuda.core": fake_cuda_core}[binding]
        module.__dict__.update(vars(make(fake, **options)))
    package = module if "." not in name else types.ModuleType(name.split(".")[0])
    if package is not module:
        setattr(package, name.split(".")[1], module)
    for title, standing in ((package.__name__, package), (name, module)):
        monkeypatch.setitem(sys.modules, title, standing)
    adapter = f"destseg_deploy.runtime.cuda.{binding.replace('.', '_')}_device"
    monkeypatch.delitem(sys.modules, adapter, raising=False)
    imported = importlib.import_module(adapter)
    monkeypatch.delitem(sys.modules, adapter)
    (kind,) = (
        value
        for value in vars(imported).values()
        if isinstance(value, type) and value.__module__ == adapter
    )
    return kind(index, fake.driver)
