"""What ONNX Runtime is asked for."""

from dataclasses import replace
from pathlib import Path

import pytest

from destseg_deploy.device import CPU as ON_CPU
from destseg_deploy.device import CUDA as ON_CUDA
from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError
from destseg_deploy.options import OrtOptions
from destseg_deploy.runtime.ort.providers import (
    CPU,
    CUDA,
    TENSORRT,
    check_tf32,
    engine_cache,
    provider_options,
)
from destseg_deploy.spec import BatchRange, InputSpec
from destseg_deploy.testing import fake_spec

SPEC = replace(fake_spec(256, 320), input=InputSpec(256, 320, BatchRange(1, 4, 8)))
RESIZING = replace(SPEC, input=InputSpec(1024, 1280, BatchRange(1, 1, 2)))
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}


def test_the_cpu_takes_no_options():
    assert provider_options(ON_CPU, SPEC, OrtOptions()) == [(CPU, {})]


@pytest.mark.parametrize("given", ["cuda_graph", "tf32", "prefer_nhwc", None])
def test_cuda_is_told_its_index_and_options(given):
    options = OrtOptions(**{given: True}) if given else OrtOptions()
    names = {"use_tf32": "tf32", "enable_cuda_graph": "cuda_graph", "prefer_nhwc": "prefer_nhwc"}
    wanted = {"device_id": "2", **{theirs: "01"[ours == given] for theirs, ours in names.items()}}
    assert provider_options(Device("cuda", 2), SPEC, options) == [(CUDA, wanted)]


def test_tensorrt_is_told_profile_and_cache_and_leaves_the_rest_to_cuda():
    options = OrtOptions(cuda_graph=True, tensorrt=True)
    providers = provider_options(Device("cuda", 1), SPEC, options, Path("/engines"))
    (first, tensorrt), (second, cuda) = providers
    assert (first, second) == (TENSORRT, CUDA)
    assert tensorrt == {
        "device_id": "1",
        "trt_cuda_graph_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/engines",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/engines",
        "trt_profile_min_shapes": "image:1x256x320x3",
        "trt_profile_opt_shapes": "image:4x256x320x3",
        "trt_profile_max_shapes": "image:8x256x320x3",
    }
    assert cuda == {"device_id": "1", "use_tf32": "0"}, "the graph is TensorRT's"


def test_precision_is_left_to_the_graph():
    """With these off, ONNX Runtime's networks for TensorRT are strongly typed."""
    for _, settings in provider_options(ON_CUDA, SPEC, OrtOptions(tensorrt=True), Path("/e")):
        assert not {"trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"} & settings.keys()


@pytest.mark.parametrize("tensorrt", [False, True])
def test_tf32_is_refused_where_the_graph_resizes(tensorrt):
    rounded = OrtOptions(tf32=True, tensorrt=tensorrt)
    with pytest.raises(BackendError, match="1280x1024 frames by matrix products that need all"):
        check_tf32(RESIZING, rounded, {})
    check_tf32(SPEC, rounded, {})
    check_tf32(RESIZING, OrtOptions(tensorrt=tensorrt), EXACT)


@pytest.mark.parametrize("environment", [{}, {"NVIDIA_TF32_OVERRIDE": "1"}])
def test_tensorrt_with_tf32_unasked_is_refused(environment):
    with pytest.raises(BackendError, match="Set NVIDIA_TF32_OVERRIDE=0 before"):
        check_tf32(SPEC, OrtOptions(tensorrt=True), environment)
    check_tf32(SPEC, OrtOptions(tensorrt=True), EXACT)
    check_tf32(SPEC, OrtOptions(), environment)


def test_engines_are_kept_apart_by_what_changes_them(tmp_path):
    path = tmp_path / "cable-fp32.onnx"
    other = replace(SPEC, artifact=replace(SPEC.artifact, sha256="ab" * 32))
    folders = [
        engine_cache(path, SPEC, OrtOptions(), "1.31.1"),
        engine_cache(path, other, OrtOptions(), "1.31.1"),
        engine_cache(path, SPEC, OrtOptions(tf32=True), "1.31.1"),
        engine_cache(path, SPEC, OrtOptions(), "1.32.0"),
    ]
    assert len(set(folders)) == 4
    assert all(folder.parent == tmp_path / ".trt-cache" for folder in folders)
    assert folders[1].name == "abababababab-ort1.31.1"
    assert all(folder.is_dir() and not list(folder.iterdir()) for folder in folders)
    assert engine_cache(path, SPEC, OrtOptions(), "1.31.1") == folders[0]


def test_the_cache_may_lie_elsewhere(tmp_path):
    options = OrtOptions(tensorrt=True, cache=tmp_path / "engines")
    folder = engine_cache(tmp_path / "a.onnx", SPEC, options, "1")
    assert folder.parent == tmp_path / "engines"
    assert folder.is_absolute()


def test_a_cache_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    options = OrtOptions(tensorrt=True, cache=tmp_path / "file")
    with pytest.raises(BackendError, match=r"cannot be kept there \(Not a directory\).*cache="):
        engine_cache(tmp_path / "a.onnx", SPEC, options, "1")


def test_a_cache_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal is made up."""

    def refuse(**arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(BackendError, match="Permission denied"):
        engine_cache(tmp_path / "a.onnx", SPEC, OrtOptions(), "1")
