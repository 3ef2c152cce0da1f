"""A ``tensorrt`` module without TensorRT, on a ``FakeDevice``: strict where the real one crashes.

It holds callers to what NVIDIA's documentation asks: the context current in the calling thread, a
profile before shapes, shapes within the profile, addresses of living memory aligned to 256, memory
for the scratch, no change to a context whose work was recorded in a graph. As in the real one, a
refusal is None or False with the reason in the log, and work is done when the stream is waited for.

Its engines compute what ``FakeRuntime`` does, brightness, times a weight ``gain``.
"""

from __future__ import annotations

import enum
import json
import types
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np

from destseg_deploy.data.resize import resize_plane
from destseg_deploy.errors import BackendError
from destseg_deploy.evaluation.metrics import top_k_mean
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.cuda.memory import array_at
from destseg_deploy.spec import BatchRange, EngineRecord, FileRecord, ModelSpec
from destseg_deploy.testing import fake_spec
from destseg_deploy.thresholds import by_hand
from tests.fakes.device import FakeDevice

ENGINE, ONNX = b"fake engine ", b"fake onnx "
SCRATCH = 1000
VERSION = "11.4.0.106"


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def __init__(self):
        self.started = True

    def log(self, severity, msg):
        raise NotImplementedError


class RuntimeConfig:
    """``IRuntimeConfig`` of TensorRT; ``RtxConfig`` is RTX's, which has one thing more."""

    __slots__ = ("strategy",)

    def __init__(self):
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy):
        assert isinstance(strategy, ExecutionContextAllocationStrategy)
        self.strategy = strategy


class RtxConfig(RuntimeConfig):
    __slots__ = ("cuda_graph_strategy",)

    def __init__(self):
        super().__init__()
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED


class Library(types.ModuleType):
    """The module, and what it knows of its objects.

    Attributes:
        live: Runtimes, engines and contexts that are alive.
        made: Every context that was made, as its configuration.
        orphans: What died while no context of CUDA was current, and so may have freed memory of
            another GPU.
    """

    def __init__(self, gpu: FakeDevice, *, rtx: bool = False, configs: bool = True):
        super().__init__("tensorrt_rtx" if rtx else "tensorrt")
        self.gpu = gpu
        self.rtx = rtx
        self.configs = configs or rtx
        self.live = weakref.WeakSet()
        self.made = []
        self.orphans = []
        self.__version__ = VERSION
        self.ILogger = ILogger
        self.DataType = DataType
        self.TensorIOMode = TensorIOMode
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        if rtx:
            self.CudaGraphStrategy = CudaGraphStrategy

    def Runtime(self, logger):
        return Runtime(self, logger)

    def fails(self, name, logger):
        """Whether a call was told to fail; the log says so, as the real one does."""
        assert self.gpu.depth() > 0, f"{name} without a current context"
        assert logger.started, "ILogger.__init__ was not called"
        try:
            self.gpu.note(name)
        except BackendError:
            logger.log(Severity.ERROR, f"[fake] {name} failed\n")
            logger.log(Severity.INFO, "not an error")
            return True
        return False

    def queue(self, handle, name, do):
        """Queue work on a stream; whether it was taken."""
        try:
            self.gpu.stream_of(handle).queue(name, do)
        except BackendError:
            return False
        return True


class Owned:
    """What frees memory of the GPU when it dies."""

    def __del__(self):
        if hasattr(self, "library") and self.library.gpu.depth() == 0:
            self.library.orphans.append(type(self).__name__)


