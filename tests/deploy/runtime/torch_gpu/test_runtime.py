"""PyTorch's half network in the slots of a GPU: on fakes here, and on a GPU where there is one."""

from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from destseg_deploy.errors import BackendError, ParityError
from destseg_deploy.loading import load
from destseg_deploy.models import half
from destseg_deploy.models.fused import FusedDeSTSeg, PlainLayers
from destseg_deploy.models.half import to_half
from destseg_deploy.models.inference import served_graph
from destseg_deploy.options import TorchOptions
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.torch_gpu import runtime as torch_gpu_runtime
from destseg_deploy.runtime.torch_gpu.runtime import CudaPlace
from tests.deploy.runtime.ort.cases import OnGpu
from tests.fakes.device import FakeDevice

ROUNDING = 5e-5
"""The random network amplifies float32 rounding, which changes with the batch, up to this."""


@pytest.fixture(scope="module")
def expected(checkpoint, frames_of_module):
    """What the fused half network answers, run by itself."""
    from destseg_deploy.models.weights import load_checkpoint

    model, spec = load_checkpoint(checkpoint)
    fused = FusedDeSTSeg(to_half(model, "bf16"), PlainLayers(torch.bfloat16))
    graph = served_graph(fused, spec).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        answers = [graph(torch.from_numpy(frames_of_module[:n])) for n in (1, 2, 3)]
    return [Prediction(*(part.numpy() for part in answer)) for answer in answers]


@pytest.fixture(scope="module")
def frames_of_module():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("graph", [True, False])
def test_each_batch_is_recorded_once_and_replayed(
    bench, checkpoint, frames_of_module, expected, graph
):
    runtime = bench.open(checkpoint, cuda_graph=graph)
    for n in (3, 1, 3, 2, 3):
        found, wanted = runtime.infer(frames_of_module[:n]), expected[n - 1]
        np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, atol=1e-2)
        np.testing.assert_allclose(found.score, wanted.score, atol=1e-2)
    assert bench.place.recorded == (3 if graph else 0)
    assert [name for name, _ in bench.gpu.done].count("launch_graph") == (5 if graph else 0)
    runtime.close()
    assert not bench.gpu.live


def test_a_refused_recording_is_said_once_and_the_network_runs_plainly(
    bench, checkpoint, frames_of_module, expected, monkeypatch, caplog
):
    tried = []

    def refuse(stream, work):
        tried.append(stream)
        raise BackendError("operation not permitted when stream is capturing")

    monkeypatch.setattr(bench.place, "record", refuse)
    runtime = bench.open(checkpoint)
    with caplog.at_level("WARNING"):
        for n in (1, 1, 3, 1):
            found = runtime.infer(frames_of_module[:n])
            np.testing.assert_allclose(found.anomaly_map, expected[n - 1].anomaly_map, atol=1e-2)
    assert len(tried) == len(caplog.records) == 1
    assert "CUDA graphs are not used, which costs some latency: operation not" in caplog.text
    runtime.close()
    assert not bench.gpu.live


def test_a_recording_that_fails_leaves_the_thread_its_stream(monkeypatch):
    """torch.cuda.graph ends its capture first, and where that raises, keeps its stream current."""
    current = ["the thread's own"]

    class Recording:
        def __init__(self, graph, *, stream, capture_error_mode):
            self._stream = stream

        def __enter__(self):
            current[0] = self._stream

        def __exit__(self, *error):
            raise RuntimeError("CUDA error: operation failed\ndue to a previous error")

    @contextmanager
    def stream(one):
        before, current[0] = current[0], one
        try:
            yield
        finally:
            current[0] = before

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: handle)
    with pytest.raises(BackendError, match=r"\(CUDA error: operation failed due to a previous"):
        CudaPlace(0).record(FakeDevice().stream(), lambda: None)
    assert current == ["the thread's own"]


def test_the_spec_says_what_computes(bench, checkpoint):
    runtime = bench.open(checkpoint)
    assert runtime.spec.precision == "bf16"
    runtime.close()


def test_arrays_on_the_gpu_are_read_and_written_in_place(
    bench, checkpoint, frames_of_module, expected
):
    runtime = bench.open(checkpoint)
    images = OnGpu(bench.gpu, frames_of_module)
    maps = OnGpu(bench.gpu, np.zeros((3, 64, 64), np.float32))
    scores = OnGpu(bench.gpu, np.zeros(3, np.float32))
    runtime.infer_into(images, maps, scores)
    np.testing.assert_allclose(maps.values, expected[2].anomaly_map, atol=1e-2)
    np.testing.assert_allclose(scores.values, expected[2].score, atol=1e-2)
    for array in (images, maps, scores):
        array.memory.close()
    runtime.close()


