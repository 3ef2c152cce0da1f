"""One suite over every ``Gpu``: the fake, the driver, and the bindings on top of it."""

import ctypes
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.cuda import nvrtc
from destseg_deploy.runtime.cuda.device import DriverGpu, open_device
from destseg_deploy.runtime.cuda.memory import array_at
from tests.fakes import driver as fake_driver
from tests.fakes.device import FakeDevice
from tests.fakes.driver import open_over

FILL = """
extern "C" __global__ void fill(unsigned char* target, int value, size_t count) {
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i < count) target[i] = (unsigned char)(value + OFFSET);
}
"""
BINDINGS = ("torch", "cuda.core", "pycuda", "driver")
FAKED = "DESTSEG_FAKE_DRIVER" in os.environ
"""Whether ``test_bindings.py`` runs this file over a fake driver with the real one's name."""
REAL = [pytest.param(b, marks=() if FAKED else pytest.mark.gpu) for b in BINDINGS]


def real_gpu() -> bool:
    try:
        DriverGpu(0).close()
    except BackendError:
        return False
    return True


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    if not fake_driver.compiler():
        pytest.skip("needs a C compiler for the fake driver")
    return fake_driver.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(library, monkeypatch):
    fake = fake_driver.FakeDriver(library)
    opened = nvrtc.Nvrtc(fake.library)
    monkeypatch.setattr(nvrtc.Nvrtc, "open", classmethod(lambda cls: opened))
    yield fake
    fake.fail()
    fake.end_capture_elsewhere()


def _compile(source, name, options):
    if name != "fill":
        raise BackendError(f"NVRTC: no function {name!r}")
    return _fill


def _fill(grid, block, arguments):
    target, value, count = (argument.value for argument in arguments)
    array_at(target, min(count, grid[0] * block[0]))[:] = value


@pytest.fixture(params=["fake", *(f"{b} on a fake driver" for b in BINDINGS), *REAL])
def device(request, monkeypatch):
    name = request.param
    if name == "fake":
        opened = FakeDevice(compiler=_compile)
    elif name.endswith("fake driver"):
        fake = request.getfixturevalue("driver")
        opened = open_over(fake, name.split(" ")[0], monkeypatch)
    else:
        if not real_gpu():
            pytest.skip("needs a CUDA GPU")
        try:
            opened = open_device("cuda", binding=name)
        except BackendError as error:
            pytest.skip(str(error))
    yield opened
    opened.close()
    opened.close()
    if name.endswith("fake driver"):
        _collect(fake)
        assert not fake.live(), fake.live()
        assert fake.references() == 0
        assert fake.depth() == 0


def _collect(fake):
    """Free what exceptions still hold; only where something is, since it is slow."""
    if fake.live():
        gc.collect()


@pytest.fixture
def memory(device):
    """Sixteen numbered bytes in pinned memory, and as many on the GPU, and a stream."""
    pinned, buffer, stream = device.allocate_pinned(16), device.allocate(16), device.stream()
    pinned.array[:] = np.arange(16)
    yield pinned, buffer, stream
    for thing in (stream, buffer, pinned):
        thing.close()
        thing.close()


def test_it_says_what_it_is(device):
    assert device.binding in ("fake", *BINDINGS)
    assert device.name
    assert device.sm.startswith("sm_")
    assert device.index == 0


def test_bytes_go_there_and_back(device, memory):
    pinned, buffer, stream = memory
    other = device.allocate(64)
    assert (buffer.size, other.size) == (16, 64)
    assert buffer.pointer % 256 == other.pointer % 256 == 0
    assert stream.handle
    stream.copy_in(other.pointer + 8, pinned.array)
    stream.copy_out(pinned.array[:8], other.pointer + 12)
    stream.synchronize()
    assert pinned.array.tolist() == [*range(4, 12), *range(8, 16)]
    other.close()


def test_only_contiguous_bytes_are_copied(device, memory):
    pinned, buffer, stream = memory
    error = AssertionError if device.binding == "fake" else ShapeError
    with pytest.raises(error):
        stream.copy_in(buffer.pointer, pinned.array[::2])
    with pytest.raises(error):
        stream.copy_out(pinned.array.view(np.float32), buffer.pointer)


