"""A ``tensorrt`` module that builds without TensorRT: strict where the real one crashes or sulks.

It reads ONNX files with ``onnx``, keeps the types of their convolutions, wants the GPU's context
current wherever the real one works on the GPU, and refuses as the real one does: with None or
False, the reason in the log. An engine of it says what its inspector is to say.
"""

import enum
import json
import types

import onnx

from tests.fakes.device import FakeDevice

VERSION = "11.4.0.106"


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class DataType(enum.Enum):
    FLOAT = onnx.TensorProto.FLOAT
    HALF = onnx.TensorProto.FLOAT16
    BF16 = onnx.TensorProto.BFLOAT16


class LayerType(enum.Enum):
    CONVOLUTION = "Conv"
    DECONVOLUTION = "ConvTranspose"
    OTHER = "other"


class BuilderFlag(enum.Enum):
    TF32 = 0
    REFIT = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 1


class LayerInformationFormat(enum.Enum):
    JSON = 1


class SerializationFlag(enum.Enum):
    EXCLUDE_WEIGHTS = 0
    INCLUDE_REFIT = 2


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self):
        self.started = True


class IProgressMonitor:
    def __init__(self):
        self.started = True


def _plain(name, **values):
    """Return an object whose methods give these values, as pybind's getters do."""
    return types.SimpleNamespace(**{key: lambda value=v: value for key, v in values.items()})


class Library(types.ModuleType):
    """The module. ``device`` is where it builds; ``describe`` what an inspector says (TensorRT 11).

    Attributes:
        configs: Every config that was made.
        fail: Reason why the next build fails, or None.
        marks: Names of weights that a network knows; all of the file unless given.
    """

    def __init__(self, device: FakeDevice):
        super().__init__("tensorrt")
        self.__version__ = VERSION
        self.device = device
        self.configs, self.fail, self.refused = [], None, None
        self.layer_type, self.half_word = "CaskConvolution", "Half"
        self.engines, self.missing_weights, self.stays_refittable = 0, [], True
        for kind in (
            NetworkDefinitionCreationFlag, DataType, LayerType, BuilderFlag, MemoryPoolType,
            ProfilingVerbosity, LayerInformationFormat, SerializationFlag, ILogger,
            IProgressMonitor,
        ):  # fmt: skip
            setattr(self, kind.__name__, kind)

    def Builder(self, logger):
        return Builder(self, logger)

    def OnnxParser(self, network, logger):
        return OnnxParser(self, network)

    def Runtime(self, logger):
        return Runtime(self, logger)

    def Refitter(self, engine, logger):
        assert self.device.depth(), "the context is not current"
        return types.SimpleNamespace(
            engine=engine,
            get_missing_weights=lambda: self.missing_weights,
            refit_cuda_engine=lambda: True,
        )

    def OnnxParserRefitter(self, refitter, logger):
        def refit_from_bytes(content):
            refitter.engine.said["name"] = onnx.load_model_from_string(content).graph.name
            return not self.missing_weights

        return types.SimpleNamespace(refit_from_bytes=refit_from_bytes, num_errors=0)


class Builder:
    def __init__(self, library, logger):
        assert logger.started, "the logger was not initialised"
        assert library.device.depth(), "the context is not current"
        self.library, self.logger = library, logger

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return types.SimpleNamespace(layers=[], get_layer=None, num_layers=0)

    def create_builder_config(self):
        self.library.configs.append(Config(self))
        return self.library.configs[-1]

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        library = self.library
        assert library.device.depth(), "the context is not current"
        assert config.profiles, "a dynamic network needs a profile"
        assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
        monitor = config.progress_monitor
        assert monitor.started, "the monitor was not initialised"
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing", "Building engine", 4)
        go_on = all([monitor.step_complete("Timing", step) for step in range(4)])
        monitor.phase_finish("Timing")
        go_on = go_on and monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        if library.fail or not go_on:
            self.logger.log(ILogger.Severity.ERROR, library.fail or "stopped")
            return None
        config.timed = True
        types_of = [layer.get_input(0).dtype.name for layer in network.layers]
        kinds = [layer.type.name for layer in network.layers]
        said = {
            "convolutions": [t for t, k in zip(types_of, kinds, strict=True) if k == "CONVOLUTION"],
            "refit": BuilderFlag.REFIT in config.flags,
            "name": network.name,
        }
        return memoryview(b"fake " + json.dumps(said).encode())


