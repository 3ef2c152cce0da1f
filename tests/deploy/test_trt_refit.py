"""TrtRuntime.refit: another category's weights, proven before they are used."""

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, ParityError, ShapeError, SpecError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.trt_refit import RefitBudget, infer_all
from destseg_deploy.spec import BatchRange, ModelSpec, OutputSpec
from tests.deploy.fake_tensorrt import Reference, engine_spec, write_engine, write_onnx
from tests.deploy.trt_cases import Bench, equal, frames_of, wanted

FRAMES = frames_of(6, seed=3)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Bench(monkeypatch, tmp_path)


def _unchanged(runtime, spec, gain=1.0):
    """Whether the old weights are in use and nothing of the attempt is left."""
    equal(runtime.infer(FRAMES[:3]), wanted(FRAMES[:3], gain))
    assert runtime.spec == spec


def test_weights_category_and_threshold_are_swapped(bench):
    runtime = bench.open()
    old = runtime.spec
    for _ in range(3):
        runtime.infer(FRAMES[:2])
    spec = runtime.refit(write_onnx(bench.folder, gain=0.5), FRAMES, wanted(FRAMES, 0.5))
    assert runtime.spec is spec
    assert (spec.category, spec.threshold.score) == ("other", 0.25)
    assert (spec.artifact, spec.input) == (old.artifact, old.input)
    assert spec.engine["onnx"] == "other.onnx"
    assert spec.parity["count"] == 6
    assert spec.parity["map_max_abs"] == 0 < spec.parity["control"]
    for turn in range(3):  # graphs are recorded anew
        equal(runtime.infer(FRAMES[:2]), wanted(FRAMES[:2], 0.5))
        assert turn < 1 or ("launch_graph", bench.gpu.calls[-2][1]) == bench.gpu.calls[-2]
    gc.collect()
    assert len(bench.library.live) == 4, "a runtime, an engine, contexts for 4 and 2 frames"
    runtime.close()
    assert bench.nothing_lives()


def test_a_reference_runtime_gives_the_expected_answers(bench):
    runtime = bench.open(contexts=1)
    runtime.refit(write_onnx(bench.folder, gain=0.25), FRAMES, Reference(0.25, engine_spec()))
    _unchanged(runtime, runtime.spec, gain=0.25)
    with pytest.raises(ParityError, match="after the swap, 6 frames differ"):
        runtime.refit(write_onnx(bench.folder, gain=0.5), FRAMES, Reference(0.25, engine_spec()))
    _unchanged(runtime, runtime.spec, gain=0.25)
    runtime.close()


def test_the_files_are_left_and_weights_may_be_swapped_again_and_back(bench):
    path = write_engine(bench.folder)
    before = path.read_bytes()
    runtime = bench.open(path)
    for gain in (0.5, 0.25, 1.0):
        onnx = write_onnx(bench.folder, gain=gain, name=f"gain-{gain}")
        runtime.refit(onnx, FRAMES, wanted(FRAMES, gain))
        _unchanged(runtime, runtime.spec, gain)
    assert path.read_bytes() == before
    runtime.close()
    assert bench.nothing_lives()


def test_wrong_answers_leave_the_old_weights_in_use(bench):
    runtime = bench.open()
    old = runtime.spec
    runtime.infer(FRAMES[:3])
    live = len(bench.gpu.live)
    onnx = write_onnx(bench.folder, gain=0.5)
    with pytest.raises(ParityError, match=r"map by .*old weights are still in use"):
        runtime.refit(onnx, FRAMES, wanted(FRAMES, 0.4))
    _unchanged(runtime, old)
    assert len(bench.gpu.live) in (live, live + 1), "at most the old plan's graph"
    runtime.close()
    assert bench.nothing_lives()


def test_the_budget_decides_and_not_a_number_passes_none(bench):
    runtime = bench.open(contexts=1)
    onnx, nearly = write_onnx(bench.folder, gain=0.5), wanted(FRAMES, 0.5)
    off = Prediction(nearly.anomaly_map + np.float32(0.02), nearly.score)
    with pytest.raises(ParityError):
        runtime.refit(onnx, FRAMES, off)
    runtime.refit(onnx, FRAMES, off, budget=RefitBudget(0.03, 0.01))
    with pytest.raises(ParityError, match="score by 5"):
        runtime.refit(onnx, FRAMES, Prediction(nearly.anomaly_map, nearly.score + np.float32(0.05)))
    one_nan = nearly.anomaly_map.copy()
    one_nan[3, 5, 7] = np.nan
    for broken, words in ((one_nan, "map by nan"), (nearly.anomaly_map[:, :9], "maps of")):
        with pytest.raises(ParityError, match=words):
            runtime.refit(onnx, FRAMES, Prediction(broken, nearly.score))
    runtime.close()


