"""What a prediction is by itself; the runtimes' contract is test_contract.py's."""

import numpy as np
import pytest

from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.cuda.bands import frame_bands


def part(count, start=0, size=(4, 6), **more):
    values = np.arange(start, start + count, dtype=np.float32) / 100
    return Prediction(np.ones((count, *size), np.float32) * values[:, None, None], values, **more)


@pytest.mark.parametrize("make", [lambda: part(2), lambda: frame_bands(8, 4)])
def test_what_holds_arrays_equals_itself_alone_and_lies_in_sets(make):
    """Arrays have no one answer to ==, nor a hash."""
    one, other = make(), make()
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2


def test_predictions_are_joined_in_order():
    parts = [part(2), part(1, 2), part(3, 3)]
    whole = Prediction.concatenate(parts)
    np.testing.assert_array_equal(whole.score, part(6).score)
    np.testing.assert_array_equal(whole.anomaly_map, part(6).anomaly_map)
    assert (whole.frame_sizes, whole.pixel_threshold) == (None, None)
    whole.score[:] = 9
    assert (parts[0].score < 1).all(), "the parts stay as they are"


def test_sizes_of_frames_and_the_threshold_are_kept():
    first = part(1, frame_sizes=((8, 12),), pixel_threshold=0.4)
    second = part(2, 1, frame_sizes=((4, 6), (9, 9)), pixel_threshold=0.4)
    whole = Prediction.concatenate([first, second])
    assert whole.frame_sizes == ((8, 12), (4, 6), (9, 9))
    assert whole.pixel_threshold == 0.4
    assert Prediction.concatenate([first, part(1)]).frame_sizes is None, "one is not known"
    assert len(Prediction.concatenate([first, second]).defects()) == 3
