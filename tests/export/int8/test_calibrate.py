"""Ranges of tensors, measured and kept."""

import json
from dataclasses import asdict

import numpy as np

from destseg_deploy.data.calibration import add_anomalies, read_normal
from destseg_deploy.testing import fake_spec
from destseg_export.int8.calibrate import Calibration, measure_ranges, measure_shifts
from destseg_export.int8.qdq import Range
from tests.deploy.data.noise_images import write_noise
from tests.export.fusions.cases import floats, make, node


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
    normal = read_normal(write_noise(tmp_path, 6), fake_spec(), 6)
    seen = add_anomalies(normal)
    alone = measure_ranges(graph, ["y"], normal)["y"]
    both = measure_ranges(graph, ["y"], seen.frames)["y"]
    assert -111 < alone.low < alone.high < -89
    assert both.low < alone.low - 10 or both.high > alone.high + 10
    wide = measure_ranges(graph, ["y"], seen.frames, tail=0)["y"]
    assert wide.low <= both.low
    assert wide.high >= both.high
    assert wide == Range(-float(seen.frames.max()), -float(seen.frames.min()))


def test_what_8_bit_add_is_the_mean_over_all_images():
    """A flat image has the same error everywhere, and another image another one."""
    graph = make(
        [
            node("Cast", ["image"], "float", to=1),
            node("Transpose", ["float"], "x", perm=[0, 3, 1, 2]),
            node("Conv", ["x", "model.teacher_net.a"], "a"),
            node("Conv", ["a", "model.segmentation_net.head.4"], "logit"),
            node("Sigmoid", ["logit"], "map"),
        ],
        {"image": (2, ["n", 4, 4, 3])},
        {"map": floats("n", 1, 4, 4)},
        {
            "model.teacher_net.a": np.array([0.3, 0.2, 0.1], np.float32).reshape(1, 3, 1, 1),
            "model.segmentation_net.head.4": np.ones((1, 1, 1, 1), np.float32),
        },
    )
    frames = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (101, 50)])
    ranges = {"x": Range(0, 510), "a": Range(0, 510)}  # steps of 2: 101 is read as 100
    (found,) = measure_shifts(graph, ["node_a"], ranges, "u8", frames).values()
    weights = np.array([127, 85, 42]) * 0.3 / 127
    wanted = [weights.sum() * 100 - 0.6 * 101, weights.sum() * 50 - 0.6 * 50]
    np.testing.assert_allclose(found, [np.mean(wanted)], rtol=1e-4)
    assert abs(wanted[0] - wanted[1]) > 0.1, "control: one image does not stand for both"


def test_ranges_are_kept_in_a_file_that_can_be_read(tmp_path):
    kept = Calibration(3, 3, "parts", 1e-4, {"relu_1": Range(0.0, 2.5)})
    kept.write(tmp_path / "ranges.json")
    assert json.loads((tmp_path / "ranges.json").read_text()) == asdict(kept)
