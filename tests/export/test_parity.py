"""The parity gate, and that it bites."""

from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, DataError, ExportError, ParityError
from destseg_deploy.predictor import Predictor, resize_map
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.spec import Budget, ModelSpec, RegionSpec, TrainingRecord
from destseg_deploy.testing import FakeRuntime, fake_spec
from destseg_export.frames import given_frames, verification_frames
from destseg_export.parity import (
    BUDGETS,
    FUSION_BUDGET,
    UNFUSED,
    Parity,
    Verification,
    answer,
    check_parity,
    compare,
    measure_parity,
)


class Altered:
    """A FakeRuntime whose answers go through a function first."""

    def __init__(self, change):
        self.spec = fake_spec(64, 64)
        self._fake = FakeRuntime(self.spec)
        self._change = change

    def infer(self, images):
        answer = self._fake.infer(images)
        return self._change(answer.anomaly_map.copy(), answer.score.copy())

    def close(self):
        self._fake.close()


def _parity(change, frames) -> Parity:
    wanted = answer(Predictor(FakeRuntime(fake_spec(64, 64))), frames)
    return compare(wanted, Predictor(Altered(change)), list(frames))


def test_the_same_answers_pass(frames):
    parity = _parity(Prediction, frames)
    assert (parity.map_max_abs, parity.score_max_abs, parity.bad_values) == (0, 0, 0)
    assert parity.control > 0.1
    check_parity(parity, Budget(), "same.onnx")


def test_a_region_is_compared_on_maps_of_another_size_too(frames):
    """The map's resize carries values over the region's border; the graph sets them to 0."""
    region = RegionSpec(10, 20, 30, 40)
    plain = fake_spec(64, 64)
    spec = replace(plain, region=region, output=replace(plain.output, height=48, width=96))
    inside, outside = region.mask_at((64, 64), (64, 64)), ~region.mask_at((64, 64), (48, 96))
    wanted = answer(Predictor(FakeRuntime(plain)), frames)
    wanted = Prediction(wanted.anomaly_map * inside, wanted.score)

    class Regional(FakeRuntime):
        def infer(self, images):
            maps = images[..., 0].astype(np.float32) / np.float32(255) * inside
            maps = np.stack([resize_map(one, (48, 96)) for one in maps])
            maps[:, outside] = 0
            return Prediction(maps, FakeRuntime(plain).infer(images).score)

    parity = compare(wanted, Predictor(Regional(spec)), list(frames))
    assert (parity.map_max_abs, parity.score_max_abs) == (0, 0)


def test_rounding_at_the_ends_is_no_bad_value(frames):
    def lifted_by(step):
        return lambda maps, scores: Prediction(maps + np.float32(step), scores)

    white = [np.full_like(frames[0], 255), *frames]
    assert _parity(lifted_by(1e-6), white).bad_values == 0
    with pytest.raises(BackendError, match="expected a number from 0 to 1"):
        _parity(lifted_by(1e-4), white)


def _shift_one_pixel(maps, scores):
    maps[-1, 5, 7] = abs(maps[-1, 5, 7] - 2e-4)
    return Prediction(maps, scores)


def _shift_a_score(maps, scores):
    return Prediction(maps, scores - np.float32(2e-4))


def _nan(maps, scores):
    maps[0, 0, 0] = np.nan
    return Prediction(maps, scores)


def _too_large(maps, scores):
    return Prediction(maps, scores + 1)


def _reverse(maps, scores):
    return Prediction(maps, scores[::-1].copy())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_shift_one_pixel, "map by 2.00e-04"),
        (_shift_a_score, "score by 2.00e-04"),
        (_reverse, "ranked in the opposite order"),
    ],
)
def test_each_kind_of_error_is_refused(frames, change, words):
    with pytest.raises(ParityError, match=words):
        check_parity(_parity(change, frames), Budget(), "wrong.onnx")


@pytest.mark.parametrize("change", [_nan, _too_large])
def test_answers_that_are_no_scores_are_refused_before_they_are_compared(frames, change):
    with pytest.raises(BackendError, match=r"the runtime returned the .*, expected a number"):
        _parity(change, frames)


def test_a_wide_budget_still_sees_swapped_ranks():
    parity = Parity(3, 0.0, 0.19, 0, 0.9, (0.1, 0.2, 0.4), (0.29, 0.2, 0.4))
    assert parity.swapped_pairs(0.05) == 1
    with pytest.raises(ParityError, match="1 pairs of images ranked in the opposite order"):
        check_parity(parity, Budget(0.2, 0.09), "swapped.onnx")


def test_a_shift_of_all_pixels_is_seen_by_the_mean(frames):
    """Each pixel is within the budget, and all of them are off to the same side."""

    def shift(maps, scores):
        return Prediction(np.abs(maps - np.float32(0.01)), scores)

    # The share of a pixel's span is left out here: it would see such a shift, too.
    parity = replace(_parity(shift, frames), map_share=0.0)
    assert parity.map_max_abs <= 0.0101
    assert parity.map_mean_abs == pytest.approx(0.01, rel=0.1)
    check_parity(parity, Budget(0.02), "loose.onnx")
    with pytest.raises(ParityError, match=r"on average by 9.93e-03 \(allowed 1e-03\)"):
        check_parity(parity, Budget(0.02, map_mean=1e-3), "shifted.onnx")