def test_frames_that_show_nothing_are_refused(bench):
    runtime = bench.open(contexts=1)
    onnx, same = write_onnx(bench.folder), np.repeat(FRAMES[:1], 3, axis=0)
    with pytest.raises(ParityError, match="cannot tell right from wrong"):
        runtime.refit(onnx, same, wanted(same, 0.5))
    with pytest.raises(ShapeError, match="1 frames, expected at least 2"):
        runtime.refit(onnx, FRAMES[:1], wanted(FRAMES[:1], 0.5))
    with pytest.raises(ShapeError, match="5 answers to 6 frames"):
        runtime.refit(onnx, FRAMES, wanted(FRAMES[:5], 0.5))
    with pytest.raises(ShapeError, match="--input-size"):
        runtime.refit(onnx, FRAMES[:, :32], wanted(FRAMES, 0.5))
    _unchanged(runtime, runtime.spec)
    runtime.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "fp16"}, "precision is fp16, the engine fake.engine has fp32"),
        ({"output": OutputSpec(64, 64, top_k=5)}, "output is .*top_k=5"),
        ({"output": OutputSpec(32, 64, top_k=4)}, "output is"),
        ({"kind": "checkpoint"}, "its spec says checkpoint, expected onnx"),
        ({"input": engine_spec((32, 64)).input}, r"input is \('image', 32, 64\)"),
        ({"network": replace(engine_spec().network, mean=(0.0, 0.0, 0.0))}, "network is"),
    ],
)
def test_weights_of_another_graph_are_refused(bench, change, words):
    runtime = bench.open()
    with pytest.raises(SpecError, match=words):
        runtime.refit(write_onnx(bench.folder, **change), FRAMES, wanted(FRAMES, 0.5))
    _unchanged(runtime, runtime.spec)
    runtime.close()


def test_files_that_are_no_fitting_onnx_are_refused(bench):
    runtime = bench.open()
    with pytest.raises(SpecError, match=r"expected the \.onnx.*--precision fp32"):
        runtime.refit(bench.folder / "cable.safetensors", FRAMES, wanted(FRAMES))
    with pytest.raises(SpecError, match="no spec"):
        runtime.refit(bench.folder / "missing.onnx", FRAMES, wanted(FRAMES))
    onnx = write_onnx(bench.folder)
    onnx.write_bytes(b"x")
    with pytest.raises(SpecError, match="damaged"):
        runtime.refit(onnx, FRAMES, wanted(FRAMES))
    strange = write_onnx(bench.folder, weights={"gain": 0.5, "bias": 1})
    with pytest.raises(BackendError, match=r"fake\.engine: the weights do not fit"):
        runtime.refit(strange, FRAMES, wanted(FRAMES))
    _unchanged(runtime, runtime.spec)
    runtime.close()
    assert bench.nothing_lives()


def test_an_engine_that_was_not_built_for_it_says_so(bench):
    runtime = bench.open(write_engine(bench.folder, refittable=False))
    with pytest.raises(BackendError, match=r"fake\.engine: the engine is not refittable"):
        runtime.refit(write_onnx(bench.folder), FRAMES, wanted(FRAMES, 0.5))
    _unchanged(runtime, runtime.spec)
    runtime.close()
    assert bench.nothing_lives()


def test_an_engine_file_that_changed_meanwhile_is_not_opened(bench):
    path = write_engine(bench.folder)
    runtime = bench.open(path)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        runtime.refit(write_onnx(bench.folder), FRAMES, wanted(FRAMES, 0.5))
    _unchanged(runtime, runtime.spec)
    runtime.close()