def test_streams_wait_for_events(device, memory):
    pinned, buffer, stream = memory
    other, event = device.stream(), device.event()
    stream.copy_in(buffer.pointer, pinned.array)
    stream.record(event)
    other.wait(event)
    other.copy_out(pinned.array[8:], buffer.pointer)
    other.synchronize()
    assert pinned.array.tolist() == [*range(8), *range(8)]
    event.synchronize()
    event.close()
    event.close()
    other.close()


def test_recorded_work_is_done_when_it_is_launched(device, memory):
    pinned, buffer, stream = memory
    stream.begin_capture()
    stream.copy_in(buffer.pointer, pinned.array)
    stream.copy_out(pinned.array[:8], buffer.pointer + 8)
    graph = stream.end_capture()
    stream.synchronize()
    assert pinned.array.tolist() == list(range(16)), "recording runs nothing"
    for turn in range(2):
        pinned.array[8:] = turn
        stream.launch_graph(graph)
        stream.synchronize()
        assert pinned.array[:8].tolist() == [turn] * 8
    graph.close()
    graph.close()


def test_what_cannot_be_recorded_is_an_error_and_leaves_the_stream_usable(device, memory):
    pinned, buffer, stream = memory
    stream.begin_capture()
    with pytest.raises(BackendError, match="not permitted when stream is capturing"):
        stream.synchronize()
    with pytest.raises(BackendError):
        stream.end_capture().close()
    stream.copy_in(buffer.pointer, pinned.array)
    stream.synchronize()
    with pytest.raises(BackendError):
        stream.end_capture()


def test_kernels_get_their_arguments(device, memory):
    pinned, buffer, stream = memory
    kernel = device.compile(FILL, "fill", ["-DOFFSET=0"])
    arguments = [ctypes.c_void_p(buffer.pointer + 2), ctypes.c_int(7), ctypes.c_size_t(9)]
    stream.copy_in(buffer.pointer, pinned.array)
    stream.launch(kernel, (3, 1, 1), (4, 1, 1), arguments)
    stream.copy_out(pinned.array, buffer.pointer)
    stream.synchronize()
    assert pinned.array.tolist() == [0, 1, *[7] * 9, *range(11, 16)]
    kernel.close()
    kernel.close()


def test_a_function_that_is_not_there_is_an_error(device):
    with pytest.raises(BackendError):
        device.compile(FILL, "other", ["-DOFFSET=0"])


def test_it_knows_its_memory(device, memory):
    pinned, buffer, _ = memory
    outside = np.zeros(16, np.uint8)
    assert device.holds(buffer.pointer)
    assert device.holds(buffer.pointer + 15)
    assert not device.holds(pinned.array.ctypes.data)
    assert not device.holds(outside.ctypes.data)
    assert not device.holds(0)


def test_a_foreign_stream_is_used_and_left_open(device, memory):
    pinned, buffer, stream = memory
    foreign = device.foreign_stream(stream.handle)
    assert foreign.handle == stream.handle
    foreign.copy_in(buffer.pointer, pinned.array)
    foreign.synchronize()
    foreign.close()
    stream.copy_out(pinned.array[:8], buffer.pointer + 8)
    stream.synchronize()
    assert pinned.array[:8].tolist() == list(range(8, 16))


def test_any_thread_may_use_and_free_what_another_made(device, memory):
    pinned, buffer, stream = memory

    def there(value):
        mine, theirs = device.allocate(16), device.allocate_pinned(16)
        other = device.stream()
        theirs.array[:] = value
        other.copy_in(mine.pointer, theirs.array)
        other.synchronize()
        return mine, theirs, other

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(there, range(8)))
    for value, (mine, theirs, other) in enumerate(made):
        other.copy_out(pinned.array, mine.pointer)
        other.synchronize()
        assert (pinned.array == value).all()
        for thing in (other, mine, theirs):
            thing.close()

    def free():
        stream.copy_in(buffer.pointer, pinned.array)
        stream.close()
        buffer.close()

    thread = threading.Thread(target=free)
    thread.start()
    thread.join(20)


def test_current_gives_the_thread_its_own_context_back(device):
    with device.current(), device.current():
        device.allocate(16).close()
    # the fixture looks at the stack


