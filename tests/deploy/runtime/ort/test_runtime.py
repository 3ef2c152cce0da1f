"""ONNX Runtime itself, on the CPU, and on a GPU where there is one."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.options import OrtOptions
from destseg_deploy.runtime.ort.gpu_runtime import OrtGpuRuntime
from destseg_deploy.runtime.ort.providers import CPU, CUDA, TENSORRT
from destseg_deploy.runtime.ort.runtime import OrtRuntime
from destseg_deploy.runtime.ort.session import placed_nodes
from destseg_deploy.spec import FileRecord, ModelSpec

ort = pytest.importorskip("onnxruntime")

ROUNDING = 5e-5
"""The random network amplifies float32 rounding up to this."""


@pytest.fixture(scope="module")
def runtime(onnx_artifact):
    opened = OrtRuntime(onnx_artifact)
    yield opened
    opened.close()


def test_bound_memory_gives_the_bits_of_a_plain_run(runtime, onnx_artifact, frames):
    session = ort.InferenceSession(str(onnx_artifact), providers=[CPU])
    for batch in (frames, frames[:1], frames[::-1]):
        anomaly_map, score = session.run(
            ["anomaly_map", "score"], {"image": np.ascontiguousarray(batch)}
        )
        found = runtime.infer(batch)
        np.testing.assert_array_equal(found.anomaly_map, anomaly_map)
        np.testing.assert_array_equal(found.score, score)
        assert np.ptp(found.anomaly_map) > 0.1


def test_the_input_is_not_changed(runtime, frames):
    before = frames.copy()
    runtime.infer(frames)
    np.testing.assert_array_equal(frames, before)


def test_threads_at_once_get_their_own_answers(runtime, frames):
    alone = [runtime.infer(frame[None]) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: runtime.infer(frames[i % 3][None]), range(12)))
    for i, answer in enumerate(found):
        np.testing.assert_array_equal(answer.anomaly_map, alone[i % 3].anomaly_map)


def test_the_number_of_threads_is_passed_on(onnx_artifact, frames):
    opened = OrtRuntime(onnx_artifact, options=OrtOptions(threads=1))
    assert opened._session.get_session_options().intra_op_num_threads == 1
    assert opened.infer(frames).score.shape == (3,)
    opened.close()


def test_where_each_operator_runs_is_known(runtime):
    nodes = placed_nodes(runtime._session)
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        assert nodes is None
        return
    assert {node.provider for node in nodes} == {CPU}
    assert len(nodes) > 66, "the network has 66 convolutions"


def test_only_the_cpu_is_used_and_nothing_tries_again(runtime):
    assert runtime._session.get_providers() == [CPU]
    assert runtime._session._enable_fallback is False


def test_outputs_of_other_shapes_are_an_error(onnx_artifact, tmp_path, frames, capfd):
    """The spec fits the file by its hash, but says the map is larger than the graph's is."""
    onnx = pytest.importorskip("onnx")
    path = tmp_path / onnx_artifact.name
    model = onnx.load(onnx_artifact)
    del model.metadata_props[:]  # which would contradict it
    onnx.save_model(model, path)
    spec = replace(ModelSpec.read(onnx_artifact), artifact=FileRecord.of(path))
    replace(spec, output=replace(spec.output, height=65)).write(path)
    opened = OrtRuntime(path)
    with pytest.raises(BackendError, match=r"failed on device 'cpu' \(.*Got: 65 Expected: 64"):
        opened.infer(frames)
    opened.close()
    capfd.readouterr()  # ONNX Runtime logs it, too


def test_options_for_another_device_are_refused(onnx_artifact):
    with pytest.raises(BackendError, match="cuda_graph: an option for device 'cuda'"):
        OrtRuntime(onnx_artifact, options=OrtOptions(cuda_graph=True))


@pytest.mark.parametrize(("index", "tensorrt", "provider"), [(1, False, CUDA), (0, True, TENSORRT)])
def test_a_provider_that_is_not_built_in_is_named(
    onnx_artifact, monkeypatch, index, tensorrt, provider
):
    if provider in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.chdir(onnx_artifact.parent)
    with pytest.raises(BackendError, match=f"has no {provider}, only .*Install onnxruntime-gpu"):
        OrtGpuRuntime(onnx_artifact, Device("cuda", index), OrtOptions(tensorrt=tensorrt))


def test_a_missing_file_is_refused(onnx_artifact, tmp_path):
    ModelSpec.read(onnx_artifact).write(tmp_path / "gone.onnx")
    with pytest.raises(BackendError, match="no such file"):
        OrtRuntime(tmp_path / "gone.onnx")


def test_without_onnxruntime_it_says_what_to_install(onnx_artifact, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'destseg-deploy\[onnxruntime\]'"):
        OrtRuntime(onnx_artifact)


# ---------------------------------------------------------------------------- on a GPU


def _open_on_gpu(path, device, folder, **options):
    provider = {"cuda": CUDA, "tensorrt": TENSORRT}[device]
    if provider not in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {provider}; pip install onnxruntime-gpu")
    if device == "tensorrt":
        if os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
            pytest.skip("set NVIDIA_TF32_OVERRIDE=0 to test TensorRT")
        options |= {"tensorrt": True, "cache": folder}
    return OrtGpuRuntime(path, options=OrtOptions(**options))


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_answers_as_the_cpu_does(onnx_artifact, runtime, frames, tmp_path, device, graph):
    opened = _open_on_gpu(onnx_artifact, device, tmp_path, cuda_graph=graph)
    for batch in (frames, frames[:1], frames[::-1], frames[:2], frames):
        found, wanted = opened.infer(batch), runtime.infer(batch)
        np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, atol=1e-3)
        np.testing.assert_allclose(found.score, wanted.score, atol=1e-3)
    opened.close()


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_arrays_on_the_gpu_are_read_and_written_in_place(
    onnx_artifact, runtime, frames, tmp_path, device
):
    torch = pytest.importorskip("torch")
    opened = _open_on_gpu(onnx_artifact, device, tmp_path)
    images = torch.from_numpy(frames).cuda()
    anomaly_map = torch.zeros((3, *opened.spec.map_size), device="cuda")
    score = torch.zeros(3, device="cuda")
    opened.infer_into(images, anomaly_map, score)
    wanted = runtime.infer(frames)
    np.testing.assert_allclose(anomaly_map.cpu(), wanted.anomaly_map, atol=1e-3)
    np.testing.assert_allclose(score.cpu(), wanted.score, atol=1e-3)
    with pytest.raises(ShapeError, match="batch of 5"):
        opened.infer_into(images.repeat(2, 1, 1, 1)[:5].contiguous(), anomaly_map, score)
    opened.close()
