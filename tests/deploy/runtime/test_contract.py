"""One suite over every runtime: what ``Runtime`` promises, whoever keeps it."""

import gc
import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, ShapeError, SpecError
from destseg_deploy.options import OpenVinoOptions, OrtOptions
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.testing import FakeRuntime, fake_spec
from tests.forked import forks, told_by_child

ROUNDING = 5e-5
"""The random network amplifies float32 rounding, which changes with the batch, up to this."""


def _pytorch(request):
    from destseg_deploy.runtime.torch_runtime import open_checkpoint

    return open_checkpoint(request.getfixturevalue("checkpoint"))


def _pytorch_on_gpu(request):
    from destseg_deploy.device import CUDA
    from destseg_deploy.runtime.torch_runtime import open_checkpoint

    return open_checkpoint(request.getfixturevalue("checkpoint"), CUDA)


def _ort(request):
    pytest.importorskip("onnxruntime")
    from destseg_deploy.runtime.ort.runtime import OrtRuntime

    return OrtRuntime(request.getfixturevalue("onnx_artifact"))


def _loaded(artifact, options):
    """Open a graph as a user does; one thread, as spinning ones are slow beside other tests."""

    def make(request):
        pytest.importorskip("openvino" if isinstance(options, OpenVinoOptions) else "onnxruntime")
        from destseg_deploy.loading import load

        return load(request.getfixturevalue(artifact), options=options).runtime

    return make


@pytest.fixture(scope="module")
def fused_artifact(onnx_artifact, tmp_path_factory):
    """The export after every exact fusion."""
    from dataclasses import replace

    import onnx

    from destseg_deploy.spec import FileRecord, ModelSpec
    from destseg_export.fusions.apply import fuse

    path = tmp_path_factory.mktemp("fused") / "cable-fp32.onnx"
    proto, fusions = fuse(onnx.load(onnx_artifact))
    assert fusions[-1].macs_after < fusions[0].macs_before, "else it is the plain graph"
    onnx.save_model(proto, path)
    replace(ModelSpec.read(onnx_artifact), artifact=FileRecord.of(path)).write(path)
    return path


def _trt(request):
    """TensorRT and the GPU are fakes that compute what FakeRuntime does."""
    from tests.deploy.runtime.trt.cases import Bench
    from tests.fakes.tensorrt_module import engine_spec, write_engine

    folder = request.getfixturevalue("tmp_path")
    bench = Bench(request.getfixturevalue("monkeypatch"), folder)
    return bench.open(write_engine(folder, engine_spec((64, 64), (1, 2, 4))))


def _ort_on_fakes(request):
    """ONNX Runtime and the GPU are fakes that compute what FakeRuntime does."""
    from tests.deploy.runtime.ort.cases import OrtBench

    fixture = request.getfixturevalue
    return OrtBench(fixture("monkeypatch"), fixture("tmp_path"), (64, 64)).open("cuda")


def _ort_on_gpu(request):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    from destseg_deploy.runtime.ort.gpu_runtime import OrtGpuRuntime

    return OrtGpuRuntime(request.getfixturevalue("onnx_artifact"))


@pytest.fixture(scope="module")
def real_engines(tmp_path_factory):
    """Builder -> an engine of the checkpoint, built on this machine when first asked for."""
    from destseg_deploy.runtime.trt.library import load_library
    from destseg_export.engine.build import build_engine
    from destseg_export.engine.options import BuildOptions
    from tests.deploy.runtime.cuda.test_device import real_gpu

    built = {}

    def engine(builder, onnx):
        try:
            load_library(builder)
        except BackendError as error:
            pytest.skip(str(error))
        if not real_gpu():
            pytest.skip("needs a CUDA GPU")
        if builder not in built:
            built[builder] = tmp_path_factory.mktemp(builder) / "cable-fp32.engine"
            build_engine(onnx, built[builder], options=BuildOptions(builder=builder))
        return built[builder]

    return engine


