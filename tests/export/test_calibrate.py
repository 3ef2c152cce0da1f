"""Calibration images and ranges."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from destseg_deploy.errors import DataError, ExportError
from destseg_deploy.runtime.fake import fake_spec
from destseg_deploy.spec import InputSpec

pytest.importorskip("onnx")

from destseg_export.calibrate import (
    Calibration,
    add_anomalies,
    measure_ranges,
    read_normal,
)
from destseg_export.qdq import Range
from tests.export.fusions.cases import floats, make, node


def _write(folder, count, same=False, size=(40, 50)):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng(0 if same else i).integers(90, 110, (*size, 3))
        cv2.imwrite(str(folder / f"{i}.png"), noise.astype(np.uint8))
    return folder


def test_images_come_at_the_networks_size(tmp_path):
    frames = read_normal(_write(tmp_path, 9), fake_spec(), 4)
    assert frames.shape == (4, 32, 32, 3)
    assert frames.dtype == np.uint8


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no images in it"):
        read_normal(tmp_path, fake_spec(), 4)
    with pytest.raises(DataError, match="5 images that are all the same"):
        read_normal(_write(tmp_path / "same", 5, same=True), fake_spec(), 8)
    with pytest.raises(DataError, match="1 images that are all the same"):
        read_normal(_write(tmp_path / "one", 1), fake_spec(), 8)
    camera = replace(fake_spec(), input=InputSpec(48, 50))
    with pytest.raises(DataError, match=r"50x40 pixels, the graph takes 50x48"):
        read_normal(_write(tmp_path / "other", 3), camera, 8)


def test_half_of_the_images_get_an_anomaly(tmp_path):
    normal = read_normal(_write(tmp_path, 6), fake_spec(), 6)
    seen = add_anomalies(normal)
    assert seen.frames.shape == (12, 32, 32, 3)
    assert seen.labels.tolist() == [False] * 6 + [True] * 6
    np.testing.assert_array_equal(seen.frames[:6], normal)
    changed = (seen.frames[6:] != normal).any(axis=3)
    assert (changed <= seen.masks[6:]).all(), "nothing changes outside of the mask"
    assert changed.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(add_anomalies(normal).frames, seen.frames)
    assert (add_anomalies(normal, seed=1).frames != seen.frames).any()


def test_ranges_reach_as_far_as_the_anomalies(tmp_path):
    """Normal pixels lie in 90..110: from these alone the anomalies would be cut off."""
    graph = make(
        [
            node("Cast", ["image"], "float", to=1),
            node("Neg", ["float"], "y"),
            node("Neg", ["y"], "score"),
        ],
        {"image": (2, ["n", 32, 32, 3])},
        {"score": floats("n", 32, 32, 3)},
        {},
    )
    normal = read_normal(_write(tmp_path, 6), fake_spec(), 6)
    seen = add_anomalies(normal)
    alone = measure_ranges(graph, ["y"], normal)["y"]
    both = measure_ranges(graph, ["y"], seen.frames)["y"]
    assert -111 < alone.low < alone.high < -89
    assert both.low < alone.low - 10 or both.high > alone.high + 10
    wide = measure_ranges(graph, ["y"], seen.frames, tail=0)["y"]
    assert wide.low <= both.low
    assert wide.high >= both.high
    assert wide == Range(-float(seen.frames.max()), -float(seen.frames.min()))


def test_ranges_are_kept_in_a_file_that_can_be_read(tmp_path):
    kept = Calibration(3, 3, "parts", 1e-4, {"relu_1": Range(0.0, 2.5)})
    kept.write(tmp_path / "ranges.json")
    assert Calibration.read(tmp_path / "ranges.json") == kept
    assert '"relu_1"' in (tmp_path / "ranges.json").read_text()
    for text in ("", "[]", '{"ranges": {"a": {"low": 1}}}', "{}"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ExportError, match="no calibration"):
            Calibration.read(tmp_path / "bad.json")