class Profile:
    def set_shape(self, name, low, best, high):
        self.shapes = name, low, best, high


class Config:
    def __init__(self, builder):
        self.builder = builder
        self.flags, self.profiles, self.pools = {BuilderFlag.TF32}, [], {}
        self.progress_monitor = self.profiling_verbosity = self.cache = None
        self.timed = False

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_flag(self, flag):
        self.flags.add(flag)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def add_optimization_profile(self, profile):
        if self.builder.library.refused == "profile":
            self.builder.logger.log(ILogger.Severity.ERROR, "no such input")
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, content):
        return types.SimpleNamespace(content=content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache.content and not cache.content.startswith(b"timed here"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        entries = self.cache.content + (b"timed here " if self.timed else b"")
        return types.SimpleNamespace(serialize=lambda: memoryview(entries))


class OnnxParser:
    """Takes anything but an operator named NonZero."""

    def __init__(self, library, network):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]

    def parse_from_file(self, path):
        graph = onnx.load(path).graph
        dtypes = {tensor.name: tensor.data_type for tensor in graph.initializer}
        for index, node in enumerate(graph.node):
            if node.op_type == "NonZero":
                said = {"desc": "no plugin creator", "node": index, "node_name": node.name}
                self.errors.append(_plain("error", **said, node_operator=node.op_type))
                return False
            self.network.layers.append(self._layer(node, dtypes))
        self.network.name = graph.name
        self.network.num_layers = len(self.network.layers)
        self.network.get_layer = self.network.layers.__getitem__
        return True

    @staticmethod
    def _layer(node, dtypes):
        convolves = node.op_type == "Conv"
        dtype = DataType(dtypes[node.input[1]]) if convolves else DataType.FLOAT
        tensor = types.SimpleNamespace(dtype=dtype)
        kind = LayerType.CONVOLUTION if convolves else LayerType.OTHER
        return types.SimpleNamespace(type=kind, get_input=lambda index: tensor)


class Runtime:
    def __init__(self, library, logger):
        assert library.device.depth(), "the context is not current"
        self.library, self.logger = library, logger

    def deserialize_cuda_engine(self, content):
        if not content.startswith(b"fake ") or self.library.refused == "engine":
            self.logger.log(ILogger.Severity.ERROR, "magicTag is wrong")
            return None
        self.library.engines += 1
        return Engine(self.library, json.loads(content[5:]))


class Engine:
    def __init__(self, library, said):
        self.library, self.said = library, said

    @property
    def refittable(self):
        return self.said["refit"]

    def create_engine_inspector(self):
        return types.SimpleNamespace(get_engine_information=self._describe)

    def create_serialization_config(self):
        flags = set()
        return types.SimpleNamespace(flags=flags, set_flag=flags.add)

    def serialize_with_config(self, config):
        kept = SerializationFlag.INCLUDE_REFIT in config.flags and self.library.stays_refittable
        said = {**self.said, "refit": self.said["refit"] and kept}
        return memoryview(b"fake " + json.dumps(said).encode())

    def _describe(self, form):
        assert form is LayerInformationFormat.JSON
        words = {"HALF": self.library.half_word, "FLOAT": "Float", "BF16": "BFloat16"}
        layers = [
            {
                "Name": f"conv {index}",
                "LayerType": self.library.layer_type,
                "Inputs": [{"Name": "x", "Format": "Linear", "DataType": words[dtype]}],
            }
            for index, dtype in enumerate(self.said["convolutions"])
        ]
        return json.dumps({"Layers": layers, "I/O Tensors": []})
