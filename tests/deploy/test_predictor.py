"""Predictor: any number and size of frames, judged; and ``load``, which refuses clearly."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import BackendError, ShapeError, SpecError
from destseg_deploy.predictor import EngineOptions, Predictor, load, resize_map
from destseg_deploy.runtime.cpu_options import OpenVinoOptions, OrtCpuOptions
from destseg_deploy.runtime.fake import FakeRuntime, fake_spec
from destseg_deploy.spec import BatchRange, ModelSpec, NetworkSpec, OutputSpec, spec_path
from destseg_deploy.thresholds import by_hand


class Recording(FakeRuntime):
    """A FakeRuntime that remembers how many images each call had."""

    def __init__(self, spec):
        super().__init__(spec)
        self.calls = []

    def infer(self, images):
        self.calls.append(len(images))
        return super().infer(images)


def _spec(*batch: int, size: tuple[int, int] = (32, 32)) -> ModelSpec:
    spec = fake_spec(*size)
    return replace(spec, input=replace(spec.input, batch=BatchRange(*batch)))


def _predictor(*batch: int, size: tuple[int, int] = (32, 32)) -> Predictor:
    return Predictor(Recording(_spec(*batch or (1, 2, 4), size=size)))


def _frames(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


# --- any number of frames


@pytest.mark.parametrize(
    ("batch", "count", "calls"),
    [
        ((1, 1, 4), 3, [1, 1, 1]),
        ((1, 4, 4), 11, [4, 4, 3]),
        ((1, 2, 4), 1, [1]),
        ((2, 2, 4), 1, [2]),
        ((2, 2, 4), 5, [2, 2, 2]),
        ((3, 3, 3), 4, [3, 3]),
        ((4, 4, 8), 9, [4, 4, 4]),
    ],
)
def test_any_number_is_cut_into_batches_and_filled_up(batch, count, calls):
    predictor, frames = _predictor(*batch), _frames(count)
    answer = predictor(frames)
    assert predictor.runtime.calls == calls
    red = frames[..., 0].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(answer.anomaly_map, red)
    largest = np.sort(red.reshape(count, -1), axis=1)[:, -4:]
    np.testing.assert_allclose(answer.score, largest.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("batch", [(1, 1, 4), (1, 3, 4), (2, 2, 4), (4, 4, 4)])
def test_one_by_one_gives_what_all_together_give(batch):
    predictor, frames = _predictor(*batch), _frames(7)
    together = predictor(frames)
    alone = [predictor(frame) for frame in frames]
    np.testing.assert_array_equal([a.score[0] for a in alone], together.score)
    np.testing.assert_array_equal([a.anomaly_map[0] for a in alone], together.anomaly_map)


def test_stream_yields_each_frame_and_reads_no_further_than_a_batch():
    predictor, taken = _predictor(1, 2, 4), []

    def camera():
        for frame in _frames(5):
            taken.append(frame)
            yield frame

    seen = []
    for prediction in predictor.stream(camera()):
        seen.append(prediction)
        assert len(taken) <= len(seen) + 1
        assert prediction.anomaly_map.shape == (1, 32, 32)
        assert prediction.score.shape == (1,)
    np.testing.assert_array_equal([s.score[0] for s in seen], predictor(_frames(5)).score)


def test_batch_size_may_be_chosen_within_the_artifacts():
    predictor = _predictor(2, 2, 4)
    assert len(list(predictor.stream(_frames(7), batch_size=4))) == 7
    assert predictor.runtime.calls == [4, 3]
    predictor.runtime.calls.clear()
    assert len(list(predictor.stream(_frames(3), batch_size=1))) == 3
    assert predictor.runtime.calls == [2, 2]


@pytest.mark.parametrize("size", [0, -1, 5])
def test_other_batch_sizes_are_refused(size):
    with pytest.raises(ShapeError, match=f"batch_size: {size}, expected 1 to 4"):
        list(_predictor(2, 2, 4).stream(_frames(1), batch_size=size))


@pytest.mark.parametrize("none", [[], np.zeros((0, 32, 32, 3), np.uint8)])
def test_no_frames_are_refused(none):
    with pytest.raises(ShapeError, match="none were passed"):
        _predictor()(none)


# --- any form and size of frames


def test_frames_of_any_size_are_resized_with_the_resize():
    frame = _frames(1, 70, 45)[0]
    answer = _predictor()(frame)
    expected = resize_image(frame, (32, 32))[..., 0] / np.float32(255)
    np.testing.assert_array_equal(answer.anomaly_map[0], expected)


def test_a_list_of_mixed_sizes_is_one_batch():
    predictor = _predictor(1, 4, 4)
    frames = [_frames(1, *size)[0] for size in ((32, 32), (64, 20), (5, 7))]
    frames.append(frames[0][..., 0])
    answer = predictor(frames)
    assert predictor.runtime.calls == [4]
    assert answer.anomaly_map.shape == (4, 32, 32)
    np.testing.assert_array_equal(answer.score, [predictor(frame).score[0] for frame in frames])


def test_grey_frames_are_read_as_grey():
    grey = _frames(1)[0, ..., 1]
    answer = _predictor()(grey)
    np.testing.assert_array_equal(answer.anomaly_map[0], grey / np.float32(255))
    rgb = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(answer.score, _predictor()(rgb).score)


def test_strided_frames_are_read_as_they_are_seen():
    frame = _frames(1, 32, 64)[0]
    every_second = frame[:, ::2]
    np.testing.assert_array_equal(
        _predictor()(every_second).score, _predictor()(every_second.copy()).score
    )


def test_a_camera_size_artifact_refuses_other_sizes_with_the_way_out():
    """Resizing twice would change the scores, so nothing is resized here."""
    camera = replace(_spec(1, 2, 4, size=(48, 80)), network=NetworkSpec(32, 32))
    predictor = Predictor(Recording(camera))
    assert not predictor.resizes
    assert predictor(_frames(2, 48, 80)).score.shape == (2,)
    with pytest.raises(
        ShapeError, match=r"60x50 pixels.* for 80x48\. Export with --input-size 50x60, or without"
    ):
        predictor(_frames(1, 50, 60))
    with pytest.raises(ShapeError, match="exported for 80x48"):
        predictor(_frames(1, 32, 32))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((32, 32, 3), np.float32), r"got float32 \(32, 32, 3\).*in \[0, 255\]"),
        (np.zeros((32, 32, 3), np.uint16), "got uint16"),
        (np.zeros((32, 32, 4), np.uint8), r"got uint8 \(32, 32, 4\)"),
        (np.zeros((3, 32, 32), np.uint8), r"got uint8 \(3, 32, 32\)"),
        (np.zeros((0, 32, 3), np.uint8), r"got uint8 \(0, 32, 3\)"),
        (np.zeros(32, np.uint8), r"got uint8 \(32,\)"),
        ([[1, 2, 3]], "list"),
        ("frame.png", "str"),
    ],
)
def test_what_is_no_frame_is_refused(frame, words):
    with pytest.raises(ShapeError, match=f"expected uint8.*{words}"):
        _predictor()(frame if isinstance(frame, np.ndarray) else [frame])


def test_float_batches_and_five_axes_are_refused():
    with pytest.raises(ShapeError, match="float64"):
        _predictor()(_frames(2) / 255)
    with pytest.raises(ShapeError, match="expected uint8"):
        _predictor()(_frames(2)[None])


# --- maps


def test_source_maps_have_the_frames_size():
    predictor = _predictor(1, 4, 4)
    small, large = _frames(1)[0], _frames(1, 90, 45)[0]
    singles = list(predictor.stream([small, large], source_maps=True))
    assert [s.anomaly_map.shape for s in singles] == [(1, 32, 32), (1, 90, 45)]
    plain = predictor(large)
    expected = resize_map(plain.anomaly_map[0], (90, 45))
    np.testing.assert_array_equal(singles[1].anomaly_map[0], expected)
    np.testing.assert_array_equal(singles[1].score, plain.score)
    assert predictor([large, large], source_maps=True).anomaly_map.shape == (2, 90, 45)


def test_source_maps_of_mixed_sizes_do_not_stack():
    frames = [_frames(1)[0], _frames(1, 90, 45)[0]]
    with pytest.raises(ShapeError, match=r"of 2 sizes.*Predictor\.stream"):
        _predictor()(frames, source_maps=True)


def test_source_maps_of_an_artifact_with_maps_of_its_own_size():
    spec = replace(_spec(1, 2, 4), output=OutputSpec(16, 24, top_k=4))
    predictor, frames = Predictor(FakeRuntime(spec)), _frames(2, 64, 48)
    assert predictor(frames).anomaly_map.shape == (2, 16, 24)
    assert predictor(frames, source_maps=True).anomaly_map.shape == (2, 64, 48)


def test_resize_map_keeps_place_and_range():
    ramp = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (4, 1))
    large = resize_map(ramp, (40, 80))
    assert (large.shape, large.dtype) == ((40, 80), np.float32)
    assert (large.min(), large.max()) == (0, 1)
    np.testing.assert_allclose(large, np.flip(1 - large, axis=1), atol=1e-6)  # not shifted
    assert (np.diff(large[0]) >= 0).all()
    assert resize_map(ramp, (4, 8)) is ramp


def test_answers_belong_to_the_caller():
    predictor, frames = _predictor(), _frames(3)
    for source_maps in (False, True):
        first = predictor(frames, source_maps=source_maps)
        kept = first.anomaly_map.copy(), first.score.copy()
        predictor(255 - frames, source_maps=source_maps)
        np.testing.assert_array_equal(first.anomaly_map, kept[0])
        np.testing.assert_array_equal(first.score, kept[1])
        first.anomaly_map[:] = 0
        first.score[:] = 0
        np.testing.assert_array_equal(predictor(frames).score, kept[1])


def test_frames_are_not_changed():
    frames = _frames(3)
    kept = frames.copy()
    _predictor(4, 4, 4)(frames)
    np.testing.assert_array_equal(frames, kept)


# --- judging


def _judging(limit: float) -> Predictor:
    return Predictor(FakeRuntime(replace(_spec(1, 2, 4), threshold=by_hand(limit))))


def test_only_scores_above_the_threshold_are_anomalous():
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    frames[:] = np.array([50, 51, 52])[:, None, None, None]
    predictor = _judging(51 / 255)
    answer = predictor(frames)
    assert answer.score[1] == np.float32(51 / 255)
    assert predictor.is_anomalous(answer).tolist() == [False, False, True]
    normalized = predictor.normalized_score(answer)
    assert normalized.dtype == np.float32
    assert normalized[1] == 0.5
    assert normalized[0] < 0.5 < normalized[2]


def test_a_score_equal_to_a_threshold_that_float32_rounds_up_is_normal():
    predictor = _judging(0.1)
    answer = replace(predictor(_frames(1)), score=np.array([0.1], np.float32))
    assert float(answer.score[0]) > 0.1, "else this test shows nothing"
    assert not predictor.is_anomalous(answer)[0]


def test_without_a_threshold_nothing_is_judged():
    predictor = _predictor()
    answer = predictor(_frames(1))
    for judge in (predictor.is_anomalous, predictor.normalized_score):
        with pytest.raises(SpecError, match=r"fake\.onnx: no threshold.*destseg-threshold"):
            judge(answer)


# --- life


def test_with_closes_and_a_closed_predictor_refuses():
    with _predictor() as predictor:
        predictor(_frames(1))
    with pytest.raises(BackendError, match="closed"):
        predictor(_frames(1))
    predictor.close()


def test_with_closes_after_an_error_too():
    predictor = _predictor()
    with pytest.raises(ShapeError), predictor:
        predictor([])
    with pytest.raises(BackendError, match="closed"):
        predictor(_frames(1))


@pytest.mark.parametrize("kind", ["checkpoint", "onnx_artifact"])
def test_a_predictor_may_be_shared_by_threads(request, kind):
    frames = [_frames(1, 64 + 8 * (i % 3), 64)[0] for i in range(8)]
    with load(request.getfixturevalue(kind), threads=1) as predictor:
        alone = [predictor(frame, source_maps=True) for frame in frames]
        assert len({float(a.score[0]) for a in alone}) > 2, "frames must be told apart"
        with ThreadPoolExecutor(8) as pool:
            shared = list(pool.map(lambda f: predictor(f, source_maps=True), frames))
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_allclose(b.score, a.score, atol=2e-6)
        np.testing.assert_allclose(b.anomaly_map, a.anomaly_map, atol=2e-6)


def test_checkpoint_and_export_agree(checkpoint, onnx_artifact):
    frames = _frames(5, 100, 80)
    with load(str(checkpoint)) as reference, load(str(onnx_artifact)) as served:
        wanted, found = reference(frames), served(frames)
        assert reference.spec.threshold == served.spec.threshold
    assert np.abs(found.score - wanted.score).max() < 1e-4
    assert np.abs(found.anomaly_map - wanted.anomaly_map).max() < 1e-4
    # The same bound tells one frame's answer from another's.
    assert np.abs(np.roll(found.score, 1) - wanted.score).min() > 1e-4
    assert np.abs(np.roll(found.anomaly_map, 1, axis=0) - wanted.anomaly_map).max() > 1e-2


# --- load


def test_load_refuses_a_missing_file(tmp_path):
    for path in (tmp_path / "no.onnx", str(tmp_path / "no.safetensors"), tmp_path):
        with pytest.raises(BackendError, match="no such file"):
            load(path)


@pytest.mark.parametrize("name", ["model.plan", "model.json", "model", "model.ONNX"])
def test_load_refuses_an_unknown_kind(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BackendError, match="unknown kind of artifact"):
        load(tmp_path / name)


@pytest.mark.parametrize("kind", ["checkpoint", "onnx_artifact"])
def test_load_refuses_an_artifact_without_its_spec(request, tmp_path, kind):
    source = request.getfixturevalue(kind)
    lonely = tmp_path / source.name
    lonely.symlink_to(source)
    with pytest.raises(SpecError, match=r"no spec .*\.json beside it"):
        load(lonely)


def test_load_refuses_the_spec_of_another_model(checkpoint, onnx_artifact, tmp_path):
    (tmp_path / "cable.safetensors").symlink_to(checkpoint)
    shutil.copy(spec_path(onnx_artifact), tmp_path / "cable.json")
    with pytest.raises(SpecError, match=r"cable-fp32\.onnx.*not a checkpoint"):
        load(tmp_path / "cable.safetensors")
    (tmp_path / "cable.onnx").symlink_to(onnx_artifact)
    shutil.copy(spec_path(checkpoint), tmp_path / "cable.json")
    with pytest.raises(SpecError, match="mixed up"):
        load(tmp_path / "cable.onnx")


def test_load_never_runs_on_the_cpu_what_was_asked_of_a_gpu(checkpoint, onnx_artifact, monkeypatch):
    """Whatever this machine has, what the back ends say is there decides."""
    torch = pytest.importorskip("torch")
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device in ("cuda", "cuda:1"):
        with pytest.raises(BackendError, match=f"device '{device}'.*sees no CUDA GPU"):
            load(checkpoint, device=device)
        with pytest.raises(BackendError, match=f"device '{device}(:0)?'.*no CUDAExecutionProvider"):
            load(onnx_artifact, device=device)


@pytest.mark.parametrize("device", ["tpu", "gpu", "CPU", "cuda:", "cuda:x", "cuda0", ""])
@pytest.mark.parametrize("kind", ["checkpoint", "onnx_artifact"])
def test_load_refuses_a_device_it_does_not_know(request, kind, device):
    with pytest.raises(BackendError, match="expected cpu, cuda or cuda:<index>"):
        load(request.getfixturevalue(kind), device=device)


def test_load_gives_tensorrt_of_onnx_runtime_to_onnx_alone(checkpoint, onnx_artifact, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"runs \.onnx only; cable\.safetensors is none"):
        load(checkpoint, device="tensorrt")
    with pytest.raises(BackendError, match=r"device 'tensorrt:0'.*no TensorrtExecutionProvider"):
        load(onnx_artifact, device="tensorrt")


# --- load a graph on a CPU


def test_openvino_serves_frames_as_onnx_runtime_does(onnx_artifact):
    """Any number and size, maps of the frames' size, verdicts: the same through both."""
    pytest.importorskip("openvino")
    frames = [_frames(1, *size)[0] for size in ((64, 64), (90, 45), (33, 70), (64, 64), (20, 20))]
    answers = {}
    for device in (None, "openvino"):
        with load(onnx_artifact, device=device, threads=1) as predictor:
            singles = list(predictor.stream(frames, source_maps=True))
            answers[device] = singles, [bool(predictor.is_anomalous(s)[0]) for s in singles]
            with pytest.raises(ShapeError, match="expected uint8"):
                predictor(frames[0] / 255)
    (wanted, judged), (found, verdicts) = answers[None], answers["openvino"]
    assert judged == verdicts
    for a, b in zip(wanted, found, strict=True):
        assert a.anomaly_map.shape == b.anomaly_map.shape
        assert np.abs(a.anomaly_map - b.anomaly_map).max() < 1e-4
        assert np.abs(a.score - b.score).max() < 1e-4
    scores = np.array([s.score[0] for s in wanted])
    assert np.abs(scores - np.roll(scores, 1)).max() > 1e-3, "control: frames are told apart"


