"""OpenVINO keeps the runtime contract, in the precision that was asked for."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.options import OpenVinoOptions, OrtOptions
from destseg_deploy.runtime.base import Prediction, check_prediction
from destseg_deploy.runtime.openvino_runtime import OpenVinoRuntime
from destseg_deploy.spec import FileRecord, ModelSpec

pytest.importorskip("openvino")

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

ROUNDING = 5e-5
"""The random network amplifies float32 rounding, which changes with the batch, up to this."""


@pytest.fixture(scope="module")
def runtime(onnx_artifact):
    opened = OpenVinoRuntime(onnx_artifact, options=OpenVinoOptions(threads=1))
    yield opened
    opened.close()


def test_answers_are_onnx_runtimes(runtime, onnx_artifact, frames):
    pytest.importorskip("onnxruntime")
    from destseg_deploy.runtime.ort.runtime import OrtRuntime

    reference = OrtRuntime(onnx_artifact, options=OrtOptions(threads=1))
    wanted, found = reference.infer(frames), runtime.infer(frames)
    assert isinstance(found, Prediction)
    assert found.anomaly_map.dtype == found.score.dtype == np.float32
    np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, atol=ROUNDING)
    np.testing.assert_allclose(found.score, wanted.score, atol=ROUNDING)
    assert np.abs(found.score - np.roll(wanted.score, 1)).max() > 1e-2, "control: another image"


@pytest.mark.parametrize(("hint", "streams"), [("latency", 0), ("throughput", 2)])
def test_may_be_shared_by_threads(onnx_artifact, frames, hint, streams):
    runtime = OpenVinoRuntime(
        onnx_artifact, options=OpenVinoOptions(threads=2, streams=streams, hint=hint)
    )
    # OpenVINO makes no more streams than there are cores for this process.
    assert runtime.requests >= max(min(streams, CORES), 1)
    alone = [runtime.infer(frames[i : i + 1]).score[0] for i in range(3)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(runtime.infer, frames[i % 3 : i % 3 + 1]) for i in range(24)]
    found = [job.result().score[0] for job in jobs]
    np.testing.assert_allclose(found, [alone[i % 3] for i in range(24)], atol=ROUNDING)
    runtime.close()


def test_float32_is_float32_and_bf16_is_not(runtime, onnx_artifact, frames):
    """OpenVINO's own default is bf16 where the CPU has it; a run in it must be asked for."""
    exact = runtime.infer(frames).anomaly_map
    try:
        rounded = OpenVinoRuntime(
            onnx_artifact, options=OpenVinoOptions(threads=1, precision="bf16")
        )
    except BackendError as error:
        assert "does not compute in it" in str(error)  # noqa: PT017 - either outcome is right
        return
    found = rounded.infer(frames).anomaly_map
    assert np.abs(found - exact).max() > 10 * ROUNDING, "control: bf16 is visible"
    assert np.abs(found - exact).max() < 0.5
    rounded.close()


def test_compiled_models_are_kept(tiny_artifact, frames, tmp_path):
    folder = tmp_path / "made" / "cache"
    answers = []
    for _ in range(2):
        runtime = OpenVinoRuntime(tiny_artifact, options=OpenVinoOptions(threads=1, cache=folder))
        answers.append(runtime.infer(frames).score)
        runtime.close()
    assert list(folder.iterdir())
    np.testing.assert_array_equal(answers[0], answers[1])


def test_one_cache_serves_artifacts_that_look_alike(onnx_artifact, frames, tmp_path):
    """Same path, size and time, as after a retraining and a copy that keeps times.

    That is all OpenVINO compares, and it would answer with the first one's model.
    """
    onnx = pytest.importorskip("onnx")
    path, cache = tmp_path / "cable-fp32.onnx", tmp_path / "cache"
    first = onnx.load(onnx_artifact)
    other = onnx.ModelProto.FromString(first.SerializeToString())
    weights = {tensor.name: tensor for tensor in other.graph.initializer}
    last = [node for node in other.graph.node if node.op_type == "Conv"][-1]
    largest = weights[last.input[1]]
    largest.raw_data = (np.frombuffer(largest.raw_data, np.float32) * np.float32(0.25)).tobytes()
    scores = {}
    for name, proto in (("first", first), ("other", other)):
        path.write_bytes(proto.SerializeToString())
        os.utime(path, (1e9, 1e9))
        replace(ModelSpec.read(onnx_artifact), artifact=FileRecord.of(path)).write(path)
        for folder in (None, cache):
            runtime = OpenVinoRuntime(path, options=OpenVinoOptions(threads=1, cache=folder))
            scores[name, folder] = runtime.infer(frames).score
            runtime.close()
    for name in ("first", "other"):
        np.testing.assert_allclose(scores[name, cache], scores[name, None], atol=ROUNDING)
    assert np.abs(scores["first", None] - scores["other", None]).max() > 1e-2, "control"