def test_a_model_that_fails_the_gate_is_closed(bench, checkpoint, monkeypatch):
    def refuse(*runtimes):
        raise ParityError("far")

    monkeypatch.setattr(torch_gpu_runtime, "check_runtime", refuse)
    with pytest.raises(ParityError, match="far"):
        bench.open(checkpoint)
    assert not bench.gpu.live
    assert bench.gpu.closed


def test_half_is_gated_on_a_cpu_too(checkpoint, monkeypatch):
    """Rounded as a GPU rounds, the random network is far from float32, and is not opened."""
    with pytest.raises(ParityError, match=r"cable\.safetensors: bf16 differs from float32"):
        load(checkpoint, options=TorchOptions(precision="bf16"))


def test_a_benign_model_passes_the_gate_on_a_cpu(benign, category):
    options = TorchOptions(precision="fp16", verify_images=category / "test")
    with load(benign, options=options) as predictor:
        assert predictor.spec.precision == "fp16"
        assert predictor(np.zeros((1, 64, 64, 3), np.uint8)).score.dtype == np.float32


def test_a_broken_half_is_refused(benign, category, monkeypatch):
    """Negative control: a stem that is rounded to a few bits does not pass."""
    real = half.to_half

    def broken(model, precision):
        made = real(model, precision)
        made.teacher_net.encoder.conv1.weight.data *= 1.5
        return made

    monkeypatch.setattr("destseg_deploy.models.half.to_half", broken)
    with pytest.raises(ParityError, match="differs from float32"):
        load(benign, options=TorchOptions(precision="fp16", verify_images=category / "test"))


@pytest.mark.parametrize("name", ["cuda_graph", "verify_images"])
def test_options_of_half_are_refused_in_float32(name, tmp_path):
    value = {"cuda_graph": False, "verify_images": tmp_path}[name]
    with pytest.raises(BackendError, match=f"{name} .*it is for precision fp16 or bf16"):
        TorchOptions(**{name: value})


# ---------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [True, False])
def test_a_gpu_answers_in_half_as_in_float32(benign, category, frames_of_module, graph):
    options = TorchOptions(precision="fp16", cuda_graph=graph, verify_images=category / "test")
    with load(benign, device="cuda", options=options) as fast, load(benign) as plain:
        for n in (3, 1, 3, 2, 1):
            found, wanted = fast(frames_of_module[:n]), plain(frames_of_module[:n])
            np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, atol=1e-2)
            np.testing.assert_allclose(found.score, wanted.score, atol=5e-3)


@pytest.mark.gpu
def test_frames_on_the_gpu_are_scored_without_a_copy(benign, category, frames_of_module):
    """Twice, since arrays that come back get a graph of their own; as DLPack and as CUDA arrays."""
    options = TorchOptions(precision="fp16", verify_images=category / "test")
    with load(benign, device="cuda", options=options) as fast:
        runtime = fast.runtime
        wanted = runtime.infer(frames_of_module)
        images = torch.from_numpy(frames_of_module).cuda()
        maps, scores = torch.zeros(3, 64, 64, device="cuda"), torch.zeros(3, device="cuda")
        for _ in range(3):
            maps.zero_()
            runtime.infer_into(images, maps, scores)
            np.testing.assert_allclose(maps.cpu(), wanted.anomaly_map, atol=1e-3)
            np.testing.assert_allclose(scores.cpu(), wanted.score, atol=1e-3)
        cupy = pytest.importorskip("cupy")
        theirs = cupy.zeros((3, 64, 64), cupy.float32)
        runtime.infer_into(cupy.asarray(frames_of_module), theirs, cupy.zeros(3, cupy.float32))
        np.testing.assert_allclose(theirs.get(), wanted.anomaly_map, atol=1e-3)


@pytest.mark.gpu
def test_many_calls_take_no_more_memory(benign, category, frames_of_module):
    options = TorchOptions(precision="fp16", verify_images=category / "test")
    with load(benign, device="cuda", options=options) as fast:
        for _ in range(10):
            fast.runtime.infer(frames_of_module)
        before = torch.cuda.mem_get_info()[0]
        for _ in range(10_000):
            fast.runtime.infer(frames_of_module)
        assert torch.cuda.mem_get_info()[0] >= before - 2**20