# --- on the fake driver: what goes wrong


@pytest.mark.parametrize("binding", BINDINGS)
class TestErrors:
    @pytest.fixture
    def device(self, driver, binding, monkeypatch):
        opened = open_over(driver, binding, monkeypatch)
        yield opened
        driver.fail()
        opened.close()
        _collect(driver)
        assert not driver.live()
        assert (driver.references(), driver.depth()) == (0, 0)

    def test_too_little_memory_says_what_to_do(self, device, driver):
        driver.fail("cuMemAlloc_v2", 2)
        with pytest.raises(BackendError, match=r"CUDA: .*out of memory.*smaller batch"):
            device.allocate(16)
        driver.fail("cuMemAllocHost_v2", 2)
        with pytest.raises(BackendError, match=r"CUDA: .*out of memory"):
            device.allocate_pinned(16)

    @pytest.mark.parametrize(
        "name", ["cuStreamCreate", "cuEventCreate", "cuModuleLoadData", "cuModuleGetFunction"]
    )
    def test_a_thing_that_cannot_be_made_leaves_nothing(self, device, driver, name):
        make = {
            "cuStreamCreate": device.stream,
            "cuEventCreate": device.event,
            "cuModuleLoadData": lambda: device.compile(FILL, "fill"),
            "cuModuleGetFunction": lambda: device.compile(FILL, "fill"),
        }
        driver.fail(name, 999)
        with pytest.raises(BackendError, match=f"CUDA: {name} failed: error 999"):
            make[name]()

    def test_a_graph_that_cannot_be_instantiated_leaves_nothing(self, device, driver):
        stream = device.stream()
        stream.begin_capture()
        driver.fail("cuGraphInstantiateWithFlags", 2)
        with pytest.raises(BackendError, match="cuGraphInstantiateWithFlags"):
            stream.end_capture()
        assert "graph" not in driver.live()
        driver.fail()
        stream.close()

    def test_sources_that_do_not_compile_are_shown(self, device):
        with pytest.raises(BackendError, match=r"NVRTC: .*for sm_90: kernel\.cu\(1\): error"):
            device.compile("#error no", "fill")
        with pytest.raises(BackendError, match="NVRTC"):
            device.compile(f"{FILL} MISSING", "fill")
        device.compile(f"{FILL} MISSING", "fill", ["-DMISSING=1"]).close()

    def test_a_context_of_somebody_elses_stays_current(self, device, driver):
        other = DriverGpu(1, driver.driver)
        driver.driver.call("cuCtxSetCurrent", other.context)
        buffer = device.allocate(16)
        with device.current():
            pass
        buffer.close()
        mine = driver.driver.get("cuMemAlloc_v2", 16)
        assert driver.driver.owner(mine) == 1
        assert not device.holds(mine)
        assert other.holds(mine)
        driver.driver.call("cuMemFree_v2", mine)
        device.close()
        assert driver.depth() == 1
        driver.driver.get("cuCtxPopCurrent_v2")
        other.close()
        assert driver.references(1) == 0

    def test_a_recording_of_another_thread_neither_forbids_anything_nor_is_lost(
        self, device, driver
    ):
        """ONNX Runtime records in global mode; this thread allocates, waits and frees meanwhile."""
        stream, event, buffer = device.stream(), device.event(), device.allocate(16)
        pinned = device.allocate_pinned(16)
        stream.record(event)
        driver.capture_elsewhere()
        more = device.allocate(16), device.allocate_pinned(16)
        event.synchronize()
        stream.synchronize()
        for thing in (*more, buffer, pinned, event, stream):
            thing.close()
        assert not driver.end_capture_elsewhere(), "the other thread's recording is lost"
        assert driver.mode() == 0, "afterwards the thread is as the program had it"

    def test_what_the_program_set_for_its_thread_is_restored(self, device, driver):
        relaxed = ctypes.c_int(2)
        driver.library.cuThreadExchangeStreamCaptureMode(ctypes.byref(relaxed))
        device.allocate(16).close()
        driver.fail("cuMemAlloc_v2", 2)
        with pytest.raises(BackendError):
            device.allocate(16)
        assert driver.mode() == 2
        driver.library.cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(0)))

    def test_a_source_is_compiled_once_for_all_its_functions(self, device, monkeypatch):
        compiled, real = [], nvrtc.Nvrtc.compile

        def noted(self, source, sm, options=()):
            compiled.append(options)
            return real(self, source, sm, options)

        monkeypatch.setattr(nvrtc.Nvrtc, "compile", noted)
        both = FILL + FILL.replace("fill", "flood")
        for name in ("fill", "flood", "fill"):
            device.compile(both, name, ["-DOFFSET=0"]).close()
        assert len(compiled) == 1
        device.compile(both, "fill", ["-DOFFSET=1"]).close()
        device.compile(FILL, "fill", ["-DOFFSET=1"]).close()
        assert len(compiled) == 3, "other options or another source give another image"

    def test_after_close_it_refuses(self, device):
        device.close()
        with pytest.raises(BackendError, match="device 'cuda:0': closed"):
            device.allocate(16)

    def test_closing_from_another_thread_lets_go_of_everything(self, device, driver):
        thread = threading.Thread(target=device.close)
        thread.start()
        thread.join(20)
        assert driver.references() == 0

    def test_an_end_is_not_used_again(self, device):
        event, stream = device.event(), device.stream()
        event.close()
        with pytest.raises(BackendError, match="used after cuEventDestroy"):
            stream.record(event)
        stream.close()

    def test_a_gpu_that_is_not_there_is_named(self, driver, binding, monkeypatch):
        with pytest.raises(BackendError, match=r"device 'cuda:2': the driver sees 2 GPUs"):
            open_over(driver, binding, monkeypatch, index=2)
        assert driver.references() == 0

    def test_a_failing_retain_leaves_nothing(self, driver, binding, monkeypatch):
        driver.fail("cuDevicePrimaryCtxRetain", 999)
        with pytest.raises(BackendError, match="cuDevicePrimaryCtxRetain"):
            open_over(driver, binding, monkeypatch)
        assert driver.references() == 0