def test_options_reach_openvino(onnx_artifact, monkeypatch, tmp_path):
    asked = []

    class Stop(Exception):
        pass

    def record(*arguments, **options):
        asked.append((arguments, options))
        raise Stop

    monkeypatch.setattr("destseg_deploy.runtime.openvino_runtime.OpenVinoRuntime", record)
    chosen = {"precision": "bf16", "hint": "throughput", "streams": 3, "pinning": False}
    chosen["cache"] = tmp_path
    for openvino in (None, OpenVinoOptions(**chosen)):
        with pytest.raises(Stop):
            load(onnx_artifact, device="openvino", threads=2, openvino=openvino)
    plain = {"precision": "fp32", "hint": "latency", "streams": 0, "pinning": None, "cache": None}
    assert asked == [
        ((onnx_artifact,), {"threads": 2, **plain}),
        ((onnx_artifact,), {"threads": 2, **chosen}),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8"}, "precision 'int8': expected fp32 or bf16"),
        ({"hint": "fast"}, "hint 'fast': expected latency or throughput"),
        ({"streams": -1}, "streams: -1, expected 0 or more"),
    ],
)
def test_load_refuses_nonsense_for_openvino(onnx_artifact, options, words):
    with pytest.raises(BackendError, match=words):
        load(onnx_artifact, device="openvino", openvino=OpenVinoOptions(**options))


