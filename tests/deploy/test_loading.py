"""load picks the back end that runs what was asked for, and refuses everything else clearly."""

import shutil
import sys
from pkgutil import resolve_name

import numpy as np
import pytest

from destseg_deploy.device import CPU, Device
from destseg_deploy.errors import BackendError, ShapeError, SpecError
from destseg_deploy.loading import FITS, load
from destseg_deploy.options import (
    BACKENDS,
    OpenVinoOptions,
    OrtOptions,
    ServerOptions,
    TensorRtOptions,
    TorchOptions,
)
from destseg_deploy.spec import spec_path
from destseg_deploy.testing import FakeRuntime

RUNTIMES = {
    "onnxruntime": "destseg_deploy.runtime.ort.runtime.OrtRuntime",
    "openvino": "destseg_deploy.runtime.openvino_runtime.OpenVinoRuntime",
    "tensorrt": "destseg_deploy.runtime.trt.runtime.TrtRuntime",
    "pytorch": "destseg_deploy.runtime.torch_runtime.open_checkpoint",
    "server": "destseg_deploy.runtime.server.runtime.ServerRuntime",
}


def _frames(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


# --- which back end, where, with what


@pytest.fixture
def opened(monkeypatch):
    """Every runtime notes its name and what it is given, and opens nothing."""
    noted = []
    gpu = {
        "onnxruntime on a GPU": "destseg_deploy.runtime.ort.gpu_runtime.OrtGpuRuntime",
        "pytorch on a GPU": "destseg_deploy.runtime.torch_gpu.runtime.open_on_gpu",
    }
    # The GPU's first: its module takes what it needs from the others when it is imported.
    for name, target in {**gpu, **RUNTIMES}.items():

        def note(*given, name=name):
            noted.append((name, *given[1:]))
            return FakeRuntime()

        monkeypatch.setattr(target, note)
    return noted


@pytest.mark.parametrize(
    ("file", "asked", "expected"),
    [
        ("a.onnx", {}, ("onnxruntime", CPU, OrtOptions())),
        ("a.onnx", {"device": "cuda:1"}, ("onnxruntime on a GPU", Device("cuda", 1), OrtOptions())),
        ("a.onnx", {"backend": "openvino"}, ("openvino", CPU, OpenVinoOptions())),
        ("a.onnx", {"device": "gpu"}, ("openvino", Device("gpu"), OpenVinoOptions())),
        (
            "a.onnx",
            {"options": OpenVinoOptions(precision="bf16")},
            ("openvino", CPU, OpenVinoOptions(precision="bf16")),
        ),
        (
            "a.onnx",
            {"device": Device("cuda"), "options": OrtOptions(tensorrt=True)},
            ("onnxruntime on a GPU", Device("cuda"), OrtOptions(tensorrt=True)),
        ),
        ("a.engine", {}, ("tensorrt", Device("cuda"), TensorRtOptions())),
        (
            "a.engine",
            {"device": "cuda:1", "options": TensorRtOptions(contexts=3)},
            ("tensorrt", Device("cuda", 1), TensorRtOptions(contexts=3)),
        ),
        ("a.safetensors", {}, ("pytorch", CPU, TorchOptions())),
        (
            "a.json",
            {"options": ServerOptions("http://a:1")},
            ("server", CPU, ServerOptions("http://a:1")),
        ),
        (
            "a.pckl",
            {"device": "cuda", "options": TorchOptions(tf32=True)},
            ("pytorch on a GPU", Device("cuda"), TorchOptions(tf32=True)),
        ),
    ],
)
def test_what_was_asked_for_is_opened(tmp_path, opened, file, asked, expected):
    pytest.importorskip("torch")
    (tmp_path / file).write_bytes(b"x")
    load(tmp_path / file, **asked)
    assert opened == [expected]


@pytest.mark.parametrize(
    ("file", "asked", "words"),
    [
        ("a.onnx", {"backend": "opencv"}, "backend 'opencv': expected one of onnxruntime, open"),
        ("a.onnx", {"backend": "tensorrt"}, r"suffix \.onnx does not fit back end 'tensorrt'"),
        ("a.onnx", {"backend": "onnxruntime", "device": "gpu"}, "device 'gpu:0' does not fit"),
        ("a.onnx", {"device": "cuda", "options": OpenVinoOptions()}, "back end 'openvino', which"),
        ("a.onnx", {"options": TensorRtOptions()}, "options TensorRtOptions does not fit"),
        ("a.onnx", {"backend": "openvino", "options": OrtOptions()}, "options OrtOptions does"),
        ("a.onnx", {"backend": "server"}, "url '': expected http://HOST:PORT"),
        ("a.json", {}, "unknown kind of artifact"),
        ("a.engine", {"device": "cpu"}, r"runs \.engine: tensorrt \(cuda\)"),
        ("a.engine", {"backend": "openvino"}, r"suffix \.engine does not fit back end 'openvino'"),
        ("a.engine", {"options": OrtOptions()}, "options OrtOptions does not fit"),
        ("a.safetensors", {"backend": "openvino"}, r"runs \.safetensors: pytorch \(cpu or cuda\)"),
        ("a.safetensors", {"device": "gpu"}, "device 'gpu:0' does not fit back end 'pytorch'"),
        ("a.safetensors", {"options": OpenVinoOptions()}, "options OpenVinoOptions does not"),
        ("a.onnx", {"device": "openvino"}, "Pass backend 'openvino'"),
        ("a.onnx", {"device": "tpu"}, "device 'tpu': expected cpu"),
        ("a.onnx", {"options": OrtOptions(tf32=True)}, "tf32: an option for device 'cuda'"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(tmp_path, opened, file, asked, words):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(BackendError, match=words) as refused:
        load(tmp_path / file, **asked)
    assert "\n" not in str(refused.value)
    assert not opened


def test_what_the_table_names_is_there():
    pytest.importorskip("torch")
    named = {name for fit in FITS.values() for name in fit.devices.values()}
    assert len(named) == len(RUNTIMES) + 2  # ONNX Runtime and PyTorch have one for the GPU, too
    assert all(callable(resolve_name(f"destseg_deploy.runtime.{name}")) for name in named)


def test_a_checkpoint_without_pytorch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "destseg_deploy.runtime.torch_runtime", raising=False)
    (tmp_path / "a.safetensors").write_bytes(b"x")
    with pytest.raises(
        BackendError, match=r"needs PyTorch\. pip install 'destseg-deploy\[train\]'"
    ):
        load(tmp_path / "a.safetensors")


def test_every_back_end_has_its_row():
    assert tuple(FITS) == BACKENDS == tuple(RUNTIMES)
    kinds = [fit.options for fit in FITS.values()]
    assert len(set(kinds)) == len(kinds)


# --- files


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "no.onnx", str(tmp_path / "no.safetensors")):
        with pytest.raises(BackendError, match="no such file"):
            load(path)
    with pytest.raises(BackendError, match=r"a folder\. Expected a \.onnx"):
        load(tmp_path)


def test_a_name_that_the_system_refuses_is_an_error_of_ours():
    for path in ("a" * 300 + ".onnx", "a/" * 3000 + "b.onnx"):
        with pytest.raises(BackendError, match=r"cannot be read \(File name too long\)"):
            load(path)
    with pytest.raises(BackendError, match="no such file"):
        load("a\0b.onnx")


def test_arguments_of_any_type_are_refused_in_one_line(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"x")
    for wrong in ({"backend": ["openvino"]}, {"backend": 5}, {"options": np.zeros(2)}):
        with pytest.raises(BackendError):
            load(path, **wrong)


@pytest.mark.parametrize("path", [None, "", " ", 5, b"a.onnx"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(BackendError, match=r"^load\(.*\): expected the path of a \.onnx"):
        load(path)


@pytest.mark.parametrize("name", ["a.ONNX", "a.Onnx"])
def test_a_suffix_counts_in_any_case(tmp_path, opened, name):
    (tmp_path / name).write_bytes(b"x")
    load(tmp_path / name)
    assert opened == [("onnxruntime", CPU, OrtOptions())]


@pytest.mark.parametrize("name", ["model.plan", "model.json", "model"])
def test_an_unknown_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BackendError, match="unknown kind of artifact"):
        load(tmp_path / name)


@pytest.mark.parametrize("kind", ["checkpoint", "onnx_artifact"])
def test_an_artifact_without_its_spec_is_refused(request, tmp_path, kind):
    source = request.getfixturevalue(kind)
    lonely = tmp_path / source.name
    lonely.symlink_to(source)
    with pytest.raises(SpecError, match=r"no spec .*\.json beside it"):
        load(lonely)


def test_the_spec_of_another_model_is_refused(checkpoint, onnx_artifact, tmp_path):
    (tmp_path / "cable.safetensors").symlink_to(checkpoint)
    shutil.copy(spec_path(onnx_artifact), tmp_path / "cable.json")
    with pytest.raises(SpecError, match=r"cable-fp32\.onnx.*not a checkpoint"):
        load(tmp_path / "cable.safetensors")
    (tmp_path / "cable.onnx").symlink_to(onnx_artifact)
    shutil.copy(spec_path(checkpoint), tmp_path / "cable.json")
    with pytest.raises(SpecError, match="mixed up"):
        load(tmp_path / "cable.onnx")


# --- back ends as they are


def test_nothing_that_was_asked_of_a_gpu_runs_on_the_cpu(checkpoint, onnx_artifact, monkeypatch):
    """Whatever this machine has, what the back ends say is there decides."""
    torch = pytest.importorskip("torch")
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device, name in (("cuda", "cuda:0"), ("cuda:1", "cuda:1")):
        with pytest.raises(BackendError, match=f"device '{name}'.*sees no CUDA GPU"):
            load(checkpoint, device=device)
        with pytest.raises(BackendError, match=f"device '{name}'.*no CUDAExecutionProvider"):
            load(onnx_artifact, device=device)
    with pytest.raises(BackendError, match=r"device 'cuda:0'.*no TensorrtExecutionProvider"):
        load(onnx_artifact, device="cuda", options=OrtOptions(tensorrt=True))


def test_a_missing_openvino_names_the_extra(onnx_artifact, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'destseg-deploy\[openvino\]'"):
        load(onnx_artifact, backend="openvino")


def test_openvino_serves_frames_as_onnx_runtime_does(onnx_artifact):
    """Any number and size, maps of the frames' size, verdicts: the same through both."""
    pytest.importorskip("openvino")
    frames = _frames((64, 64), (90, 45), (35, 70), (64, 64), (20, 20))
    answers = []
    for options in (OrtOptions(threads=1), OpenVinoOptions(threads=1)):
        with load(onnx_artifact, options=options) as predictor:
            singles = list(predictor.stream(frames, source_maps=True))
            answers.append((singles, [bool(predictor.is_anomalous(s)[0]) for s in singles]))
            with pytest.raises(ShapeError, match="expected uint8"):
                predictor(frames[0] / 255)
    (wanted, judged), (found, verdicts) = answers
    assert judged == verdicts
    for a, b in zip(wanted, found, strict=True):
        assert a.anomaly_map.shape == b.anomaly_map.shape
        assert np.abs(a.anomaly_map - b.anomaly_map).max() < 1e-4
        assert np.abs(a.score - b.score).max() < 1e-4
    scores = np.array([s.score[0] for s in wanted])
    assert np.abs(scores - np.roll(scores, 1)).max() > 1e-3, "control: frames are told apart"


def test_an_engine_is_loaded_on_a_gpu_and_serves_frames(monkeypatch, tmp_path):
    from tests.deploy.runtime.trt.cases import Bench, frames_of, wanted
    from tests.fakes.tensorrt_module import write_engine

    bench, frames = Bench(monkeypatch, tmp_path), frames_of(7)
    with load(write_engine(bench.folder)) as predictor:
        answer = predictor(frames)
        assert predictor.is_anomalous(answer).dtype == bool
    np.testing.assert_array_equal(answer.score, wanted(frames).score)
    np.testing.assert_array_equal(answer.anomaly_map, wanted(frames).anomaly_map)
    assert bench.nothing_lives()
