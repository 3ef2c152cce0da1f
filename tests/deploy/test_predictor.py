"""Predictor: any number and size of frames, judged; through every back end the same."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from destseg_deploy.data.resize import resize_image
from destseg_deploy.errors import BackendError, DataError, DataWarning, ShapeError, SpecError
from destseg_deploy.loading import load
from destseg_deploy.options import OrtOptions
from destseg_deploy.predictor import Predictor, resize_map
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import BatchRange, ModelSpec, NetworkSpec, OutputSpec
from destseg_deploy.testing import FakeRuntime, fake_spec
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


@pytest.mark.parametrize("frame_format", [None, "rgb8"])
def test_a_camera_may_give_each_frame_in_the_same_memory(frame_format):
    predictor, frames = _predictor(1, 2, 4), _frames(5)
    buffer = np.empty_like(frames[0])

    def camera():
        for frame in frames:
            buffer[:] = frame
            yield buffer

    expected = predictor(frames).score
    for size in (1, 2, 4):
        seen = predictor.stream(camera(), batch_size=size, frame_format=frame_format)
        np.testing.assert_array_equal([one.score[0] for one in seen], expected)
    np.testing.assert_array_equal(predictor(camera(), frame_format=frame_format).score, expected)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_frames_before_one_that_is_refused_are_answered(size):
    predictor, frames = _predictor(1, 2, 4), _frames(3)

    def broken():
        yield from frames
        raise OSError("the camera is gone")

    for source, kind, words in (
        ([*frames, "gone.png", frames[0]], DataError, "gone.png"),
        (broken(), OSError, "the camera is gone"),
    ):
        seen = []
        with pytest.raises(kind, match=words):
            seen.extend(predictor.stream(source, batch_size=size))
        # list.extend keeps what came before the error.
        np.testing.assert_array_equal([one.score[0] for one in seen], predictor(frames).score)


def test_a_refused_frame_keeps_no_runtime_alive():
    """A cycle of an error and its frames would hold it, and device memory, until a collection."""
    gc.disable()
    try:
        predictor = _predictor(1, 2, 4)
        runtime = weakref.ref(predictor.runtime)
        with pytest.raises(DataError):
            predictor([_frames(1)[0], "gone.png"])
        del predictor
        assert runtime() is None
    finally:
        gc.enable()


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
    frames = [_frames(1, *size)[0] for size in ((32, 32), (40, 20), (5, 7))]
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
        (None, "NoneType"),
        (5, "int"),
        (b"frame.png", "bytes"),
        (
            np.ma.zeros((32, 32, 3), np.uint8),
            "MaskedArray.*masked pixels filled",
        ),
    ],
)
def test_what_is_no_frame_is_refused(frame, words):
    with pytest.raises(ShapeError, match=f"expected uint8.*{words}"):
        _predictor()(frame if isinstance(frame, np.ndarray) else [frame])


@pytest.mark.parametrize("call", [Predictor.__call__, lambda p, frame: list(p.stream(frame))])
@pytest.mark.parametrize("frame", [None, 5, b"frame.png", np.ma.zeros((32, 32, 3), np.uint8)])
def test_a_single_thing_that_is_no_frame_is_named(call, frame):
    with pytest.raises(ShapeError, match=f"expected uint8.*got {type(frame).__name__}"):
        call(_predictor(), frame)


def test_a_dictionary_is_no_sequence_of_frames():
    with pytest.raises(ShapeError, match=r"expected uint8.*got dict"):
        _predictor()({"frame.png": np.zeros((32, 32, 3), np.uint8)})


@pytest.mark.parametrize("batch_size", ["2", 1.5, True, 0, 17])
def test_what_is_no_batch_size_is_refused(batch_size):
    frames = [np.zeros((32, 32, 3), np.uint8)]
    with pytest.raises(ShapeError, match=f"batch_size: {batch_size!r}, expected"):
        list(_predictor().stream(frames, batch_size=batch_size))


@pytest.mark.parametrize("thing", [None, 0.5, np.zeros(1, np.float32)])
@pytest.mark.parametrize("call", [Predictor.is_anomalous, Predictor.normalized_score])
def test_what_is_no_prediction_is_not_judged(call, thing):
    with pytest.raises(ShapeError, match=f"prediction: got {type(thing).__name__}, expected"):
        call(_predictor(), thing)


def test_paths_and_pillow_images_are_frames(tmp_path):
    predictor, pixels = _predictor(), _frames(1, 40, 30)[0]
    path = tmp_path / "frame.png"
    Image.fromarray(pixels).save(path)
    wanted = predictor(pixels)
    with Image.open(path) as picture:
        kinds = [path, str(path), picture, Image.fromarray(pixels)]
        answers = [predictor(kind) for kind in kinds] + [*predictor.stream(path)]
        answers.append(predictor([pixels, path, picture]))
    for answer in answers:
        np.testing.assert_array_equal(answer.score, [wanted.score[0]] * len(answer.score))
    assert [len(answer.score) for answer in answers] == [1] * 5 + [3]


def test_files_and_pillow_images_obey_the_rules_of_files(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        _predictor()("gone.png")
    with pytest.raises(DataError, match="image: a 16-bit file whose largest value is 900"):
        _predictor()(Image.fromarray(np.full((32, 32), 900, np.uint16)))
    turned = Image.fromarray(_frames(1)[0])
    turned.getexif()[274] = 6
    with pytest.raises(DataError, match="image: orientation tag 6"):
        _predictor()(turned)


def test_one_frame_in_stream_is_one_frame():
    """Its rows are uint8 (W, 3), which would pass as small grey frames."""
    frame = _frames(1)[0]
    assert [p.score[0] for p in _predictor().stream(frame)] == [_predictor()(frame).score[0]]


@pytest.mark.parametrize("runtime", [None, "cable.onnx", 5])
def test_what_is_no_runtime_is_refused(runtime):
    with pytest.raises(BackendError, match=r"expected a runtime\. Open an artifact with destseg"):
        Predictor(runtime)


def test_a_squeeze_is_remarked_once(recwarn):
    predictor = _predictor()
    with pytest.warns(DataWarning, match="images of 200x10 pixels are resized to 32x32: one side"):
        predictor(_frames(1, 10, 200))
    predictor(_frames(2, 300, 10))  # a second warning would be an error
    Predictor(FakeRuntime(fake_spec()))(_frames(1, 20, 40))  # 2:1 is said nothing of


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
    options = OrtOptions(threads=1) if kind == "onnx_artifact" else None
    with load(request.getfixturevalue(kind), options=options) as predictor:
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


# --- answers that are none


class Answering(FakeRuntime):
    """A FakeRuntime with one value of its answer replaced."""

    def __init__(self, what, value):
        super().__init__(_spec(1, 2, 4))
        self._what, self._value = what, value

    def infer(self, images):
        answer = super().infer(images)
        getattr(answer, self._what).reshape(-1)[-1] = self._value
        return answer


WRONG = [np.nan, np.inf, -np.inf, -0.1, 1.001, 65504]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("what", ["score", "anomaly_map"])
def test_an_answer_outside_of_0_to_1_is_an_error_and_never_a_verdict(what, value):
    predictor = Predictor(Answering(what, value))
    words = f"fake.onnx: the runtime returned the {what.replace('_', ' ')} .*from 0 to 1"
    for source_maps in (False, True):
        with pytest.raises(BackendError, match=words):
            predictor(_frames(2, 40, 40), source_maps=source_maps)


@pytest.mark.parametrize("value", [0, 1, -1e-6, 1 + 1e-6])
def test_rounding_at_the_ends_is_no_error(value):
    assert Predictor(Answering("score", value))(_frames(2)).score[1] == np.float32(value)


@pytest.mark.parametrize("value", WRONG)
def test_no_verdict_is_made_of_a_score_from_elsewhere(value):
    """NaN > threshold is false: the part would be normal."""
    predictor = Predictor(FakeRuntime(replace(_spec(1, 2, 4), threshold=by_hand(0.5))))
    prediction = Prediction(np.zeros((1, 32, 32), np.float32), np.array([value], np.float32))
    for judge in (predictor.is_anomalous, predictor.normalized_score):
        with pytest.raises(BackendError, match=r"the score .*No verdict"):
            judge(prediction)


@pytest.mark.parametrize(
    "answer",
    [
        Prediction(np.zeros((2, 16, 32), np.float32), np.zeros(2, np.float32)),
        Prediction(np.zeros((1, 32, 32), np.float32), np.zeros(2, np.float32)),
        Prediction(np.zeros((2, 32, 32), np.float64), np.zeros(2, np.float32)),
        Prediction(np.zeros((2, 32, 32), np.float32), np.zeros((2, 1), np.float32)),
    ],
)
def test_answers_of_another_shape_are_refused(answer):
    predictor = _predictor(1, 2, 4)
    predictor.runtime.infer = lambda images: answer
    with pytest.raises(BackendError, match=r"the runtime returned .*, expected float32 \(2"):
        predictor(_frames(2))


def test_an_answer_of_a_device_pipeline_is_checked_too():
    """Where frames are resized on the GPU, answers do not come from ``infer``."""
    predictor = _predictor(1, 2, 4)
    wrong = Prediction(np.zeros((1, 32, 32), np.float32), np.array([np.nan], np.float32))

    class Pipeline:
        def stream(self, batches, *, source_maps):
            for batch in batches:
                yield from [wrong] * len(batch)

    predictor._pipeline = Pipeline()
    with pytest.raises(BackendError, match="the score nan"):
        predictor(_frames(1))


# --- doors


@pytest.mark.parametrize("call", [Predictor.__call__, lambda p, frame: list(p.stream(frame))])
def test_what_python_can_go_through_piece_by_piece_is_named_itself(call, tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    with (tmp_path / "a.png").open("wb+") as file:
        for thing in (memoryview(pixels), bytearray(pixels), file):
            with pytest.raises(ShapeError, match=f"got {type(thing).__name__}"):
                call(_predictor(), thing)


def test_a_set_of_frames_is_refused_because_it_has_no_order():
    for frames in ({"a.png", "b.png"}, frozenset(["a.png"])):
        with pytest.raises(ShapeError, match=r"a set has no order.*Pass a list"):
            _predictor()(frames)


@pytest.mark.parametrize("path", [None, 3, "", " ", b"x", ["x"], np.zeros(3, np.uint8)])
def test_what_is_no_path_is_not_read(path):
    with pytest.raises(DataError, match="expected the name of an image file"):
        _predictor().read(path)


def test_a_white_without_a_format_is_refused():
    """It would count for nothing, and no one would know."""
    with pytest.raises(ShapeError, match="maximum: 4095 without frame_format"):
        _predictor()(np.zeros((32, 32), np.uint8), maximum=4095)


def test_a_predictor_is_not_sent_to_another_process():
    """pickle's own words name a class of the back end, which the user has never seen."""
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(BackendError, match=r"cannot be copied or sent to another.* load it"):
            send(_predictor())
