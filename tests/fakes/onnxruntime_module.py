"""An ``onnxruntime`` module with GPUs, without ONNX Runtime: strict where the real one is silent.

It offers only what the runtimes use; ``test_fake.py`` checks each name and parameter against the
real module. Its graph computes what ``FakeRuntime`` does. On a GPU, a run is queued on the stream
that the session was opened with, and waited for unless the run options say no. A CUDA graph is
replayed as a GPU does it: at the addresses of the run that recorded it, whatever is bound later.
Runs of a session on a GPU must not overlap, because they share a stream.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from destseg_deploy.runtime.cuda.memory import array_at
from destseg_deploy.testing import FakeRuntime

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


@dataclass(frozen=True)
class Bound:
    device: tuple[str, int]
    dtype: type
    shape: tuple[int, ...]
    pointer: int

    @property
    def size(self):
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def array(self):
        return array_at(self.pointer, self.size).view(self.dtype).reshape(self.shape)


class Binding:
    def __init__(self, session):
        self.session = session
        self.inputs = {}
        self.outputs = {}

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        self.inputs[name] = Bound((device_type, device_id), element_type, shape, buffer_ptr)

    def bind_output(
        self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None
    ):
        self.outputs[name] = Bound((device_type, device_id), element_type, shape, buffer_ptr)


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
        streams = {o.get("user_compute_stream") for o in self.provider_options.values()}
        assert len(streams) == 1, "the providers of a session share its stream"
        self.stream = module.gpu and streams != {None} and module.gpu.stream_of(int(*streams))
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
        if self.module.failing:
            raise RuntimeError("CUDA failure 700:\nan illegal memory access was encountered")
        entries = run_options.entries if run_options else {}
        tensors = [*iobinding.inputs.values(), *iobinding.outputs.values()]
        if self.graphs:
            number = int(entries.get("gpu_graph_id", "0"))
            assert number != 0, "0 is kept for ONNX Runtime itself"
            tensors = self.recorded.setdefault(number, tensors) if number > 0 else tensors
        self.runs.append(tensors)
        if self._providers[0] == CPU:
            self._compute(*tensors)
            return
        with self._alone():
            for tensor in tensors:
                self.module.gpu.check_address(tensor.pointer, tensor.size)
            self.stream.queue("run", lambda: self._compute(*tensors))
            if entries.get("disable_synchronize_execution_providers") != "1":
                self.stream.synchronize()

    @contextmanager
    def _alone(self):
        with self.module.lock:
            assert not self.running, "two runs on one stream"
            self.running += 1
        try:
            self.module.meanwhile()
            yield
        finally:
            self.running -= 1

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
        gpu: The ``FakeDevice`` that sessions on a GPU use.
        available: Providers it was built with.
        starts: Providers whose libraries load.
        raises: Providers that refuse with an exception.
        tries_again: Whether it cannot be told not to try without them, as 1.20 cannot.
        placed: Where operators run.
        failing: Whether runs fail.
        saturates: Whether sums of uint8 by int8 stop at 16 bit.
        missing: What ``preload_dlls`` prints.
        meanwhile: Called in the middle of each run.
    """

    spec: object
    gpu: object = None
    available: tuple[str, ...] = (TENSORRT, CUDA, CPU)
    starts: tuple[str, ...] = (TENSORRT, CUDA, CPU)
    raises: tuple[str, ...] = ()
    tries_again: bool = False
    placed: dict = field(default_factory=dict)
    failing: bool = False
    saturates: bool = False
    missing: str = ""
    meanwhile: object = staticmethod(lambda: None)
    preloaded: int = 0
    __version__: str = "1.31.1"

    def __post_init__(self):
        self.lock = threading.Lock()
        self.sessions = []
        self.folders = []
        self.SessionOptions = SessionOptions
        self.RunOptions = RunOptions

    def get_available_providers(self):
        return list(self.available)

    def preload_dlls(self, directory=None):
        if directory is not None:
            self.folders.append(directory)
            return
        self.preloaded += 1
        if self.missing:
            print(self.missing)

    def InferenceSession(self, path_or_bytes, sess_options=None, providers=None, **kwargs):
        refused = [name for name, _ in providers if name in self.raises]
        if refused:
            if not self.tries_again and not kwargs.get("enable_fallback", 1):
                raise RuntimeError(f"/src/a.cc:7 void f(A&, b&) {refused[0]}: install\nlibraries")
            others = [pair for pair in providers if pair[0] not in refused]
            providers = others or [(CPU, {})]
        self.sessions.append(Session(self, providers, sess_options))
        return self.sessions[-1]
