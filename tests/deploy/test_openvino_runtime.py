"""OpenVINO keeps the runtime contract, in the precision that was asked for."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, ShapeError, SpecError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.openvino_runtime import OpenVinoRuntime
from destseg_deploy.spec import FileRecord, ModelSpec

pytest.importorskip("openvino")

ROUNDING = 5e-5
"""The random network amplifies float32 rounding, which changes with the batch, up to this."""


@pytest.fixture(scope="module")
def runtime(onnx_artifact):
    opened = OpenVinoRuntime(onnx_artifact, threads=1)
    yield opened
    opened.close()


def test_answers_are_onnx_runtimes(runtime, onnx_artifact, frames):
    pytest.importorskip("onnxruntime")
    from destseg_deploy.runtime.ort import OrtRuntime

    reference = OrtRuntime(onnx_artifact, threads=1)
    wanted, found = reference.infer(frames), runtime.infer(frames)
    assert isinstance(found, Prediction)
    assert found.anomaly_map.dtype == found.score.dtype == np.float32
    np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, atol=ROUNDING)
    np.testing.assert_allclose(found.score, wanted.score, atol=ROUNDING)
    assert np.abs(found.score - np.roll(wanted.score, 1)).max() > 1e-2, "control: another image"


def test_batch_one_equals_batch_n_in_any_order(runtime, frames):
    together = runtime.infer(frames)
    for i in (2, 0, 1):
        alone = runtime.infer(frames[i : i + 1])
        np.testing.assert_allclose(alone.anomaly_map[0], together.anomaly_map[i], atol=ROUNDING)
        np.testing.assert_allclose(alone.score[0], together.score[i], atol=ROUNDING)


def test_answers_belong_to_the_caller(runtime, frames):
    first = runtime.infer(frames)
    kept = first.anomaly_map.copy(), first.score.copy()
    runtime.infer(255 - frames)
    np.testing.assert_array_equal(first.anomaly_map, kept[0])
    np.testing.assert_array_equal(first.score, kept[1])
    first.anomaly_map[:] = 0
    np.testing.assert_allclose(runtime.infer(frames).anomaly_map, kept[0], atol=ROUNDING)


def test_strided_input_is_read_as_it_is_seen(runtime, frames):
    wide = np.zeros((3, 64, 128, 3), np.uint8)
    wide[:, :, ::2] = frames
    np.testing.assert_allclose(
        runtime.infer(wide[:, :, ::2]).score, runtime.infer(frames).score, atol=ROUNDING
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.astype(np.float32) / 255, "float32.*in \\[0, 255\\]"),
        (lambda x: x.transpose(0, 3, 1, 2), r"\(3, 3, 64, 64\)"),
        (lambda x: x[:, :32], "--input-size"),
        (lambda x: x[:0], "batch of 0"),
        (lambda x: np.concatenate([x] * 30), "batch of 90"),
        (lambda x: x.tolist(), "list"),
    ],
)
def test_refuses_what_it_was_not_made_for(runtime, frames, change, words):
    with pytest.raises(ShapeError, match=words):
        runtime.infer(change(frames))


@pytest.mark.parametrize(("hint", "streams"), [("latency", 0), ("throughput", 2)])
def test_may_be_shared_by_threads(onnx_artifact, frames, hint, streams):
    runtime = OpenVinoRuntime(onnx_artifact, threads=2, streams=streams, hint=hint)
    assert runtime.requests >= max(streams, 1)
    alone = [runtime.infer(frames[i : i + 1]).score[0] for i in range(3)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(runtime.infer, frames[i % 3 : i % 3 + 1]) for i in range(24)]
    found = [job.result().score[0] for job in jobs]
    np.testing.assert_allclose(found, [alone[i % 3] for i in range(24)], atol=ROUNDING)
    runtime.close()


def test_close_is_final_and_may_be_repeated(onnx_artifact, frames):
    runtime = OpenVinoRuntime(onnx_artifact, threads=1)
    runtime.close()
    runtime.close()
    with pytest.raises(BackendError, match="closed"):
        runtime.infer(frames)


def test_float32_is_float32_and_bf16_is_not(runtime, onnx_artifact, frames):
    """OpenVINO's own default is bf16 where the CPU has it; a run in it must be asked for."""
    exact = runtime.infer(frames).anomaly_map
    try:
        rounded = OpenVinoRuntime(onnx_artifact, threads=1, precision="bf16")
    except BackendError as error:
        assert "does not compute in it" in str(error)  # noqa: PT017 - either outcome is right
        return
    found = rounded.infer(frames).anomaly_map
    assert np.abs(found - exact).max() > 10 * ROUNDING, "control: bf16 is visible"
    assert np.abs(found - exact).max() < 0.5
    rounded.close()


