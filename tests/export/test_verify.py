"""The parity gate, and that it bites."""

from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.errors import DataError, ParityError
from destseg_deploy.predictor import Predictor
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.fake import FakeRuntime, fake_spec
from destseg_export.verify import Budget, Parity, check_parity, compare, verification_frames


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
    reference = Predictor(FakeRuntime(fake_spec(64, 64)))
    return compare(reference, Predictor(Altered(change)), list(frames))


def test_the_same_answers_pass(frames):
    parity = _parity(Prediction, frames)
    assert (parity.map_max_abs, parity.score_max_abs, parity.bad_values) == (0, 0, 0)
    assert parity.control > 0.1
    check_parity(parity, Budget(), "same.onnx")


def _shift_one_pixel(maps, scores):
    maps[1, 5, 7] = abs(maps[1, 5, 7] - 2e-4)
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
        (_nan, "not finite"),
        (_too_large, "outside"),
        (_reverse, "ranked otherwise"),
    ],
)
def test_each_kind_of_error_is_refused(frames, change, words):
    with pytest.raises(ParityError, match=words):
        check_parity(_parity(change, frames), Budget(), "wrong.onnx")


def test_a_wide_budget_still_sees_swapped_ranks():
    parity = Parity(3, 0.0, 0.19, 0, 0.9, (0.1, 0.2, 0.4), (0.29, 0.2, 0.4))
    assert parity.swapped_pairs(0.05) == 1
    with pytest.raises(ParityError, match="1 pairs ranked otherwise"):
        check_parity(parity, Budget(0.2, 0.2).__class__(0.2, 0.09), "swapped.onnx")


def test_images_that_cannot_tell_right_from_wrong_are_refused(frames):
    same = np.stack([frames[0]] * 3)
    with pytest.raises(ParityError, match="cannot tell right from wrong"):
        check_parity(_parity(Prediction, same), Budget(), "blind.onnx")


def test_frames_come_from_the_data_when_it_is_there(checkpoint, category):
    from destseg_deploy.spec import ModelSpec

    trained = ModelSpec.read(checkpoint)
    frames, source = verification_frames(None, trained, (64, 64))
    assert (len(frames), source) == (16, "rendered images")
    trained = replace(trained, training={"data": str(category)})
    frames, source = verification_frames(None, trained, (96, 80))
    assert str(category) in source
    assert {frame.shape for frame in frames} == {(96, 80, 3)}


def test_one_frame_is_too_few(checkpoint, category):
    from destseg_deploy.spec import ModelSpec

    images = sorted(category.glob("train/good/*"))[:1]
    with pytest.raises(DataError, match="at least 2"):
        verification_frames(images, ModelSpec.read(checkpoint), (64, 64))