class TestErrorsOfOne:
    def test_pycuda_keeps_a_users_own_context(self, driver, monkeypatch):
        """As after ``pycuda.autoprimaryctx``: what was current is current again."""
        device = open_over(driver, "pycuda", monkeypatch)
        module = sys.modules["pycuda.driver"]
        theirs = module.Device(1).retain_primary_context()
        theirs.push()
        buffer = device.allocate(16)
        buffer.close()
        assert module.stack() == [theirs]
        device.close()
        assert module.stack() == [theirs]
        assert (driver.depth(), driver.references(0)) == (1, 0)
        theirs.pop()
        theirs.detach()
        assert driver.references(1) == 0
        driver.driver.get("cuCtxPopCurrent_v2")
        assert driver.depth() == 0

    @pytest.mark.parametrize("binding", ["cuda.core", "pycuda"])
    def test_a_binding_that_does_not_start_leaves_nothing(self, driver, monkeypatch, binding):
        name = {"cuda.core": "cuStreamCreate", "pycuda": "cuInit"}[binding]
        driver.fail(name, 100)
        with pytest.raises(
            BackendError, match=r"no NVIDIA driver with a GPU.*no CUDA-capable device"
        ):
            open_over(driver, binding, monkeypatch)
        assert driver.references() == 0

    def test_memory_of_torch_is_nobody_elses_any_more(self, driver, monkeypatch):
        """torch gives what its kernels still write to, and our streams do not wait for them."""
        device = open_over(driver, "torch", monkeypatch)
        buffer = device.allocate(16)
        array_at(buffer.pointer, 16)[:] = 7
        torch = sys.modules["torch"]
        torch.cuda.current_stream(torch.device("cuda", 0)).synchronize()
        assert (array_at(buffer.pointer, 16) == 7).all(), "the last owner has written to it"
        buffer.close()
        device.close()

    def test_torch_without_cuda_is_refused(self, driver, monkeypatch):
        with pytest.raises(BackendError, match=r"this PyTorch \(2\.0\) sees no CUDA GPU"):
            open_over(driver, "torch", monkeypatch, available=False)
        assert driver.references() == 0