def test_load_refuses_threads_below_zero(onnx_artifact):
    for device in ("cpu", "openvino"):
        with pytest.raises(BackendError, match="threads: -1, expected 0 or more"):
            load(onnx_artifact, device=device, threads=-1)


def test_options_of_onnx_runtime_reach_it(onnx_artifact):
    pytest.importorskip("onnxruntime")
    options = OrtCpuOptions(worker_cores=(10_000,))
    for device in (None, "cpu"):
        with pytest.raises(BackendError, match=r"worker_cores \(10000,\): this process may not"):
            load(onnx_artifact, device=device, ort_cpu=options)


@pytest.mark.parametrize(
    ("kind", "device", "options", "words"),
    [
        ("onnx_artifact", "openvino", {"ort_cpu": OrtCpuOptions()}, r"for \.onnx on device 'cpu'"),
        ("onnx_artifact", "cuda", {"ort_cpu": OrtCpuOptions()}, r"for \.onnx on device 'cpu'"),
        ("checkpoint", None, {"ort_cpu": OrtCpuOptions()}, r"for \.onnx on device 'cpu'"),
        ("onnx_artifact", None, {"openvino": OpenVinoOptions()}, "but the device is 'cpu'"),
        ("onnx_artifact", "cuda:1", {"openvino": OpenVinoOptions()}, "the device is 'cuda:1'"),
        ("checkpoint", None, {"openvino": OpenVinoOptions()}, "Pass device 'openvino', or drop"),
        ("checkpoint", "openvino", {}, r"runs \.onnx only; cable\.safetensors is none"),
        ("onnx_artifact", "openvino:0", {}, "or openvino for .onnx"),
    ],
)
def test_options_of_another_back_end_are_refused(request, kind, device, options, words):
    with pytest.raises(BackendError, match=words):
        load(request.getfixturevalue(kind), device=device, **options)


