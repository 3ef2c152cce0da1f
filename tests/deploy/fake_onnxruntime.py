"""An ``onnxruntime`` module with GPUs, without ONNX Runtime: strict where the real one is silent.

It offers only what the runtime uses; ``test_ort_fake`` holds each name and parameter against the
real module. Its graph computes what ``FakeRuntime`` does. A CUDA graph is replayed as a GPU does
it: at the addresses of the run that recorded it, whatever is bound later. Runs of a session that
records graphs must not overlap, and no two runs may use the same memory at the same time.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from destseg_deploy.runtime.device_driver import array_at
from destseg_deploy.runtime.fake import FakeRuntime

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


@dataclass(frozen=True)
class AssignedNode:
    op_type: str
    name: str = "node"
    domain: str = ""


@dataclass(frozen=True)
class AssignedSubgraph:
    ep_name: str
    nodes: tuple[AssignedNode, ...]

    def get_nodes(self):
        return list(self.nodes)


class SessionOptions:
    def __init__(self):
        self.intra_op_num_threads = 0
        self.enable_cpu_mem_arena = True
        self.log_severity_level = 2
        self.entries = {}

    def add_session_config_entry(self, key, value):
        assert isinstance(key, str)
        assert isinstance(value, str)
        self.entries[key] = value


class RunOptions:
    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, key, value):
        assert isinstance(key, str)
        assert isinstance(value, str)
        self.entries[key] = value


class Value:
    """What ``OrtValue.ortvalue_from_shape_and_type`` makes."""

    def __init__(self, module, shape, dtype, device_type, device_id):
        module.allocated += 1
        if module.allocated == module.out_of_memory_at:
            raise RuntimeError("Failed to allocate memory\nfor requested buffer")
        self.array = np.full(shape, 99, dtype)
        self.device = device_type, device_id

    def update_inplace(self, data):
        assert isinstance(data, np.ndarray)
        assert data.flags.c_contiguous
        assert (data.dtype, data.shape) == (self.array.dtype, self.array.shape)
        self.array[...] = data

    def numpy(self):
        return self.array.copy()


@dataclass(frozen=True)
class Bound:
    device: tuple[str, int]
    dtype: type
    shape: tuple[int, ...]
    pointer: int

    def array(self):
        size = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
        return array_at(self.pointer, size).view(self.dtype).reshape(self.shape)


class Binding:
    def __init__(self, session):
        self.session = session
        self.inputs = {}
        self.outputs = {}
        self.kept = []
        self.synchronized = True

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        self.inputs[name] = Bound((device_type, device_id), element_type, shape, buffer_ptr)

    def bind_output(
        self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None
    ):
        self.outputs[name] = Bound((device_type, device_id), element_type, shape, buffer_ptr)

    def bind_ortvalue_input(self, name, ortvalue):
        self.inputs[name] = self._bound(ortvalue)

    def bind_ortvalue_output(self, name, ortvalue):
        self.outputs[name] = self._bound(ortvalue)

    def synchronize_outputs(self):
        self.synchronized = True

    def _bound(self, value):
        self.kept.append(value)
        array = value.array
        return Bound(value.device, array.dtype.type, array.shape, array.ctypes.data)


class Session:
    def __init__(self, module, providers, options):
        self.module = module
        self.options = options
        self.provider_options = dict(providers)
        started = [name for name, _ in providers if name in module.starts]
        self._providers = [*started, *([] if CPU in started else [CPU])]
        self.fallback = True
        self.recorded = {}
        self.running = 0
        self.runs = []
        settings = self.provider_options.get(providers[0][0], {})
        flags = (settings.get("enable_cuda_graph"), settings.get("trt_cuda_graph_enable"))
        self.graphs = "1" in flags

    def get_providers(self):
        return self._providers

    def disable_fallback(self):
        self.fallback = False

    def get_provider_graph_assignment_info(self):
        wanted = self.options.entries.get("session.record_ep_graph_assignment_info") == "1"
        if not wanted:
            return []
        return [AssignedSubgraph(name, nodes) for name, nodes in self.module.placed.items()]

    def io_binding(self):
        return Binding(self)

    def run(self, output_names, input_feed, run_options=None):
        """Multiply uint8 by int8, as an x86 CPU does it with or without VNNI."""
        left, right = (input_feed[name].astype(np.int64) for name in "ab")
        products = left[:, :, None] * right[None]
        pairs = products[:, 0::2] + products[:, 1::2]
        if self.module.saturates:
            pairs = pairs.clip(-32768, 32767)
        return [pairs.sum(axis=1).astype(np.int32)]

    def run_with_iobinding(self, iobinding, run_options=None):
        assert iobinding.session is self, "bound to another session"
        iobinding.synchronized = False
        if self.module.failing:
            raise RuntimeError("CUDA failure 700:\nan illegal memory access was encountered")
        tensors = [*iobinding.inputs.values(), *iobinding.outputs.values()]
        if self.graphs:
            number = int((run_options.entries if run_options else {}).get("gpu_graph_id", "0"))
            assert number > 0, "0 is kept for ONNX Runtime itself"
            tensors = self.recorded.setdefault(number, tensors)
        self.runs.append(tensors)
        with self._alone(tensors):
            self._compute(*tensors)

    @contextmanager
    def _alone(self, tensors):
        with self.module.lock:
            assert not (self.graphs and self.running), "two runs while graphs are recorded"
            pointers = {tensor.pointer for tensor in tensors}
            assert not pointers & self.module.busy, "memory of another run"
            self.running += 1
            self.module.busy |= pointers
        try:
            self.module.meanwhile()
            yield
        finally:
            with self.module.lock:
                self.running -= 1
                self.module.busy -= pointers

    def _compute(self, images, anomaly_map, score):
        wanted = "cpu" if self._providers[0] == CPU else "cuda"
        assert {t.device[0] for t in (images, anomaly_map, score)} == {wanted}
        answer = FakeRuntime(self.module.spec).infer(images.array())
        anomaly_map.array()[...] = answer.anomaly_map
        score.array()[...] = answer.score


@dataclass
class Module:
    """The module. Attributes say how it behaves.

    Attributes:
        spec: Of the artifact that sessions run.
        available: Providers it was built with.
        starts: Providers whose libraries load.
        raises: Providers that refuse with an exception.
        tries_again: Whether it cannot be told not to try without them, as 1.20 cannot.
        placed: Where operators run.
        failing: Whether runs fail.
        saturates: Whether sums of uint8 by int8 stop at 16 bit.
        out_of_memory_at: Which of the values made on the GPU is refused.
        missing: What ``preload_dlls`` prints.
        meanwhile: Called in the middle of each run.
    """

    spec: object
    available: tuple[str, ...] = (TENSORRT, CUDA, CPU)
    starts: tuple[str, ...] = (TENSORRT, CUDA, CPU)
    raises: tuple[str, ...] = ()
    tries_again: bool = False
    placed: dict = field(default_factory=dict)
    failing: bool = False
    saturates: bool = False
    out_of_memory_at: int = 0
    missing: str = ""
    meanwhile: object = staticmethod(lambda: None)
    allocated: int = 0
    preloaded: int = 0
    __version__: str = "1.31.1"

    def __post_init__(self):
        self.lock = threading.Lock()
        self.busy = set()
        self.sessions = []
        self.SessionOptions = SessionOptions
        self.RunOptions = RunOptions
        self.OrtValue = self

    def get_available_providers(self):
        return list(self.available)

    def preload_dlls(self):
        self.preloaded += 1
        if self.missing:
            print(self.missing)

    def ortvalue_from_shape_and_type(self, shape, element_type, device_type="cpu", device_id=0):
        return Value(self, shape, element_type, device_type, device_id)

    def InferenceSession(self, path_or_bytes, sess_options=None, providers=None, **kwargs):
        refused = [name for name, _ in providers if name in self.raises]
        if refused:
            if not self.tries_again and not kwargs.get("enable_fallback", 1):
                raise RuntimeError(f"/src/a.cc:7 void f(A&, b&) {refused[0]}: install\nlibraries")
            others = [pair for pair in providers if pair[0] not in refused]
            providers = others or [(CPU, {})]
        self.sessions.append(Session(self, providers, sess_options))
        return self.sessions[-1]
