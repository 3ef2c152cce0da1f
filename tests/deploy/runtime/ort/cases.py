"""An artifact for the fake ONNX Runtime, and arrays on the fake GPU."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from destseg_deploy.device import Device
from destseg_deploy.options import OrtOptions
from destseg_deploy.runtime.cuda.memory import array_at
from destseg_deploy.runtime.ort import gpu_runtime
from destseg_deploy.runtime.ort.gpu_runtime import OrtGpuRuntime
from destseg_deploy.runtime.ort.runtime import OrtRuntime
from destseg_deploy.spec import FileRecord
from destseg_deploy.testing import FakeRuntime, fake_spec
from tests.fakes.device import FakeDevice
from tests.fakes.onnxruntime_module import CPU, CUDA, TENSORRT, AssignedNode, Module

NODES = tuple(AssignedNode(kind, f"{kind}_1") for kind in ("Cast", "Conv", "MatMul", "TopK"))
SHAPES = (AssignedNode("Shape", "Shape_1"), AssignedNode("Concat", "Concat_1"))
PLACED = {
    "cpu": {CPU: NODES + SHAPES},
    "cuda": {CUDA: NODES, CPU: SHAPES},
    "tensorrt": {TENSORRT: NODES[1:], CUDA: NODES[:1], CPU: SHAPES},
}
"""Where a sound session runs its operators."""


class OrtBench:
    """A fake ONNX Runtime, a fake GPU, and an artifact on disk."""

    def __init__(self, monkeypatch, folder, size=(16, 24), compiler=None, **changes):
        self.path = folder / "fake-fp32.onnx"
        self.path.write_bytes(b"no graph, the fake reads none")
        spec = fake_spec(*size)
        self.spec = replace(spec, artifact=FileRecord.of(self.path), **changes)
        self.spec.write(self.path)
        self.compiler = compiler
        self.module = Module(self.spec)
        self.fresh()
        monkeypatch.setitem(sys.modules, "onnxruntime", self.module)
        monkeypatch.setattr(gpu_runtime, "open_device", self._open_device)
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        self.opened = []

    def fresh(self):
        self.gpu = self.module.gpu = FakeDevice(compiler=self.compiler)

    def open(self, device="cuda", **options):
        """Open the artifact; device ``tensorrt`` stands for CUDA with the TensorRT provider."""
        kind = device.partition(":")[0]
        self.module.placed = self.module.placed or PLACED[kind]
        if kind == "cpu":
            return OrtRuntime(self.path, options=OrtOptions(**options))
        where = Device.parse(device.replace("tensorrt", "cuda"))
        return OrtGpuRuntime(self.path, where, OrtOptions(tensorrt=kind == "tensorrt", **options))

    def frames(self, count, seed=0):
        noise = np.random.default_rng(seed).integers(0, 256, (count, *self.spec.size, 3))
        return noise.astype(np.uint8)

    def wanted(self, frames):
        return FakeRuntime(self.spec).infer(frames)

    @property
    def session(self):
        return self.module.sessions[-1]

    def _open_device(self, device):
        self.opened.append(str(device))
        if self.gpu.closed:
            self.fresh()
        self.gpu.index = device.index
        return self.gpu


class OnGpu:
    """An array on the fake GPU with ``__cuda_array_interface__``."""

    def __init__(self, gpu, values, stream=None, read_only=False):
        self.memory = gpu.allocate(values.nbytes)
        self.values = array_at(self.memory.pointer, values.nbytes).view(values.dtype)
        self.values = self.values.reshape(values.shape)
        self.values[...] = values
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.memory.pointer, read_only),
            "strides": None,
            "stream": stream,
        }


def equal(found, expected):
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.score, expected.score)