def _real_trt(builder):
    def make(request):
        from destseg_deploy.runtime.trt.runtime import TrtRuntime

        engines = request.getfixturevalue("real_engines")
        return TrtRuntime(engines(builder, request.getfixturevalue("onnx_artifact")))

    return make


RUNTIMES = {
    "fake": lambda request: FakeRuntime(fake_spec(64, 64)),
    "pytorch": _pytorch,
    "ort": _ort,
    "ort, fused": _loaded("fused_artifact", OrtOptions(threads=1)),
    "openvino": _loaded("onnx_artifact", OpenVinoOptions(threads=1)),
    "openvino, fused": _loaded("fused_artifact", OpenVinoOptions(threads=1)),
    "trt on fakes": _trt,
    "ort on fakes": _ort_on_fakes,
    "tensorrt": _real_trt("tensorrt"),
    "tensorrt-rtx": _real_trt("tensorrt-rtx"),
    "ort on a GPU": _ort_on_gpu,
    "pytorch on a GPU": _pytorch_on_gpu,
}


REAL = ("tensorrt", "tensorrt-rtx", "ort on a GPU", "pytorch on a GPU")
PARAMS = [pytest.param(n, marks=pytest.mark.gpu) if n in REAL else n for n in RUNTIMES]

FORKED = ("pytorch", "ort", "openvino", "trt on fakes", "ort on fakes")

LARGE = (
    "pytorch",
    "ort",
    "ort, fused",
    "openvino",
    "openvino, fused",
    "ort on a GPU",
    "pytorch on a GPU",
)
"""Runtimes of the network: each test would wait half a second for its own, on a GPU for seconds."""


@pytest.fixture(scope="module")
def opened():
    """Name -> a runtime of the network, open until the last test."""
    found = {}
    yield found
    for one in found.values():
        one.close()


@pytest.fixture(params=PARAMS)
def runtime(request, opened):
    """A runtime that a test leaves open."""
    name = request.param
    if name in opened:
        yield opened[name]
        return
    made = RUNTIMES[name](request)
    yield made
    if name in LARGE:
        opened[name] = made
    else:
        made.close()


@pytest.fixture(params=PARAMS)
def own_runtime(request):
    """A runtime that a test may close."""
    made = RUNTIMES[request.param](request)
    yield made
    made.close()


def test_answers_have_the_promised_form(runtime, frames):
    answer = runtime.infer(frames)
    assert isinstance(answer, Prediction)
    assert answer.anomaly_map.shape == (3, *runtime.spec.map_size)
    assert answer.score.shape == (3,)
    for array in (answer.anomaly_map, answer.score):
        assert array.dtype == np.float32
        assert array.min() >= 0
        assert array.max() <= 1
    assert np.ptp(answer.score) > 1e-2, "the frames must be told apart, or nothing here is tested"


def test_the_score_is_the_mean_of_the_largest_map_values(runtime, frames):
    answer = runtime.infer(frames)
    largest = np.sort(answer.anomaly_map.reshape(3, -1), axis=1)[:, -runtime.spec.output.top_k :]
    np.testing.assert_allclose(answer.score, largest.mean(axis=1), atol=1e-6)


def test_batch_one_equals_batch_n(runtime, frames):
    together = runtime.infer(frames)
    for i in range(len(frames)):
        alone = runtime.infer(frames[i : i + 1])
        np.testing.assert_allclose(alone.anomaly_map[0], together.anomaly_map[i], atol=ROUNDING)
        np.testing.assert_allclose(alone.score[0], together.score[i], atol=ROUNDING)


