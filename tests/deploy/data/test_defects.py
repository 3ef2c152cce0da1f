"""Regions above the threshold, with numbers that are known by hand."""

import numpy as np
import pytest

from destseg_deploy.data.defects import enlarge_map, find_defects
from destseg_deploy.errors import ShapeError, SpecError
from destseg_deploy.predictor import resize_map
from destseg_deploy.runtime.base import Prediction


def test_a_rectangle_and_a_point():
    anomaly_map = np.zeros((10, 12), np.float32)
    anomaly_map[2:5, 3:8] = 0.6
    anomaly_map[4, 6] = 0.9
    anomaly_map[8, 1] = 0.95
    point, rectangle = find_defects(anomaly_map, (10, 12), 0.5)
    assert (point.box, point.area, point.centroid) == ((1, 8, 1, 1), 1, (1.0, 8.0))
    assert (rectangle.box, rectangle.area) == ((3, 2, 5, 3), 15)
    assert (rectangle.peak, rectangle.peak_at) == (np.float32(0.9), (6, 4))
    assert rectangle.centroid == (5.0, 3.0)
    assert rectangle.contour.tolist() == [
        [3, 2], [3, 3], [3, 4], [4, 4], [5, 4], [6, 4],
        [7, 4], [7, 3], [7, 2], [6, 2], [5, 2], [4, 2],
    ]  # fmt: skip
    assert point.contour.tolist() == [[1, 8]]


def test_pixels_that_touch_at_corners_are_one_defect_and_equals_are_two():
    anomaly_map = np.zeros((6, 6), np.float32)
    anomaly_map[0, 0] = anomaly_map[1, 1] = anomaly_map[5, 0] = anomaly_map[4, 5] = 1
    found = find_defects(anomaly_map, (6, 6), 0.5)
    assert [defect.box for defect in found] == [(0, 0, 2, 2), (5, 4, 1, 1), (0, 5, 1, 1)]


def test_a_region_in_the_hole_of_another_is_found():
    anomaly_map = np.zeros((9, 9), np.float32)
    anomaly_map[1:8, 1:8] = 0.7
    anomaly_map[2:7, 2:7] = 0
    anomaly_map[4, 4] = 0.9
    inner, ring = find_defects(anomaly_map, (9, 9), 0.5)
    assert (inner.area, ring.area, ring.box) == (1, 24, (1, 1, 7, 7))
    assert len(ring.contour) == 24


def test_only_what_is_greater_than_the_threshold_counts():
    anomaly_map = np.full((4, 4), 0.5, np.float32)
    assert find_defects(anomaly_map, (40, 40), 0.5) == []
    assert len(find_defects(anomaly_map, (40, 40), 0.49)) == 1


@pytest.mark.parametrize("size", [(64, 48), (37, 100), (16, 12), (8, 5)])
def test_the_map_at_the_frames_size_is_the_one_that_pictures_show(size):
    """OpenCV's, but for rounding; a map that is moved by one pixel is another."""
    anomaly_map = np.random.default_rng(0).random((16, 12)).astype(np.float32)
    found = enlarge_map(anomaly_map, size)
    assert np.abs(found - resize_map(anomaly_map, size)).max() < 2e-6
    assert np.abs(found - np.roll(found, 1, axis=0)).max() > 0.1


def test_a_prediction_needs_a_threshold():
    prediction = Prediction(np.ones((2, 4, 4), np.float32), np.ones(2, np.float32))
    with pytest.raises(SpecError, match="no pixel threshold is set yet"):
        prediction.defects()
    assert [len(defects) for defects in prediction.defects(0.5)] == [1, 1]
    sized = Prediction(*prediction_arrays(), frame_sizes=((8, 8),), pixel_threshold=0.5)
    assert sized.defects()[0][0].box == (0, 0, 8, 8)


def prediction_arrays() -> tuple[np.ndarray, np.ndarray]:
    return np.ones((1, 4, 4), np.float32), np.ones(1, np.float32)


@pytest.mark.parametrize("threshold", [45, 1.5, -0.1, float("nan"), float("inf"), -1])
def test_a_threshold_that_no_map_or_every_map_exceeds_is_refused(threshold):
    prediction = Prediction(*prediction_arrays())
    with pytest.raises(ShapeError, match=f"threshold: {threshold}, expected a number from 0 to 1"):
        prediction.defects(threshold)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1.1, -0.1])
def test_a_map_that_is_no_answer_has_not_no_defects(value):
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[2, 1] = value
    with pytest.raises(ShapeError, match="in it, expected numbers from 0 to 1"):
        find_defects(anomaly_map, (4, 4), 0.5)


@pytest.mark.parametrize(
    ("anomaly_map", "size", "words"),
    [
        (np.ones((4, 4)), (4, 4), "expected float32"),
        (np.ones((1, 4, 4), np.float32), (4, 4), "Pass one map of a prediction"),
        (np.ones((4, 4), np.float32), (0, 4), "0x4 pixels"),
    ],
)
def test_what_is_refused(anomaly_map, size, words):
    with pytest.raises(ShapeError, match=words):
        find_defects(anomaly_map, size, 0.5)