def test_openvino_missing_names_the_extra(onnx_artifact, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'destseg-deploy\[openvino\]'"):
        load(onnx_artifact, device="openvino")


# --- load an engine


@pytest.fixture
def bench(monkeypatch, tmp_path):
    from tests.deploy.trt_cases import Bench

    return Bench(monkeypatch, tmp_path)


def test_an_engine_is_loaded_on_a_gpu_and_serves_frames(bench):
    from tests.deploy.fake_tensorrt import write_engine
    from tests.deploy.trt_cases import frames_of, wanted

    frames = frames_of(7)
    with load(write_engine(bench.folder)) as predictor:
        answer = predictor(frames)
        assert predictor.is_anomalous(answer).dtype == bool
    np.testing.assert_array_equal(answer.score, wanted(frames).score)
    np.testing.assert_array_equal(answer.anomaly_map, wanted(frames).anomaly_map)
    assert bench.nothing_lives()


def test_engine_options_reach_the_runtime(bench, monkeypatch):
    from tests.deploy.fake_tensorrt import write_engine

    asked = []
    gpu = bench.gpu
    monkeypatch.setattr(
        "destseg_deploy.runtime.trt.open_device",
        lambda device, *, binding: asked.append((device, binding)) or gpu,
    )
    options = EngineOptions(binding="pycuda", contexts=3, cuda_graph=False)
    with load(write_engine(bench.folder), device="cuda:1", engine=options) as predictor:
        assert asked == [("cuda:1", "pycuda")]
        assert [name for name, _ in gpu.calls].count("stream") == 3
        for _ in range(3):
            predictor(_frames(1, 64, 64))
    assert "begin_capture" not in [name for name, _ in gpu.calls]


def test_an_engine_never_runs_on_a_cpu(bench):
    from tests.deploy.fake_tensorrt import write_engine

    with pytest.raises(BackendError, match=r"device 'cpu': fake\.engine .* runs on a GPU only"):
        load(write_engine(bench.folder), device="cpu")
    with pytest.raises(BackendError, match=r"device 'openvino': runs \.onnx only; fake\.engine"):
        load(write_engine(bench.folder), device="openvino")


@pytest.mark.parametrize("kind", ["checkpoint", "onnx_artifact"])
def test_engine_options_are_refused_where_nothing_reads_them(request, kind):
    with pytest.raises(BackendError, match=r"engine options were given, but it is no \.engine"):
        load(request.getfixturevalue(kind), engine=EngineOptions())
