"""What ONNX Runtime is asked for."""

from dataclasses import replace
from pathlib import Path

import pytest

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.fake import fake_spec
from destseg_deploy.runtime.ort_options import (
    CPU,
    CUDA,
    TENSORRT,
    OrtOptions,
    Place,
    check_options,
    engine_cache,
    provider_options,
)
from destseg_deploy.spec import BatchRange, InputSpec

SPEC = replace(fake_spec(256, 320), input=InputSpec(256, 320, BatchRange(1, 4, 8)))
RESIZING = replace(SPEC, input=InputSpec(1024, 1280, BatchRange(1, 1, 2)))
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}


@pytest.mark.parametrize(
    ("device", "place", "provider", "memory"),
    [
        ("cpu", Place("cpu"), CPU, "cpu"),
        ("cuda", Place("cuda", 0), CUDA, "cuda"),
        ("cuda:3", Place("cuda", 3), CUDA, "cuda"),
        ("tensorrt", Place("tensorrt", 0), TENSORRT, "cuda"),
        ("tensorrt:12", Place("tensorrt", 12), TENSORRT, "cuda"),
    ],
)
def test_devices_are_read(device, place, provider, memory):
    found = Place.parse(device)
    assert found == place
    assert (found.provider, found.memory) == (provider, memory)
    assert Place.parse(str(found)) == found


@pytest.mark.parametrize(
    "device", ["", "tpu", "CUDA", "cpu:0", "cuda:", "cuda:-1", "cuda:0 ", "tensorrt:x", "cuda:1:2"]
)
def test_other_devices_are_refused(device):
    with pytest.raises(BackendError, match=r"expected cpu, cuda or cuda:<index>, tensorrt or"):
        Place.parse(device)


def test_the_cpu_takes_no_options():
    assert provider_options(Place("cpu"), SPEC, OrtOptions()) == [(CPU, {})]


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_cuda_is_told_index_tf32_and_graphs(tf32, graph):
    options = OrtOptions(cuda_graph=graph, tf32=tf32)
    wanted = {"device_id": "2", "use_tf32": "01"[tf32], "enable_cuda_graph": "01"[graph]}
    assert provider_options(Place("cuda", 2), SPEC, options) == [(CUDA, wanted)]


def test_tensorrt_is_told_profile_and_cache_and_leaves_the_rest_to_cuda():
    options = OrtOptions(cuda_graph=True)
    providers = provider_options(Place("tensorrt", 1), SPEC, options, Path("/engines"))
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
    for _, settings in provider_options(Place("tensorrt"), SPEC, OrtOptions(), Path("/e")):
        assert not {"trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"} & settings.keys()


@pytest.mark.parametrize(
    ("device", "options", "words"),
    [
        ("cpu", OrtOptions(cuda_graph=True), "cuda_graph needs a GPU"),
        ("cpu", OrtOptions(tf32=True), "tf32 needs a GPU"),
        ("cpu", OrtOptions(cache=Path("c")), "cache c is for TensorRT's engines, device 'cpu'"),
        ("cuda:1", OrtOptions(cache=Path("c")), "device 'cuda:1' builds none"),
    ],
)
def test_options_that_do_not_fit_the_device_are_refused(device, options, words):
    with pytest.raises(BackendError, match=words):
        check_options(Place.parse(device), SPEC, options, EXACT)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_tf32_is_refused_where_the_graph_resizes(device):
    place = Place.parse(device)
    with pytest.raises(BackendError, match="1280x1024 frames by products that need all bits"):
        check_options(place, RESIZING, OrtOptions(tf32=True), {})
    check_options(place, SPEC, OrtOptions(tf32=True), {})
    check_options(place, RESIZING, OrtOptions(), EXACT)


@pytest.mark.parametrize("environment", [{}, {"NVIDIA_TF32_OVERRIDE": "1"}])
def test_tensorrt_with_tf32_unasked_is_refused(environment):
    place = Place.parse("tensorrt")
    with pytest.raises(BackendError, match="Set NVIDIA_TF32_OVERRIDE=0 before"):
        check_options(place, SPEC, OrtOptions(), environment)
    check_options(place, SPEC, OrtOptions(), EXACT)
    check_options(Place.parse("cuda"), SPEC, OrtOptions(), environment)


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
    options = OrtOptions(cache=tmp_path / "engines")
    folder = engine_cache(tmp_path / "a.onnx", SPEC, options, "1")
    assert folder.parent == tmp_path / "engines"
    assert folder.is_absolute()


def test_a_cache_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    options = OrtOptions(cache=tmp_path / "file")
    with pytest.raises(BackendError, match=r"cannot be kept there \(Not a directory\).*cache="):
        engine_cache(tmp_path / "a.onnx", SPEC, options, "1")


def test_a_cache_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal is made up."""

    def refuse(**arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(BackendError, match="Permission denied"):
        engine_cache(tmp_path / "a.onnx", SPEC, OrtOptions(), "1")
