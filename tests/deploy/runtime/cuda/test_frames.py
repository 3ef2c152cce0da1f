"""Predictor over a GPU: frames resized there to the host's bits, double-buffered slots, maps.

The GPU, TensorRT and ONNX Runtime are fakes; ``resize.cu`` is the real one, run as host code.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.predictor import Predictor, resize_map
from destseg_deploy.spec import BatchRange, NetworkSpec
from destseg_deploy.testing import FakeRuntime
from tests.deploy.runtime.cuda.resize_cases import noise
from tests.deploy.runtime.ort.cases import OrtBench
from tests.deploy.runtime.trt.cases import Bench, equal, frames_of, wanted
from tests.fakes.host_kernels import HostCompiler
from tests.fakes.tensorrt_module import engine_spec, write_engine

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    return HostCompiler(tmp_path_factory.mktemp("kernels"))


class TrtServer:
    """An engine on a fake TensorRT."""

    def __init__(self, request, size=(64, 64), batch=(1, 2, 4), network=None, **options):
        self.folder = request.getfixturevalue("tmp_path")
        self.bench = Bench(request.getfixturevalue("monkeypatch"), self.folder)
        self.bench.fresh(compiler=request.getfixturevalue("compiler"))
        spec = engine_spec(size, batch)
        spec = replace(spec, network=NetworkSpec(*(network or size)))
        self.path = write_engine(self.folder, spec)
        self.options = options

    def open(self):
        self.runtime = self.bench.open(self.path, **self.options)
        return Predictor(self.runtime)

    def fresh(self):
        self.bench.fresh(compiler=self.bench.gpu.compiler)

    @property
    def gpu(self):
        return self.bench.gpu

    def nothing_lives(self):
        return self.bench.nothing_lives() and self.gpu.closed


class OrtServer:
    """A graph on a fake ONNX Runtime."""

    def __init__(self, request, size=(64, 64), batch=(1, 2, 4), network=None, **options):
        folder, monkeypatch = map(request.getfixturevalue, ("tmp_path", "monkeypatch"))
        compiler = request.getfixturevalue("compiler")
        self.bench = OrtBench(monkeypatch, folder, size, compiler)
        spec = self.bench.spec
        given = replace(spec.input, batch=BatchRange(*batch))
        spec = replace(spec, input=given, network=NetworkSpec(*(network or size)))
        spec.write(self.bench.path)
        self.bench.module.spec = spec
        self.options = options

    def open(self):
        self.runtime = self.bench.open("cuda", **self.options)
        return Predictor(self.runtime)

    def fresh(self):
        self.bench.fresh()

    @property
    def gpu(self):
        return self.bench.gpu

    def nothing_lives(self):
        return self.gpu.closed


SERVERS = {"tensorrt": TrtServer, "onnxruntime": OrtServer}


@pytest.fixture(params=SERVERS)
def server(request):
    return SERVERS[request.param](request)


def host(predictor):
    """Return what the same artifact answers with frames resized on the host."""
    return Predictor(FakeRuntime(predictor.spec))


def mixed_frames():
    wide = noise(40, 200, 3, seed=3)
    return [
        noise(90, 150, 3, seed=1),
        noise(61, 70, seed=2),  # grey
        wide[:, ::2],  # strided
        noise(64, 64, 3, seed=4),  # as large as wanted
        noise(130, 20, 3, seed=5)[::-1],
        noise(64, 64, seed=6),  # grey, as large as wanted
        noise(300, 64, 3, seed=7),
    ]


# --- answers


@needs_compiler
@pytest.mark.parametrize("source_maps", [False, True])
def test_answers_are_those_of_the_host(server, source_maps):
    """Scores and maps to the bit; maps of the frames' sizes up to float32's rounding."""
    with server.open() as predictor:
        frames = mixed_frames()
        for _ in range(3):  # plain, recorded, replayed
            found = list(predictor.stream(iter(frames), source_maps=source_maps))
            expected = list(host(predictor).stream(frames, source_maps=source_maps))
            assert len(found) == len(frames)
            for one, right in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one.score, right.score)
                assert one.anomaly_map.shape == right.anomaly_map.shape
                np.testing.assert_allclose(one.anomaly_map, right.anomaly_map, atol=3e-7)
                if not source_maps:
                    np.testing.assert_array_equal(one.anomaly_map, right.anomaly_map)
        scores = {float(one.score[0]) for one in found}
        assert len(scores) >= 6, "frames must be told apart"
    assert server.nothing_lives()


@needs_compiler
def test_the_host_resizes_nothing(server, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("resized on the host")

    with server.open() as predictor:
        monkeypatch.setattr("destseg_deploy.predictor.resize_image", refuse)
        monkeypatch.setattr("destseg_deploy.predictor.resize_map", refuse)
        answer = predictor(noise(3, 100, 90, 3), source_maps=True)
    assert answer.anomaly_map.shape == (3, 100, 90)


@needs_compiler
def test_images_of_the_inputs_size_need_one_copy_and_no_kernel(server):
    with server.open() as predictor:
        start = len(server.gpu.calls)
        answer = predictor(frames_of(2))
        names = [name for name, _ in server.gpu.calls[start:]]
    equal(answer, wanted(frames_of(2)))
    assert names.count("copy_in") == names.count("copy_out") == 1
    assert "launch" not in names


@needs_compiler
@pytest.mark.parametrize("kind", SERVERS)
def test_a_fixed_batch_is_filled_up(request, kind):
    server = SERVERS[kind](request, batch=(4, 4, 4))
    with server.open() as predictor:
        frames = mixed_frames()[:5]
        found = predictor(frames)
        equal(found, host(predictor)(frames))


@needs_compiler
@pytest.mark.parametrize("kind", SERVERS)
def test_a_camera_size_artifact_still_refuses_other_sizes(request, kind):
    server = SERVERS[kind](request, size=(64, 96), network=(64, 64))
    with server.open() as predictor:
        frame = noise(64, 96, 3)
        equal(predictor(frame), host(predictor)(frame))
        with pytest.raises(ShapeError, match="exported for 96x64"):
            predictor(noise(64, 64, 3))


@needs_compiler
def test_a_bad_frame_is_refused_after_the_answers_before_it(server):
    """As on the CPU: what was asked before is answered, then comes the error with its text."""
    with server.open() as predictor:
        frames = [*mixed_frames()[:5], noise(64, 64, 4), noise(64, 64, 3)]
        found = []
        with pytest.raises(ShapeError, match=r"got uint8 \(64, 64, 4\)"):
            found.extend(predictor.stream(frames, batch_size=1))  # keeps what came before
        answers = predictor.stream(frames, batch_size=1)
        found = [next(answers) for _ in range(5)]
        with pytest.raises(ShapeError):
            next(answers)
        for one, frame in zip(found, frames, strict=False):
            np.testing.assert_array_equal(one.score, host(predictor)(frame).score)
    assert server.nothing_lives()


@needs_compiler
def test_answers_and_frames_belong_to_the_caller(server):
    with server.open() as predictor:
        frames = mixed_frames()
        kept = [frame.copy() for frame in frames]
        first = list(predictor.stream(frames, source_maps=True))
        maps = [one.anomaly_map.copy() for one in first]
        list(predictor.stream([255 - frame for frame in frames], source_maps=True))
        for one, before in zip(first, maps, strict=True):
            np.testing.assert_array_equal(one.anomaly_map, before)
        for frame, before in zip(frames, kept, strict=True):
            np.testing.assert_array_equal(frame, before)


def test_without_a_compiler_frames_are_resized_on_the_host(server, caplog):
    server.gpu.compiler = None
    with server.open() as predictor:
        frames = mixed_frames()
        found = list(predictor.stream(frames, source_maps=True))
        for one, frame in zip(found, frames, strict=True):
            rgb = frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)
            right = FakeRuntime(predictor.spec).infer(resize_image(rgb, (64, 64))[None])
            np.testing.assert_array_equal(one.score, right.score)
            expected = resize_map(right.anomaly_map[0], frame.shape[:2])
            np.testing.assert_array_equal(one.anomaly_map[0], expected)
    assert "frames are resized on the CPU" in caplog.text


# --- the order of the work


def _trace(gpu, start):
    """Return copies in and waits of slots in order, each by the number of its batch."""
    numbers, queued, trace = {"in": 0, "out": 0}, {}, []
    for name, stream in gpu.calls[start:]:
        if name == "copy_in":
            trace.append(f"in {numbers['in']}")
            numbers["in"] += 1
        elif name == "copy_out":
            queued[stream] = numbers["out"]
            numbers["out"] += 1
        elif name == "synchronize" and stream in queued:
            trace.append(f"wait {queued.pop(stream)}")
    return trace


DOUBLE = ["in 0", "in 1", "wait 0", "in 2", "wait 1", "in 3", "wait 2", "wait 3"]
SINGLE = ["in 0", "wait 0", "in 1", "wait 1", "in 2", "wait 2", "in 3", "wait 3"]


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "options", "order"),
    [
        ("tensorrt", {"contexts": 2}, DOUBLE),
        ("tensorrt", {"contexts": 1}, SINGLE),
        ("onnxruntime", {}, DOUBLE),
    ],
)
def test_the_next_batch_is_uploaded_while_one_is_computed(request, kind, options, order):
    server = SERVERS[kind](request, **options)
    with server.open() as predictor:
        start = len(server.gpu.calls)
        list(predictor.stream(frames_of(8), batch_size=2))
        assert _trace(server.gpu, start) == order


@needs_compiler
def test_a_stream_takes_one_batch_more_than_it_has_answered(server):
    taken = []

    def camera():
        for frame in frames_of(9):
            taken.append(frame)
            yield frame

    with server.open() as predictor:
        for i, _ in enumerate(predictor.stream(camera())):
            assert len(taken) <= i // 2 * 2 + 4


@needs_compiler
def test_calls_between_the_answers_of_a_stream_are_served(server):
    with server.open() as predictor:
        expected = wanted(frames_of(8)).score
        streams = [predictor.stream(frames_of(8)) for _ in range(3)]
        for i, answers in enumerate(zip(*streams, strict=True)):
            for one in answers:
                assert one.score[0] == expected[i]
            equal(predictor(frames_of(1, 7)), wanted(frames_of(1, 7)))


@needs_compiler
def test_a_stream_that_is_left_gives_its_slots_back(server):
    with server.open() as predictor:
        for _ in range(5):
            stream = predictor.stream(frames_of(9))
            next(stream)
            stream.close()
        equal(predictor(frames_of(4)), wanted(frames_of(4)))
    assert server.nothing_lives()


@needs_compiler
def test_a_stream_that_outlives_its_runtime_refuses(server):
    predictor = server.open()
    stream = predictor.stream(frames_of(9), batch_size=1)
    next(stream)
    predictor.close()
    with pytest.raises(BackendError, match="closed"):
        list(stream)
    assert server.nothing_lives()


@needs_compiler
@pytest.mark.parametrize("ask", ["scores", "stream"])
def test_a_child_neither_uses_nor_frees_its_parents_gpu(server, monkeypatch, ask):
    frames = mixed_frames()[:3]
    with server.open() as predictor:
        right = predictor(frames)
        used = len(server.gpu.calls)
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            with pytest.raises(BackendError, match="does not work after a fork"):
                predictor(frames) if ask == "scores" else list(predictor.stream(frames))
        assert len(server.gpu.calls) == used
        equal(predictor(frames), right)
    server.fresh()
    runtime = server.open()
    used = len(server.gpu.calls)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    runtime.close()
    assert len(server.gpu.calls) == used


@needs_compiler
@pytest.mark.parametrize("source_maps", [False, True])
def test_no_failing_call_leaks_or_breaks(server, source_maps):
    """Whatever call of the GPU fails, the next answers are right and close frees everything.

    A wait that fails is left out: then CUDA's context is lost, and memory may still be in use.
    """
    frames = mixed_frames()[:3]
    with server.open() as predictor:
        opened = len(server.gpu.calls)
        expected = list(host(predictor).stream(frames, source_maps=source_maps))
        list(predictor.stream(frames, source_maps=source_maps))
        used = server.gpu.calls[opened:]
    failed = 0
    for index, (name, _) in enumerate(used):
        if name in ("synchronize", "event.synchronize") or name.endswith(("free", "close")):
            continue
        server.fresh()
        predictor = server.open()
        server.gpu.fail_at = opened + index
        try:
            list(predictor.stream(frames, source_maps=source_maps))
        except BackendError:
            failed += 1
        server.gpu.fail_at = None
        found = list(predictor.stream(frames, source_maps=source_maps))
        for one, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.score, right.score)
            np.testing.assert_allclose(one.anomaly_map, right.anomaly_map, atol=3e-7)
        predictor.close()
        assert server.nothing_lives(), (index, name)
    assert failed > 10