class Runtime(Owned):
    def __init__(self, library, logger):
        if library.fails("Runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.library, self.logger = library, logger
        library.live.add(self)

    def deserialize_cuda_engine(self, serialized_engine):
        if self.library.fails("deserialize_cuda_engine", self.logger):
            return None
        assert isinstance(serialized_engine, bytes)
        try:
            assert serialized_engine.startswith(ENGINE)
            content = json.loads(serialized_engine[len(ENGINE) :])
        except (AssertionError, ValueError):
            self.logger.log(Severity.ERROR, "Magic tag does not match")
            return None
        return Engine(self, content)


class Engine(Owned):
    def __init__(self, runtime, content):
        self.runtime, self.library, self.logger = runtime, runtime.library, runtime.logger
        self.content = content
        self.weights = dict(content["weights"])
        self.refittable = content["refittable"]
        self.device_memory_size_v2 = content["scratch"]
        self.num_optimization_profiles = len(content["profiles"])
        self.num_io_tensors = len(content["tensors"])
        if self.library.configs:
            self.create_runtime_config = RtxConfig if self.library.rtx else RuntimeConfig
        self.library.live.add(self)

    def get_tensor_name(self, index):
        return list(self.content["tensors"])[index]

    def get_tensor_mode(self, name):
        return TensorIOMode[self.content["tensors"][name]["mode"]]

    def get_tensor_dtype(self, name):
        return DataType[self.content["tensors"][name]["dtype"]]

    def get_tensor_shape(self, name):
        return tuple(self.content["tensors"][name]["shape"])

    def get_tensor_profile_shape(self, name, index):
        assert self.get_tensor_mode(name) is TensorIOMode.INPUT
        sizes = self.get_tensor_shape(name)[1:]
        return [(batch, *sizes) for batch in self.content["profiles"][index]]

    @property
    def input_name(self):
        tensors = self.content["tensors"]
        return next(name for name in tensors if tensors[name]["mode"] == "INPUT")

    def bytes_of(self, name, batch):
        itemsize = {DataType.UINT8: 1, DataType.FLOAT: 4, DataType.HALF: 2}
        size = int(np.prod(self.get_tensor_shape(name)[1:]))
        return batch * size * itemsize[self.get_tensor_dtype(name)]

    def compute(self, addresses, batch):
        """Read the input and write the outputs, where they lie."""
        image, maps, score = self.content["tensors"]
        for name in addresses:
            self.library.gpu.check_address(addresses[name], self.bytes_of(name, batch))
        pixels = array_at(addresses[image], self.bytes_of(image, batch))
        pixels = pixels.reshape(batch, *self.get_tensor_shape(image)[1:])
        answer = brightness(
            pixels, self.get_tensor_shape(maps)[1:], self.content["top_k"], self.weights["gain"]
        )
        for name, values in ((maps, answer.anomaly_map), (score, answer.score)):
            target = array_at(addresses[name], self.bytes_of(name, batch))
            target[:] = np.frombuffer(values.tobytes(), np.uint8)

    def create_execution_context(self, how=ExecutionContextAllocationStrategy.STATIC):
        if self.library.fails("create_execution_context", self.logger):
            return None
        config = isinstance(how, RuntimeConfig)
        assert config or isinstance(how, ExecutionContextAllocationStrategy)
        self.library.made.append(how)
        return Context(self, how.strategy if config else how)


class Context(Owned):
    def __init__(self, engine, strategy):
        self.engine, self.library, self.logger = engine, engine.library, engine.logger
        self.managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self.scratch = None
        self.profile = None
        self.shapes = {}
        self.addresses = {}
        self.version = 0
        self.library.live.add(self)

    def set_device_memory(self, memory, size):
        assert self.managed, "the context has memory of its own"
        assert memory % 256 == 0
        assert size >= self.engine.device_memory_size_v2
        self.library.gpu.check_address(memory, size)
        self.scratch = memory, size
        self.version += 1

    def set_optimization_profile_async(self, profile_index, stream_handle):
        if self.library.fails("set_optimization_profile_async", self.logger):
            return False
        assert 0 <= profile_index < self.engine.num_optimization_profiles
        if not self.library.queue(stream_handle, "profile", lambda: None):
            return False
        self.profile = profile_index
        self.shapes = {}
        self.version += 1
        return True

    def set_input_shape(self, name, shape):
        if self.library.fails("set_input_shape", self.logger):
            return False
        assert self.profile is not None, "a shape before a profile"
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            self.logger.log(Severity.ERROR, f"{name}: {shape} is not between {low} and {high}")
            return False
        self.shapes[name] = tuple(shape)
        self.version += 1
        return True

    def set_tensor_address(self, name, memory):
        if self.library.fails("set_tensor_address", self.logger):
            return False
        assert isinstance(memory, int)
        assert memory % 256 == 0
        if name not in self.engine.content["tensors"]:
            self.logger.log(Severity.ERROR, f"no tensor {name}")
            return False
        self.addresses[name] = memory
        self.version += 1
        return True

    def infer_shapes(self):
        tensors = range(self.engine.num_io_tensors)
        names = [self.engine.get_tensor_name(index) for index in tensors]
        inputs = [n for n in names if self.engine.get_tensor_mode(n) is TensorIOMode.INPUT]
        return [name for name in inputs if name not in self.shapes]

    def execute_async_v3(self, stream_handle):
        if self.library.fails("execute_async_v3", self.logger):
            return False
        gpu, engine = self.library.gpu, self.engine
        assert self.scratch or not self.managed, "no memory for the scratch"
        assert not self.infer_shapes(), "a shape is missing"
        assert self.addresses.keys() == engine.content["tensors"].keys(), "an address is missing"
        batch, version, alive = self.shapes[engine.input_name][0], self.version, weakref.ref(self)
        for name, address in self.addresses.items():
            gpu.check_address(address, engine.bytes_of(name, batch))

        def do():
            context = alive()
            assert context is not None, "the context of queued or recorded work is gone"
            assert context.version == version, "the context changed after its work was recorded"
            if context.managed:
                gpu.check_address(*context.scratch)
            context.engine.compute(context.addresses, batch)

        return self.library.queue(stream_handle, "execute", do)


def brightness(pixels, map_size, top_k, gain):
    """Return what an engine answers: the red channel times its weight, at the map's size."""
    red = pixels[..., 0].astype(np.float32) / np.float32(255) * np.float32(gain)
    maps = np.stack([resize_plane(plane, tuple(map_size)) for plane in red])
    return Prediction(maps, top_k_mean(maps, top_k))


def engine_spec(size=(64, 64), batch=(1, 2, 4), **changes):
    """Return the spec of a fake engine for the fake GPU, without a file yet."""
    spec = fake_spec(*size)
    record = EngineRecord(
        key="0" * 64,
        builder=changes.pop("builder", "tensorrt"),
        version=changes.pop("version", VERSION),
        gpu=changes.pop("gpu", "NVIDIA Fake GPU"),
        targets=changes.pop("targets", ("sm_90",)),
        onnx="fake.onnx",
        onnx_sha256="0" * 64,
        flags=(),
        convolutions=1,
        half_convolutions=0,
        precision_source="network",
        build_seconds=0.1,
    )
    given = replace(spec.input, batch=BatchRange(*batch))
    spec = replace(spec, kind="engine", input=given, engine=record)
    return replace(spec, threshold=by_hand(0.5), **changes)


def write_engine(folder, spec=None, *, gain=1.0, refittable=True, name="fake", **content) -> Path:
    """Write a fake engine and its spec.

    Args:
        content: Entries of the engine that are to differ from its spec.
    """
    spec = spec or engine_spec()
    path = folder / f"{name}.engine"
    output = spec.output
    tensors = {
        spec.input.name: {"mode": "INPUT", "dtype": "UINT8", "shape": [-1, *spec.size, 3]},
        output.map_name: {"mode": "OUTPUT", "dtype": "FLOAT", "shape": [-1, *spec.map_size]},
        output.score_name: {"mode": "OUTPUT", "dtype": "FLOAT", "shape": [-1]},
    }
    batch = spec.input.batch
    engine = {
        "tensors": tensors,
        "profiles": [[batch.min, batch.opt, batch.max]],
        "scratch": SCRATCH,
        "top_k": output.top_k,
        "weights": {"gain": gain},
        "refittable": refittable,
        **content,
    }
    path.write_bytes(ENGINE + json.dumps(engine).encode())
    replace(spec, artifact=FileRecord.of(path)).write(path)
    return path


def write_onnx(folder, *, gain=0.5, name="other", weights=None, **changes) -> Path:
    """Write what stands for an ONNX file with other weights, and its spec."""
    path = folder / f"{name}.onnx"
    path.write_bytes(ONNX + json.dumps(weights or {"gain": gain}).encode())
    engine = engine_spec()
    spec = replace(engine, kind="onnx", engine=None, category=name, threshold=by_hand(0.25))
    spec: ModelSpec = replace(spec, **{"artifact": FileRecord.of(path), **changes})
    spec.write(path)
    return path