def test_an_artifact_that_fails_on_single_images_only_is_seen(frames):
    """In a batch its answers are right, so that a comparison of whole batches lets it pass."""

    def alone(maps, scores):
        wrong = np.abs(maps - np.float32(0.01))  # stays in [0, 1]
        return Prediction(wrong if len(maps) == 1 else maps, scores)

    wanted = answer(Predictor(FakeRuntime(fake_spec(64, 64))), frames)
    parity = compare(wanted, Predictor(Altered(alone)), list(frames))
    assert parity.count == len(frames)
    assert parity.control > 0.1
    with pytest.raises(ParityError, match=r"from the graph before the fusions on 3 .*--without"):
        check_parity(parity, FUSION_BUDGET, "alone.onnx", UNFUSED)


def test_the_spec_keeps_what_was_measured(frames):
    parity = _parity(_shift_a_score, frames)
    record = parity.record("a.onnx", "frames", Budget(), "emulated fp16")
    assert (record.compared, record.images, record.count) == ("a.onnx", "frames", 3)
    assert (record.score_max_abs, record.control) == (parity.score_max_abs, parity.control)
    assert (record.budget, record.rounding) == (Budget(), "emulated fp16")


def _half(values):
    return values.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda maps, scores: Prediction(_half(maps), scores), "94% more of the map's values"),
        (lambda maps, scores: Prediction(maps, _half(scores)), "100% more of the scores"),
    ],
)
def test_answers_that_passed_through_half_are_refused(change, words):
    """Within a half budget, and tied."""
    noise = np.random.default_rng(3).random((6, 32, 32)).astype(np.float32)
    wanted = Prediction(noise, noise[:, 0].mean(axis=1))
    parity = measure_parity(wanted, change(noise, wanted.score))
    assert parity.map_max_abs < BUDGETS["fp16"].anomaly_map / 10
    with pytest.raises(ParityError, match="end in zero bits") as refused:
        check_parity(parity, BUDGETS["fp16"], "coarse.onnx")
    assert words in str(refused.value)
    check_parity(measure_parity(wanted, wanted), BUDGETS["fp16"], "fine.onnx")


def test_answers_that_are_coarse_in_pytorch_too_are_not_refused():
    noise = _half(np.random.default_rng(3).random((6, 32, 32), np.float32))
    wanted = Prediction(noise, noise[:, 0, 0])
    parity = measure_parity(wanted, wanted)
    assert (parity.coarse_map, parity.coarse_scores) == (0, 0)
    check_parity(parity, Budget(), "same.onnx")


def _saturated(floor):
    return lambda noise: np.where(noise < 0.9, np.float32(floor), noise)


def _small_from_cancellation(noise):
    """Values of a sigmoid that is computed as 0.5 plus something, as ONNX Runtime's is."""
    return np.where(noise < 0.9, (np.float32(0.5) + noise / 32) - np.float32(0.5), noise)


@pytest.mark.parametrize(
    "change",
    [_saturated(0.0), _saturated(2.0**-26), _saturated(1 - 2.0**-20), _small_from_cancellation],
)
def test_what_float32_sigmoids_do_near_0_and_1_says_nothing_of_a_grid(change):
    """Most pixels of a good network lie there. Screw's fp32 export had 31 % of them coarse."""
    noise = np.random.default_rng(3).random((6, 32, 32)).astype(np.float32)
    wanted = Prediction(noise, noise[:, 0].mean(axis=1))
    parity = measure_parity(wanted, Prediction(change(noise), wanted.score.round()))
    assert max(parity.coarse_map, parity.coarse_scores) < 0.1


def test_another_image_must_differ_by_more_than_the_artifact_does():
    """A budget wider than the maps themselves would let any answer pass."""
    noise = np.random.default_rng(3).random((4, 16, 16), np.float32) * np.float32(0.01)
    wanted = Prediction(noise, noise.max(axis=(1, 2)))
    off = Prediction(noise + np.float32(0.012), wanted.score)
    check_parity(measure_parity(wanted, wanted), Budget(0.1), "same.onnx")
    parity = replace(measure_parity(wanted, off), map_share=0.0)  # else the share is refused first
    with pytest.raises(ParityError, match=r"cannot tell right from wrong.*expected more than 3.0"):
        check_parity(parity, Budget(0.1), "off.onnx")


def test_each_precision_has_a_budget_and_limits_of_ones_own_replace_it():
    assert set(BUDGETS) == {"fp32", "fp16", "bf16"}
    assert Verification().budget("fp32") == Budget()
    fp16 = Verification().budget("fp16")
    assert Verification(anomaly_map=0.3).budget("fp16") == Budget(0.3, fp16.score, 1.0)
    assert Verification(score=0.2).budget("fp16") == replace(fp16, score=0.2)
    with pytest.raises(ExportError, match="precision 'int8': expected one of fp32, fp16, bf16"):
        Verification().budget("int8")


def test_images_that_cannot_tell_right_from_wrong_are_refused(frames):
    same = np.stack([frames[0]] * 3)
    with pytest.raises(ParityError, match="cannot tell right from wrong"):
        check_parity(_parity(Prediction, same), Budget(), "blind.onnx")


def test_frames_come_from_the_data_when_it_is_there(checkpoint, category):
    trained = ModelSpec.read(checkpoint)
    frames, source = given_frames(None, trained, (64, 64))
    assert (len(frames), source) == (16, "rendered images")
    trained = replace(trained, training=TrainingRecord(data=str(category)))
    frames, source = given_frames(None, trained, (96, 80))
    assert str(category) in source
    assert {frame.shape for frame in frames} == {(96, 80, 3)}


def test_one_frame_is_too_few(checkpoint, category):
    images = sorted(category.glob("train/good/*"))[:1]
    with pytest.raises(DataError, match="at least 2"):
        verification_frames(images, ModelSpec.read(checkpoint), (64, 64))
