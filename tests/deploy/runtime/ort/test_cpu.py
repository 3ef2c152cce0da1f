"""ONNX Runtime on a CPU is told what was asked for, and refuses what it would not do."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from destseg_deploy.device import CPU, Device
from destseg_deploy.environment import allowed_cores
from destseg_deploy.errors import BackendError, OutOfMemoryError
from destseg_deploy.options import OpenVinoOptions, OrtOptions
from destseg_deploy.runtime.int8_kernels import EXACT, openvino_saturates
from destseg_deploy.runtime.ort.runtime import OrtRuntime
from destseg_deploy.runtime.ort.session import (
    PINNED,
    SPINNING,
    SessionSettings,
    check_cores,
    session_settings,
)
from destseg_deploy.spec import QuantizationRecord
from destseg_deploy.testing import fake_spec
from tests.deploy.runtime.ort.cases import OrtBench, equal
from tests.fakes.onnxruntime_module import Module

SPEC = fake_spec()
INT8 = replace(SPEC, precision="int8")
CUDA = Device("cuda")
ONE = OrtOptions(threads=1)


@pytest.fixture
def _four_cores(monkeypatch):
    monkeypatch.setattr("destseg_deploy.runtime.ort.session.allowed_cores", lambda: [0, 1, 2, 3])


def _settings(spec=SPEC, device=CPU, saturates=False, **options):
    module = Module(spec, saturates=saturates)
    return session_settings(module, device, spec, OrtOptions(**options))


@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SessionSettings()),
        ({"threads": 3}, SessionSettings(3)),
        ({"arena": False}, SessionSettings(arena=False)),
        ({"spinning": False}, SessionSettings(entries={SPINNING: "0"})),
        ({"worker_cores": (0,)}, SessionSettings(2, entries={PINNED: "1"})),
        ({"threads": 3, "worker_cores": (3, 1)}, SessionSettings(3, entries={PINNED: "4;2"})),
    ],
)
def test_options_become_the_sessions(options, expected):
    assert _settings(**options) == expected


@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize(
    ("cores", "words"),
    [
        ((4,), r"worker_cores \(4,\): this process may not run on 4, expected some of 0, 1, 2"),
        ((1, -1), "may not run on -1"),
    ],
)
def test_cores_of_others_are_refused_in_one_line(cores, words):
    with pytest.raises(BackendError, match=words) as refused:
        _settings(worker_cores=cores)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("saturates", [False, True])
def test_only_int8_where_sums_are_wrong_gets_the_slow_kernels(saturates):
    assert _settings(INT8, saturates=saturates).entries == ({EXACT: "1"} if saturates else {})
    assert not _settings(SPEC, saturates=saturates).entries
    assert not _settings(INT8, CUDA, saturates=saturates).entries


@pytest.mark.parametrize(("scheme", "warned"), [("s8", 1), ("u8", 0)])
def test_a_file_for_tensorrt_is_named_on_a_cpu(caplog, scheme, warned):
    spec = replace(INT8, quantization=QuantizationRecord("destseg-export", scheme, ("a",)))
    _settings(spec)
    _settings(spec, CUDA)
    assert len(caplog.messages) == warned, "once, and on the CPU alone"
    assert all("quantised for TensorRT" in m and "--for cpu" in m for m in caplog.messages)


def test_the_fake_session_is_told(monkeypatch, tmp_path):
    bench = OrtBench(monkeypatch, tmp_path, precision="int8")
    bench.module.saturates = True
    runtime, frames = bench.open("cpu", arena=False, spinning=False), bench.frames(2)
    found = bench.session.options
    assert found.enable_cpu_mem_arena is False
    assert (found.entries[EXACT], found.entries[SPINNING]) == ("1", "0")
    equal(runtime.infer(frames), bench.wanted(frames))
    runtime.close()


def test_allowed_cores_are_this_processes():
    cores = allowed_cores()
    assert cores == sorted(set(cores))
    assert 1 <= len(cores) <= os.cpu_count()
    check_cores(cores[:1], cores)


# --- ONNX Runtime itself


def _options(runtime):
    return runtime._session.get_session_options()


def test_options_reach_onnx_runtime_and_leave_the_answers(onnx_artifact, frames):
    pytest.importorskip("onnxruntime")
    plain = OrtRuntime(onnx_artifact, options=ONE)
    frugal = OrtRuntime(onnx_artifact, options=replace(ONE, arena=False, spinning=False))
    assert _options(plain).enable_cpu_mem_arena
    assert not _options(frugal).enable_cpu_mem_arena
    assert _options(frugal).get_session_config_entry(SPINNING) == "0"
    with pytest.raises(Exception, match=SPINNING):  # its own error for an option never set
        _options(plain).get_session_config_entry(SPINNING)
    for _ in range(2):
        equal(frugal.infer(frames), plain.infer(frames))
    plain.close()
    frugal.close()


def _threads() -> dict[str, set[int]]:
    return {task: os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}


def test_workers_are_pinned_where_they_were_asked_to(onnx_artifact):
    pytest.importorskip("onnxruntime")
    if not Path("/proc/self/task").is_dir() or len(allowed_cores()) < 2:
        pytest.skip("needs Linux and two cores")
    last = allowed_cores()[-1]
    found = {}
    for name, cores in (("pinned", (last,)), ("free", ())):
        before = _threads()
        threads = 0 if cores else 2
        options = OrtOptions(threads=threads, worker_cores=cores)
        runtime = OrtRuntime(onnx_artifact, options=options)
        found[name] = [on for task, on in _threads().items() if task not in before]
        runtime.close()
    assert found["pinned"] == [{last}]
    assert found["free"] != [{last}], "control: not pinned unless asked for"


# --- an INT8 graph


@pytest.fixture(scope="module")
def int8_artifact(onnx_artifact, tmp_path_factory):
    """The export with its segmentation network in INT8, ranges from noise."""
    onnx = pytest.importorskip("onnx")
    from destseg_deploy.spec import FileRecord, ModelSpec
    from destseg_deploy.spec.contract import KEY, contract_of
    from destseg_export.int8.calibrate import measure_ranges
    from destseg_export.int8.qdq import find_layers, quantize_layers, tensors_around

    proto = onnx.load(onnx_artifact)
    layers = find_layers(proto, ["segmentation_net"])
    noise = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    ranges = measure_ranges(proto, tensors_around(proto, layers), noise)
    path = tmp_path_factory.mktemp("int8") / "cable-int8.onnx"
    quantised = quantize_layers(proto, layers, ranges, "u8")
    spec = replace(ModelSpec.read(onnx_artifact), precision="int8")
    onnx.helper.set_model_props(quantised, {KEY: contract_of(asdict(spec))})
    onnx.save_model(quantised, path)
    replace(spec, artifact=FileRecord.of(path)).write(path)
    return path


def test_exact_kernels_give_the_same_bits(int8_artifact, frames, monkeypatch):
    """Sums of integers have no rounding, so where the fast kernels are right both agree."""
    ort = pytest.importorskip("onnxruntime")
    from destseg_deploy.runtime.int8_kernels import ort_saturates

    wrong = ort_saturates(ort)
    monkeypatch.setattr("destseg_deploy.runtime.ort.session.ort_saturates", lambda ort: True)
    exact = OrtRuntime(int8_artifact, options=ONE)
    assert _options(exact).get_session_config_entry(EXACT) == "1"
    monkeypatch.setattr("destseg_deploy.runtime.ort.session.ort_saturates", lambda ort: False)
    fast = OrtRuntime(int8_artifact, options=ONE)
    if not wrong:
        equal(exact.infer(frames), fast.infer(frames))
    changed = np.abs(exact.infer(255 - frames).score - exact.infer(frames).score)
    assert changed.max() > 1e-3, "control: bits can differ"


def _kernels(runtime):
    """Return the types that OpenVINO's convolutions compute in."""
    request = runtime._free.get()
    graph = request.get_compiled_model().get_runtime_model()
    runtime._free.put(request)
    infos = [node.get_rt_info() for node in graph.get_ops()]
    return {
        info["primitiveType"].astype(str).rpartition("_")[2]
        for info in infos
        if info["layerType"].astype(str) == "Convolution"
    }