@pytest.fixture(scope="module")
def tiny(tiny_artifact):
    opened = OpenVinoRuntime(tiny_artifact, options=OpenVinoOptions(threads=1))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def kept(tiny_artifact, tmp_path_factory):
    """A cache that holds one compiled model."""
    folder = tmp_path_factory.mktemp("cache")
    OpenVinoRuntime(tiny_artifact, options=OpenVinoOptions(threads=1, cache=folder)).close()
    (path,) = folder.rglob("*.blob")
    return folder, path.relative_to(folder)


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def _with_answer(data: bytes, **changes: float | str) -> bytes:
    header, blob = data.split(b"\n", 1)
    return json.dumps({**json.loads(header), **changes}).encode() + b"\n" + blob


DAMAGES = {
    "a bit of its head": lambda data: _flip(data, 400),
    "a bit of its middle": lambda data: _flip(data, len(data) // 2),
    "a bit of its hash": lambda data: _flip(data, 20),
    "its end is missing": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "OpenVINO's own, without our header": lambda data: data.split(b"\n", 1)[1],
    "another known answer": lambda data: _with_answer(data, score=0.123),
    "an answer that is no number": lambda data: _with_answer(data, map=float("nan")),
    "that of other options": lambda data: _with_answer(data, file="0123456789abcdef.blob"),
    "without its name": lambda data: data.replace(b'{"file": "', b'{"name": "', 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_compiled_anew(
    tiny_artifact, kept, tiny, frames, tmp_path, caplog, damage
):
    """OpenVINO itself loads it: it answers wrongly, hangs, or kills the process."""
    folder, name = kept
    whole = (folder / name).read_bytes()
    hurt = tmp_path / name
    hurt.parent.mkdir()
    hurt.write_bytes(DAMAGES[damage](whole))
    options = OpenVinoOptions(threads=1, cache=tmp_path)
    again = OpenVinoRuntime(tiny_artifact, options=options)
    np.testing.assert_allclose(again.infer(frames).score, tiny.infer(frames).score, atol=1e-6)
    again.close()
    assert "compiled anew" in caplog.text
    header, blob = hurt.read_bytes().split(b"\n", 1)
    said = json.loads(header)
    mended = (hurt.name, hashlib.sha256(blob).hexdigest())  # its size may differ by some bytes
    assert (said["file"], said["sha256"]) == mended


def test_a_whole_cache_is_used(tiny_artifact, kept, tiny, frames, monkeypatch, caplog):
    """Control of the damages, and of the time that a cache saves."""

    def stop(core, path, device, config):
        raise AssertionError("compiled")

    monkeypatch.setattr("destseg_deploy.runtime.openvino_runtime._compile", stop)
    options = OpenVinoOptions(threads=1, cache=kept[0])
    again = OpenVinoRuntime(tiny_artifact, options=options)
    np.testing.assert_array_equal(again.infer(frames).score, tiny.infer(frames).score)
    assert caplog.text == ""
    with pytest.raises(AssertionError, match="compiled"):
        OpenVinoRuntime(tiny_artifact, options=replace(options, hint="throughput"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: replace(spec.output, height=32), r"'anomaly_map' is f32 \[\?,64,64\], expec"),
        (lambda spec: replace(spec.output, score_name="anomaly_map"), r"expected f32 \[\?\]"),
        (
            lambda spec: replace(spec.output, map_name="map"),
            "no output 'map', only anomaly_map, sc",
        ),
    ],
)
def test_outputs_that_are_not_the_specs_are_refused(tiny_artifact, tmp_path, change, message):
    path = tmp_path / "cable-fp32.onnx"
    path.write_bytes(tiny_artifact.read_bytes())
    spec = ModelSpec.read(tiny_artifact)
    changed = replace(spec, output=change(spec))
    with pytest.MonkeyPatch.context() as patch:  # a spec that was edited says so, too
        patch.setattr(ModelSpec, "read", lambda path: changed)
        patch.setattr(ModelSpec, "check_artifact", lambda self, path: None)  # as an open graph's
        with pytest.raises(BackendError, match=message):
            OpenVinoRuntime(path)


def test_answers_of_another_shape_are_refused(runtime, frames):
    """A graph whose shapes are open passes the check at load."""
    one = frames[0, :, :, 0].astype(np.float32) / 255
    check_prediction(Prediction(one[None], one[0, :1]), runtime.spec, 1)
    for wrong in (
        Prediction(one[None, :32], one[0, :1]),
        Prediction(one, one[0, :1]),
        Prediction(one[None], one[0, :2]),
        Prediction(one[None].astype(np.float64), one[0, :1]),
    ):
        with pytest.raises(BackendError, match="expected float32"):
            check_prediction(wrong, runtime.spec, 1)


def test_a_cache_that_cannot_be_made_is_refused(tiny_artifact, tmp_path):
    """OpenVINO itself says nothing and compiles anew at each start."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackendError, match=r"cannot be kept there \(Not a directory\).*cache="):
        OpenVinoRuntime(tiny_artifact, options=OpenVinoOptions(cache=tmp_path / "file"))


@pytest.mark.parametrize("pinning", [None, False, True])
def test_pinning_reaches_openvino(tiny_artifact, monkeypatch, pinning):
    """Threads are pinned where the system allows, so what was asked for is looked at."""
    asked = []

    def stop(core, path, device, config):
        asked.append(config)
        raise BackendError("seen")

    monkeypatch.setattr("destseg_deploy.runtime.openvino_runtime._compile", stop)
    with pytest.raises(BackendError, match="seen"):
        OpenVinoRuntime(
            tiny_artifact, options=OpenVinoOptions(threads=2, streams=2, pinning=pinning)
        )
    wanted = {} if pinning is None else {"ENABLE_CPU_PINNING": pinning}
    assert asked == [
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": 2,
            "NUM_STREAMS": "2",
            **wanted,
        }
    ]


def test_bf16_is_refused_where_the_cpu_has_none(tiny_artifact, monkeypatch):
    import openvino

    there = openvino.Core.get_property

    def without(self, device, name):
        found = there(self, device, name)
        return [x for x in found if x != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(openvino.Core, "get_property", without)
    with pytest.raises(BackendError, match=r"precision 'bf16': this CPU does not compute in it"):
        OpenVinoRuntime(tiny_artifact, options=OpenVinoOptions(precision="bf16"))


def test_a_device_that_is_not_there_is_refused(tiny_artifact):
    import openvino

    if any(name.startswith("GPU") for name in openvino.Core().available_devices):
        pytest.skip("there is an Intel GPU")
    with pytest.raises(BackendError, match="device 'gpu:0': OpenVINO does not see it, only cpu"):
        OpenVinoRuntime(tiny_artifact, Device("gpu"))


def test_a_graph_that_is_not_the_specs_is_refused(tiny_artifact, tmp_path):
    cut = tmp_path / "cable-fp32.onnx"
    cut.write_bytes(tiny_artifact.read_bytes()[:100])
    spec = ModelSpec.read(tiny_artifact)
    spec.write(cut)
    with pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        OpenVinoRuntime(cut)
    replace(spec, artifact=FileRecord.of(cut)).write(cut)
    with pytest.raises(BackendError, match="cannot open it"):
        OpenVinoRuntime(cut)
    cut.unlink()
    with pytest.raises(BackendError, match="no such file"):
        OpenVinoRuntime(cut)


def test_openvino_missing_is_said(tiny_artifact, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'destseg-deploy\[openvino\]'"):
        OpenVinoRuntime(tiny_artifact)


SIGNALLED = """
import gc, os, signal, sys
from destseg_deploy.loading import load
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
first, second = (load(sys.argv[1], backend="openvino") for _ in range(2))
first.close(); del first; gc.collect()
second.close(); del second; gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")
def test_a_signal_after_two_were_closed_does_no_harm(tiny_artifact):
    """Each of OpenVINO's cores leaves a stack for signals; that of one that is gone is no stack."""
    command = [sys.executable, "-c", SIGNALLED, str(tiny_artifact)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["handled", "alive"]