def test_compiled_models_are_kept(onnx_artifact, frames, tmp_path):
    folder = tmp_path / "made" / "cache"
    answers = []
    for _ in range(2):
        runtime = OpenVinoRuntime(onnx_artifact, threads=1, cache=folder)
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
            runtime = OpenVinoRuntime(path, threads=1, cache=folder)
            scores[name, folder] = runtime.infer(frames).score
            runtime.close()
    for name in ("first", "other"):
        np.testing.assert_allclose(scores[name, cache], scores[name, None], atol=ROUNDING)
    assert np.abs(scores["first", None] - scores["other", None]).max() > 1e-2, "control"


def test_a_cache_that_cannot_be_made_is_refused(onnx_artifact, tmp_path):
    """OpenVINO itself says nothing and compiles anew at each start."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackendError, match=r"cannot be kept there \(Not a directory\).*cache="):
        OpenVinoRuntime(onnx_artifact, cache=tmp_path / "file")


@pytest.mark.parametrize("pinning", [None, False, True])
def test_pinning_reaches_openvino(onnx_artifact, monkeypatch, pinning):
    """Threads are pinned where the system allows, so what was asked for is looked at."""
    asked = []

    def stop(core, path, device, config):
        asked.append(config)
        raise BackendError("seen")

    monkeypatch.setattr("destseg_deploy.runtime.openvino_runtime._compile", stop)
    with pytest.raises(BackendError, match="seen"):
        OpenVinoRuntime(onnx_artifact, threads=2, streams=2, pinning=pinning)
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


def test_bf16_is_refused_where_the_cpu_has_none(onnx_artifact, monkeypatch):
    import openvino

    there = openvino.Core.get_property

    def without(self, device, name):
        found = there(self, device, name)
        return [x for x in found if x != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(openvino.Core, "get_property", without)
    with pytest.raises(BackendError, match=r"precision 'bf16': this CPU does not compute in it"):
        OpenVinoRuntime(onnx_artifact, precision="bf16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "device 'cuda': expected cpu or gpu"),
        ({"precision": "int8"}, "precision 'int8': expected fp32 or bf16"),
        ({"hint": "fast"}, "hint 'fast'"),
        ({"threads": -1}, "threads: -1"),
        ({"streams": -2}, "streams: -2"),
    ],
)
def test_options_out_of_range_are_refused(onnx_artifact, options, words):
    with pytest.raises(BackendError, match=words):
        OpenVinoRuntime(onnx_artifact, **options)


def test_a_device_that_is_not_there_is_refused(onnx_artifact):
    import openvino

    if any(name.startswith("GPU") for name in openvino.Core().available_devices):
        pytest.skip("there is an Intel GPU")
    with pytest.raises(BackendError, match="device 'gpu': OpenVINO sees none, only cpu"):
        OpenVinoRuntime(onnx_artifact, device="gpu")


def test_a_graph_that_is_not_the_specs_is_refused(onnx_artifact, tmp_path):
    cut = tmp_path / "cable-fp32.onnx"
    cut.write_bytes(onnx_artifact.read_bytes()[:100_000])
    spec = ModelSpec.read(onnx_artifact)
    spec.write(cut)
    with pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        OpenVinoRuntime(cut)
    replace(spec, artifact=FileRecord.of(cut)).write(cut)
    with pytest.raises(BackendError, match="cannot open it"):
        OpenVinoRuntime(cut)
    cut.unlink()
    with pytest.raises(BackendError, match="no such file"):
        OpenVinoRuntime(cut)


def test_openvino_missing_is_said(onnx_artifact, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'destseg-deploy\[openvino\]'"):
        OpenVinoRuntime(onnx_artifact)