def test_no_failing_call_of_a_swap_leaks_or_harms(bench):
    path, onnx = write_engine(bench.folder), write_onnx(bench.folder)
    few = FRAMES[:2]
    runtime = bench.open(path, contexts=1)
    runtime.infer(few)
    before = len(bench.gpu.calls)
    runtime.refit(onnx, few, wanted(few, 0.5))
    after = len(bench.gpu.calls)
    runtime.close()
    failed = 0
    for index in range(before, after):
        bench.fresh()
        runtime = bench.open(path, contexts=1)
        runtime.infer(few)
        bench.gpu.fail_at = index
        old, gain = runtime.spec, 0.5
        try:
            runtime.refit(onnx, few, wanted(few, 0.5))
        except BackendError:
            failed += 1
            gain = 1.0
            assert runtime.spec == old
        bench.gpu.fail_at = None
        equal(runtime.infer(few), wanted(few, gain))
        runtime.close()
        assert bench.nothing_lives(), (index, bench.gpu.calls[index])
    assert failed > 10


def test_calls_go_on_while_weights_are_swapped(bench):
    """Each answer is wholly of the old weights or wholly of the new, and none fails."""
    runtime = bench.open(contexts=2)
    onnx = {gain: write_onnx(bench.folder, gain=gain, name=f"g{gain}") for gain in (0.5, 1.0)}
    allowed = [wanted(FRAMES[:2], gain).score.tolist() for gain in (0.5, 1.0)]
    stop, found, errors = threading.Event(), [], []

    def serve():
        while not stop.is_set():
            try:
                found.append(runtime.infer(FRAMES[:2]).score.tolist())
            except Exception as error:  # any one fails the test
                errors.append(error)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for gain in (0.5, 1.0) * 5:
        runtime.refit(onnx[gain], FRAMES[:2], wanted(FRAMES[:2], gain))
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not errors
    assert all(score in allowed for score in found)
    assert {tuple(score) for score in found} == {tuple(score) for score in allowed}
    runtime.close()
    assert bench.nothing_lives()


def test_a_call_that_comes_upon_the_old_engine_is_served_by_the_new(bench):
    runtime = bench.open(contexts=1)
    onnx, old = write_onnx(bench.folder), runtime._pool
    real = old.take

    def take(*, wait):
        bench.monkeypatch.setattr(old, "take", real)
        runtime.refit(onnx, FRAMES, wanted(FRAMES, 0.5))
        return real(wait=wait)

    bench.monkeypatch.setattr(old, "take", take)
    equal(runtime.infer(FRAMES[:1]), wanted(FRAMES[:1], 0.5))
    runtime.close()
    assert bench.nothing_lives()


def test_a_call_that_waits_for_the_old_engine_is_served_by_the_new(bench):
    runtime = bench.open(contexts=1)
    lease, found = runtime._take(), []
    waiting = threading.Thread(target=lambda: found.append(runtime.infer(FRAMES[:1])))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "the only slot is taken"
    runtime.refit(write_onnx(bench.folder), FRAMES, wanted(FRAMES, 0.5))
    waiting.join(20)
    assert not waiting.is_alive()
    equal(found[0], wanted(FRAMES[:1], 0.5))
    assert len([t for t in bench.library.live if type(t).__name__ == "Engine"]) == 2
    runtime._return(lease)
    assert len([t for t in bench.library.live if type(t).__name__ == "Engine"]) == 1
    runtime.close()
    assert bench.nothing_lives()


def test_a_stream_that_runs_during_a_swap_ends_its_batches_with_the_old_weights(bench):
    runtime = bench.open(contexts=2)
    stream = runtime.stream(FRAMES[i : i + 1] for i in range(4))
    found = [next(stream)]
    runtime.refit(write_onnx(bench.folder), FRAMES, wanted(FRAMES, 0.5))
    found += list(stream)
    for i, gain in enumerate((1, 1, 0.5, 0.5)):
        equal(found[i], wanted(FRAMES[i : i + 1], gain))
    gc.collect()
    assert len([t for t in bench.library.live if type(t).__name__ == "Engine"]) == 1
    runtime.close()
    assert bench.nothing_lives()


def test_a_closed_runtime_refuses(bench):
    runtime = bench.open()
    runtime.close()
    with pytest.raises(BackendError, match="closed"):
        runtime.refit(write_onnx(bench.folder), FRAMES, wanted(FRAMES))


def test_frames_beyond_a_batch_are_cut_and_filled_up():
    sizes = []
    spec: ModelSpec = engine_spec(batch=(3, 3, 4))

    def infer(images):
        sizes.append(len(images))
        return wanted(images)

    equal(infer_all(infer, spec, FRAMES[:5]), wanted(FRAMES[:5]))
    assert sizes == [4, 3]
    assert spec.input.batch == BatchRange(3, 3, 4)
