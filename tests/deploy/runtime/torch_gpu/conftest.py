"""The runtime of PyTorch's half network on fakes, and a model that half holds."""

import copy

import pytest

pytest.importorskip("torch")

from destseg_deploy.models.weights import load_checkpoint, save_checkpoint
from destseg_deploy.options import TorchOptions
from destseg_deploy.runtime.torch_gpu import runtime as torch_gpu_runtime
from destseg_deploy.runtime.torch_gpu.runtime import PyTorchGpuRuntime
from destseg_deploy.runtime.torch_runtime import PyTorchRuntime
from tests.fakes.device import FakeDevice
from tests.fakes.torch_place import HostPlace


class Bench:
    """Opens the runtime on a fake GPU; bf16 is what a CPU computes without emulation."""

    def __init__(self, monkeypatch):
        self.gpu, self.place = FakeDevice(), HostPlace()
        monkeypatch.setattr(torch_gpu_runtime, "open_device", lambda device, binding: self.gpu)
        monkeypatch.setattr(torch_gpu_runtime, "CudaPlace", lambda index: self.place)
        monkeypatch.setattr(
            torch_gpu_runtime,
            "PyTorchRuntime",
            lambda model, spec, device: PyTorchRuntime(model, spec),
        )
        # Of the gate test_parity.py tells; the random network of these tests amplifies rounding.
        monkeypatch.setattr(torch_gpu_runtime, "check_runtime", lambda *_: None)

    def open(self, checkpoint, **options):
        return PyTorchGpuRuntime(checkpoint, options=TorchOptions(precision="bf16", **options))


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


@pytest.fixture(scope="session")
def benign_model(model):
    """A model that amplifies rounding little: its last convolution is a fiftieth as large."""
    small = copy.deepcopy(model)
    small.segmentation_net.head[4].weight.data *= 0.02
    return small


@pytest.fixture(scope="module")
def benign(benign_model, checkpoint, tmp_path_factory):
    """The same on disk."""
    path = tmp_path_factory.mktemp("benign") / "cable.safetensors"
    save_checkpoint(benign_model, load_checkpoint(checkpoint)[1], path)
    return path