def test_order_is_kept(runtime, frames):
    there = runtime.infer(frames)
    back = runtime.infer(frames[::-1])
    np.testing.assert_allclose(back.score[::-1], there.score, atol=ROUNDING)


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
        (lambda x: x[0], r"\(64, 64, 3\)"),
        (lambda x: x[:0], "batch of 0"),
        (lambda x: np.concatenate([x] * 30), "batch of 90"),
        (lambda x: x.tolist(), "list"),
    ],
)
def test_refuses_what_it_was_not_made_for(runtime, frames, change, words):
    with pytest.raises(ShapeError, match=words):
        runtime.infer(change(frames))


def test_may_be_shared_by_threads(runtime, frames):
    alone = [runtime.infer(frames[i : i + 1]).score[0] for i in range(3)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(runtime.infer, frames[i % 3 : i % 3 + 1]) for i in range(24)]
    found = [job.result().score[0] for job in jobs]
    np.testing.assert_allclose(found, [alone[i % 3] for i in range(24)], atol=ROUNDING)


def test_close_is_final_and_may_be_repeated(own_runtime, frames):
    own_runtime.close()
    own_runtime.close()
    with pytest.raises(BackendError, match="closed"):
        own_runtime.infer(frames)


def test_cuda_is_refused_where_there_is_none(request, checkpoint, onnx_artifact):
    torch = pytest.importorskip("torch")
    ort = pytest.importorskip("onnxruntime")
    from destseg_deploy.loading import load

    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="sees no CUDA GPU"):
            load(checkpoint, device="cuda")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(BackendError, match="no CUDAExecutionProvider"):
            load(onnx_artifact, device="cuda")
    with pytest.raises(BackendError, match="expected cpu"):
        load(onnx_artifact, device="tpu")


def test_a_graph_that_is_not_the_specs_is_refused(onnx_artifact, tmp_path):
    """A damaged file is caught by its hash, and one whose hash fits by ONNX Runtime itself."""
    from dataclasses import replace

    from destseg_deploy.runtime.ort.runtime import OrtRuntime
    from destseg_deploy.spec import FileRecord, ModelSpec

    cut = tmp_path / "cable-fp32.onnx"
    cut.write_bytes(onnx_artifact.read_bytes()[:100_000])
    spec = ModelSpec.read(onnx_artifact)
    spec.write(cut)
    with pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        OrtRuntime(cut)
    replace(spec, artifact=FileRecord.of(cut)).write(cut)
    with pytest.raises(BackendError, match="cannot open it"):
        OrtRuntime(cut)


@pytest.fixture
def forked(request):
    opened = RUNTIMES[request.param](request)
    yield opened
    opened.close()


@forks
@pytest.mark.parametrize("forked", FORKED, indirect=True)
def test_a_child_is_told_not_to_use_its_parents_runtime(forked, frames):
    """PyTorch waited for ever for the parent's threads; ONNX Runtime in 1 of 800 children."""
    predictor = Predictor(forked)
    predictor(frames)

    def act(say):
        for ask in (forked.infer, predictor):
            try:
                say(str(ask(frames).score))
            except BackendError as error:
                say(str(error))
        predictor.close()
        say("closed")

    told = told_by_child(act)
    assert told.count(f"opened in process {os.getpid()} and does not work after a fork") == 2, told
    assert told.endswith("closed"), told
    assert forked.infer(frames).score.shape == (3,), "the parent works on"


@pytest.mark.parametrize("process", ["parent", "child"])
@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_only_the_process_that_opened_a_runtime_releases_it(
    monkeypatch, process, end, onnx_artifact
):
    """ONNX Runtime's session waits for its threads when it is released: in a child, for ever.

    A worker that says ``predictor = load(path)`` drops the one of its parent.
    """
    pytest.importorskip("onnxruntime")
    from destseg_deploy.runtime.ort.runtime import OrtRuntime

    runtime = OrtRuntime(onnx_artifact)
    session = weakref.ref(runtime._session)
    if process == "child":
        monkeypatch.setattr(os, "getpid", lambda: -1)
    if end == "closed":
        runtime.close()
    else:
        del runtime
    gc.collect()
    assert (session() is None) == (process == "parent")
