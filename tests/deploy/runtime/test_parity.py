"""The gate of half runtimes: near is used, far is refused, and what shows nothing is refused."""

from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.data.images import read_image
from destseg_deploy.errors import DataError, ParityError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.parity import (
    check_difference,
    check_runtime,
    measure_difference,
    parity_frames,
)
from destseg_deploy.spec import TrainingRecord
from destseg_deploy.testing import FakeRuntime, fake_spec

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)


class Off(FakeRuntime):
    """Answers as the fake does, and then changes them."""

    def __init__(self, change, precision="fp16"):
        super().__init__(replace(fake_spec(), precision=precision))
        self._change = change

    def infer(self, images):
        answer = super().infer(images)
        return Prediction(self._change(answer.anomaly_map), answer.score)


def test_what_is_near_is_used_and_what_was_measured_is_returned():
    found = check_runtime(FakeRuntime(fake_spec()), Off(lambda maps: maps + 1e-4), FRAMES)
    assert found.map_max_abs == pytest.approx(1e-4, rel=1e-2)
    assert found.score_max_abs == 0
    assert found.control > 0.1


def _one_pixel(maps):
    maps = maps.copy()
    maps[:, 3, 3] += 0.011
    return maps


@pytest.mark.parametrize(
    "change",
    [
        _one_pixel,
        lambda maps: maps + 6e-4,  # within the largest, beyond the mean
        lambda maps: np.where(maps > 0.9, np.nan, maps),
        lambda maps: np.zeros_like(maps),
        lambda maps: maps[:, ::-1],
    ],
)
def test_what_is_far_is_refused(change):
    with pytest.raises(ParityError, match=r"fp16 differs from float32: map by .*'fp32' or 'bf16'"):
        check_runtime(FakeRuntime(fake_spec()), Off(change), FRAMES)


@pytest.mark.parametrize(
    ("precision", "advice"),
    [
        ("fp32", "Use another back end."),  # "Use precision 'fp32'" was said of fp32
        ("tf32", "Leave TF32 off."),
        ("bf16", "Use precision 'fp32'."),
    ],
)
def test_the_advice_is_another_choice_than_the_one_refused(precision, advice):
    far = measure_difference(*(Prediction(np.full((2, 4, 4), x), np.full(2, x)) for x in (0, 1)))
    with pytest.raises(ParityError) as refused:
        check_difference(far, precision, "openvino")
    assert str(refused.value).endswith(f"). {advice}")


def test_a_precision_has_its_own_budget():
    near = Off(_one_pixel, "bf16")
    check_runtime(FakeRuntime(fake_spec()), near, FRAMES)


def test_frames_that_cannot_tell_right_from_wrong_are_refused():
    same = np.repeat(FRAMES[:1], 3, axis=0)
    with pytest.raises(ParityError, match=r"cannot tell right from wrong.*verify_images"):
        check_runtime(FakeRuntime(fake_spec()), Off(lambda maps: maps), same)


def test_scores_count_too():
    answer = FakeRuntime().infer(FRAMES)
    found = measure_difference(answer, Prediction(answer.anomaly_map, answer.score + 0.1))
    assert found.score_max_abs == pytest.approx(0.1, rel=1e-5)
    assert found.map_max_abs == 0


def test_frames_come_from_the_folder_the_training_or_are_drawn(category, tmp_path):
    spec = fake_spec()
    drawn = parity_frames(spec, None)
    assert drawn.shape == (8, 32, 32, 3)
    assert len(np.unique(drawn.reshape(8, -1), axis=0)) == 8
    trained = replace(spec, training=TrainingRecord(recipe="quick", data=str(category)))
    tested = parity_frames(trained, None)
    assert not np.array_equal(tested, drawn)
    np.testing.assert_array_equal(parity_frames(trained, category / "test"), tested)
    gone = replace(spec, training=TrainingRecord(recipe="quick", data=str(tmp_path / "gone")))
    np.testing.assert_array_equal(parity_frames(gone, None), drawn)


def test_a_folder_without_two_images_is_refused(category, tmp_path):
    with pytest.raises(DataError, match="no images there"):
        parity_frames(fake_spec(), tmp_path)
    one = next((category / "test" / "good").iterdir())
    (tmp_path / one.name).write_bytes(one.read_bytes())
    assert read_image(tmp_path / one.name).shape
    with pytest.raises(ParityError, match="1 image to compare on, expected at least 2"):
        parity_frames(fake_spec(), tmp_path)
