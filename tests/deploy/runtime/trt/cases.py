"""A fake GPU with a fake TensorRT and engines on disk, for the tests of ``TrtRuntime``."""

import sys

import numpy as np

from destseg_deploy.device import CUDA
from destseg_deploy.options import TensorRtOptions
from destseg_deploy.runtime.trt import runtime as trt
from destseg_deploy.runtime.trt.runtime import TrtRuntime
from tests.fakes.device import FakeDevice
from tests.fakes.tensorrt_module import Library, brightness, write_engine


class Bench:
    """A fake GPU, a fake TensorRT for it, and engines on disk."""

    def __init__(self, monkeypatch, folder):
        self.monkeypatch = monkeypatch
        self.folder = folder
        self.fresh()

    def fresh(self, compiler=None, **options):
        self.gpu = FakeDevice(compiler=compiler)
        self.library = Library(self.gpu, **options)
        self.monkeypatch.setitem(sys.modules, self.library.__name__, self.library)
        self.monkeypatch.setattr(trt, "open_device", lambda name, *, binding: self.gpu)

    def open(self, path=None, device=CUDA, **options):
        return TrtRuntime(path or write_engine(self.folder), device, TensorRtOptions(**options))

    def names(self, start=0):
        """Return what was queued or waited for, by stream."""
        wanted = {"copy_in", "execute", "copy_out", "launch_graph", "synchronize"}
        return [call for call in self.gpu.calls[start:] if call[0] in wanted]

    def nothing_lives(self):
        """Whether all is freed, without the help of the garbage collector, which frees anywhere."""
        assert not self.library.orphans, "freed while no context was current"
        return not self.gpu.live and not self.library.live


def frames_of(count, seed=0, size=(64, 64)):
    """Return uint8 frames of different brightness."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, *size, 3))
    dim = np.linspace(0.2, 1, count)[:, None, None, None]
    return (noise * dim).astype(np.uint8)


def wanted(frames, gain=1.0):
    """Return the right answers."""
    return brightness(frames, frames.shape[1:3], 4, gain)


def equal(found, expected):
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.score, expected.score)
