"""Defects: the library's are Python's, value for value."""

import dataclasses
from ctypes import byref, c_int32

import numpy as np
import pytest

from destseg_deploy.data.defects import Defect, find_defects
from destseg_deploy.loading import load
from tests.cpp.conftest import write_engine
from tests.cpp.library import Handle, Refused, frame_of

MAP = (40, 24)


@pytest.fixture(scope="module")
def handle(library, packing):
    with library.open(packing[0], library.need("onnxruntime"), threads=1) as opened:
        yield opened


def same(one: Defect, other: Defect) -> bool:
    a, b = dataclasses.asdict(one), dataclasses.asdict(other)
    return np.array_equal(a.pop("contour"), b.pop("contour")) and a == b


def assert_same(handle: Handle, anomaly_map: np.ndarray, size, threshold: float) -> int:
    found = handle.defects(anomaly_map, size, threshold)
    expected = find_defects(anomaly_map, size, threshold)
    assert len(found) == len(expected)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    return len(found)


def smooth(seed: int) -> np.ndarray:
    """Return a map of soft blobs, as a network's are."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: MAP[0], : MAP[1]]
    anomaly_map = np.zeros(MAP)
    for _ in range(6):
        cy, cx, width = random.uniform(0, 40), random.uniform(0, 24), random.uniform(1, 5)
        anomaly_map += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / width**2)
    return np.clip(anomaly_map * 0.7, 0, 1).astype(np.float32)


@pytest.mark.parametrize("size", [MAP, (400, 333), (20, 12), (41, 100)])
def test_blobs_at_the_frames_size(handle, size):
    found = [assert_same(handle, smooth(seed), size, 0.4) for seed in range(8)]
    assert sum(found) > 0


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.6, 0.9])
def test_noise_has_regions_of_every_shape(handle, threshold):
    """With holes, branches of one pixel, and regions within the holes of others."""
    total = 0
    for seed in range(6):
        noise = np.random.default_rng(seed).random(MAP).astype(np.float32)
        total += assert_same(handle, noise, MAP, threshold)
        assert_same(handle, noise, (95, 61), threshold)
    assert total >= 6


def test_equal_peaks_are_in_the_order_of_their_beginnings(handle):
    anomaly_map = np.zeros(MAP, np.float32)
    anomaly_map[3::6, 2::5] = 1
    assert assert_same(handle, anomaly_map, MAP, 0.5) == 35
    boxes = [defect.box[:2] for defect in handle.defects(anomaly_map, MAP, 0.5)]
    assert boxes == sorted(boxes, key=lambda box: box[::-1])


def test_the_threshold_is_the_artifacts_unless_given(handle, packing):
    frame = np.random.default_rng(0).integers(0, 256, (*MAP, 3), dtype=np.uint8)
    maps, _ = handle.infer([frame_of(frame)])
    with load(packing[0]) as python:
        prediction = python(frame)
    found = handle.defects(maps[0], MAP)
    assert found
    (expected,) = prediction.defects()
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert len(handle.defects(maps[0], MAP, 0.9)) != len(found)


def test_python_knows_each_frames_size(packing):
    frames = [np.full((size, 30, 3), 255, np.uint8) for size in (30, 90)]
    with load(packing[0]) as python:
        first, second = python(frames).defects()
        assert (first[0].box, second[0].box) == ((0, 0, 30, 30), (0, 0, 30, 90))


def test_buffers_that_are_too_short_hold_the_first(library, handle):
    anomaly_map = np.zeros(MAP, np.float32)
    anomaly_map[3::6, 2::5] = np.linspace(0.6, 1, 35).reshape(7, 5)
    from tests.cpp.library import FoundDefect, Point

    found = (FoundDefect * 3)(FoundDefect(64))
    points = (Point * 2)()
    count, point_count = c_int32(), c_int32()
    arguments = (*MAP, 0.5, found, 2, points, 1, byref(count), byref(point_count))
    library.check(library.c.destseg_defects(handle.value, anomaly_map.ctypes.data, *arguments))
    assert (count.value, point_count.value) == (35, 35)
    assert [defect.peak for defect in found][:2] == [1, anomaly_map[39, 17]]
    assert found[2].struct_size == 0
    assert (points[0].x, points[0].y, points[1].x) == (22, 39, 0)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({0: None}, "argument", "map: null"),
        ({1: 0}, "shape", "frame: 24x0 pixels"),
        ({2: 65537}, "shape", "frame: 65537x40 pixels"),
        ({3: 1.5}, "argument", "threshold: 1.5"),
        ({3: float("nan")}, "argument", "threshold: nan"),
        ({5: 3}, "argument", "defects: room for 3 at a null pointer"),
        ({7: -1}, "argument", "points: room for -1"),
        ({8: None}, "argument", "count: null"),
    ],
)
def test_what_is_refused(library, handle, change, status, words):
    anomaly_map = np.zeros(MAP, np.float32)
    arguments = [anomaly_map.ctypes.data, *MAP, 0.5, None, 0, None, 0, byref(c_int32()), None]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(Refused) as refused:
        library.check(library.c.destseg_defects(handle.value, *arguments))
    assert refused.value.status == status
    assert words in refused.value.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.1, -0.1])
def test_a_map_that_is_no_answer_has_not_no_defects(handle, value):
    anomaly_map = np.zeros(MAP, np.float32)
    anomaly_map[2, 1] = value
    with pytest.raises(Refused, match="in it, expected numbers from 0 to 1") as refused:
        handle.defects(anomaly_map, MAP, 0.5)
    assert refused.value.status == "argument"


def test_an_artifact_without_a_threshold_asks_for_one(library, tmp_path):
    path = tmp_path / "tiny.engine"
    write_engine(path, (8, 6), threshold=None)
    anomaly_map = np.ones((8, 6), np.float32)
    with library.open(path) as opened:
        with pytest.raises(Refused, match="no threshold set yet") as refused:
            opened.defects(anomaly_map, (8, 6))
        assert refused.value.status == "spec"
        assert len(opened.defects(anomaly_map, (8, 6), 0.5)) == 1