def test_openvino_computes_int8_in_float_where_its_sums_are_wrong(
    int8_artifact, frames, monkeypatch, caplog
):
    pytest.importorskip("openvino")
    import openvino

    from destseg_deploy.runtime import openvino_runtime

    here = openvino_saturates(openvino, openvino.Core())
    wanted = OrtRuntime(int8_artifact, options=ONE).infer(frames)
    for saturates, kernels in ((False, {"I8", "f32"}), (True, {"f32"})):
        caplog.clear()
        monkeypatch.setattr(openvino_runtime, "openvino_saturates", lambda *_, s=saturates: s)
        runtime = openvino_runtime.OpenVinoRuntime(
            int8_artifact, options=OpenVinoOptions(threads=1)
        )
        assert {name for name in _kernels(runtime) if name in ("I8", "f32")} == kernels
        warned = [record.getMessage() for record in caplog.records]
        assert len(warned) == saturates, "once, and only there"
        assert all("no VNNI" in line and "Back end onnxruntime" in line for line in warned)
        found = runtime.infer(frames)
        # Left in INT8 on a CPU without VNNI, the scores are wrong: that is what the switch is for.
        assert (np.abs(found.score - wanted.score).max() < 2e-2) == (saturates or not here)
        assert np.abs(found.score - np.roll(wanted.score, 1)).max() > 2e-2, "control"
        runtime.close()


BAD_ALLOC = "[ONNXRuntimeError] : 6 : Exception during initialization: std::bad_alloc"


def test_a_lack_of_memory_is_not_the_files_fault(tmp_path, monkeypatch):
    """It said "Export it again", which costs hours and changes nothing."""

    def fail(*given, **options):
        raise RuntimeError(BAD_ALLOC)

    bench = OrtBench(monkeypatch, tmp_path)
    runtime = bench.open("cpu")
    monkeypatch.setattr("tests.fakes.onnxruntime_module.Session.run_with_iobinding", fail)
    with pytest.raises(OutOfMemoryError, match=r"fake-fp32\.onnx: not enough memory \(.*bad_alloc"):
        runtime.infer(bench.frames(1))
    monkeypatch.setattr(bench.module, "InferenceSession", fail)
    with pytest.raises(OutOfMemoryError, match=r"fake-fp32\.onnx: not enough memory"):
        bench.open("cpu")


def test_another_failure_is_the_files(tmp_path, monkeypatch):
    """Control of the test above."""

    def fail(*given, **options):
        raise RuntimeError("Protobuf parsing failed")

    bench = OrtBench(monkeypatch, tmp_path)
    monkeypatch.setattr(bench.module, "InferenceSession", fail)
    with pytest.raises(BackendError, match=r"cannot open it \(Protobuf.*Export it again"):
        bench.open("cpu")
