"""Tiny models and a machine with a GPU that is none, for tests of what builds engines."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from destseg_deploy.predictor import Predictor
from destseg_deploy.spec import BatchRange, FileRecord, ModelSpec, ParityRecord
from destseg_deploy.testing import FakeRuntime, fake_spec
from destseg_export import parity
from destseg_export.engine import comparison, refit
from destseg_export.engine import site as engine_site
from destseg_export.frames import Frames
from tests.fakes.device import FakeDevice
from tests.fakes.tensorrt_builder import Library

BATCH = BatchRange(1, 2, 4)
SIZE = 64


def tiny_graph(
    *, half: bool = False, seed: int = 0, channels: int = 4, weight: str = "b.weight",
    extra: str | None = None, name: str = "tiny",
) -> onnx.ModelProto:  # fmt: skip
    """A graph with the real one's inputs and outputs: cast, two convolutions, map and score."""
    rng, kind = np.random.default_rng(seed), np.float16 if half else np.float32
    typed = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    weights = {
        "a.weight": rng.uniform(0, 0.1, (channels, 3, 3, 3)).astype(kind),
        weight: rng.uniform(0, 0.1, (1, channels, 3, 3)).astype(kind),
        "axes": np.array([1, 2], np.int64),
        "channel": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "cast", to=typed),
        helper.make_node("Transpose", ["pixels"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "a.weight"], ["x"], "conv_a", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", weight], ["y"], "conv_b", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["y"], ["wide"], "widen", to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["wide", "channel"], ["anomaly_map"], "map"),
        helper.make_node("ReduceMean", ["anomaly_map", "axes"], ["score"], "score", keepdims=0),
    ]
    if extra is not None:
        nodes.append(helper.make_node(extra, ["anomaly_map"], ["where"], "find"))
    sides = [
        ("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3]),
        ("anomaly_map", TensorProto.FLOAT, ["batch", SIZE, SIZE]),
        ("score", TensorProto.FLOAT, ["batch"]),
    ]
    image, *answers = (helper.make_tensor_value_info(*side) for side in sides)
    constants = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, name, [image], answers, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_model(
    folder: Path, precision: str = "fp16", *, category: str = "cable",
    graph: onnx.ModelProto | None = None, **changes,
) -> Path:  # fmt: skip
    """Write a tiny model, its spec, and a file that stands for its checkpoint; return the model."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{category}-{precision}.onnx"
    onnx.save_model(graph or tiny_graph(half=precision == "fp16"), path)
    checkpoint = folder / f"{category}.safetensors"
    checkpoint.write_text(f"weights of {category}")
    spec = fake_spec(SIZE, SIZE)
    spec = replace(
        spec,
        input=replace(spec.input, batch=BATCH),
        kind="onnx",
        category=category,
        precision=precision,
        artifact=FileRecord.of(path),
        checkpoint=FileRecord.of(checkpoint),
        parity=ParityRecord(path.name, "images of x", 16, 1e-3, 2e-4, 0.5),
    )
    replace(spec, **changes).write(path)
    return path


class Off(FakeRuntime):
    """Answers that are off by a constant."""

    off = 0.1

    def infer(self, images):
        found = super().infer(images)
        return type(found)(np.clip(found.anomaly_map + self.off, 0, 1), found.score)


def frames(images, trained, size, tiles):
    """Stand for ``verification_frames``, whose rendered images take a second."""
    noise = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    return Frames(tuple(noise), "frames of noise")


class GpuMachine:
    """A GPU and a TensorRT, both fake; ``answers`` is the runtime that opens an engine."""

    def __init__(self, monkeypatch, device: FakeDevice | None = None, library=None):
        self.device = device or FakeDevice(sm="sm_90")
        self.library = library or Library(self.device)
        self.answers = FakeRuntime
        self.opened: list[tuple[Path, str]] = []
        for module in (engine_site, refit):
            monkeypatch.setattr(module, "open_device", self._open_device)
            monkeypatch.setattr(module, "load_library", lambda builder: self.library)
        monkeypatch.setattr(comparison, "load_checkpoint", self._load_checkpoint)
        monkeypatch.setattr(parity, "PyTorchRuntime", lambda model, spec: FakeRuntime(spec))
        monkeypatch.setattr(comparison, "verification_frames", frames)
        monkeypatch.setattr(comparison, "load", self._load)

    def _open_device(self, device: str) -> FakeDevice:
        self.device.closed = False
        return self.device

    @staticmethod
    def _load_checkpoint(path: Path) -> tuple[None, ModelSpec]:
        return None, fake_spec(SIZE, SIZE)

    def _load(self, path: Path, *, device: str) -> Predictor:
        spec = ModelSpec.read(path)
        spec.check_artifact(path)
        self.opened.append((path, device))
        return Predictor(self.answers(spec))


@contextmanager
def keeps_nothing(library: Library) -> Iterator[None]:
    """Make sure that a block's errors keep no object of a fake TensorRT, without the collector."""
    library.configs.clear()  # the fake's own list
    gc.collect()
    assert _alive() == []
    gc.disable()
    try:
        yield
        library.configs.clear()
        assert _alive() == []
    finally:
        gc.enable()


def _alive() -> list[str]:
    kinds = [type(one) for one in gc.get_objects()]
    return sorted(
        kind.__name__
        for kind in kinds
        if kind.__module__ == Library.__module__
        and kind.__name__ in ("Builder", "OnnxParser", "Runtime", "Engine")
    )
