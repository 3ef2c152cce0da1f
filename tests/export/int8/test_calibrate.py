"""Ranges of tensors, measured and kept."""

import json
from dataclasses import asdict

from destseg_deploy.data.calibration import add_anomalies, read_normal
from destseg_export.int8.calibrate import Calibration, measure_ranges
from destseg_export.int8.qdq import Range
from tests.deploy.data.noise_images import write_noise
from tests.export.fusions.cases import floats, make, node
from tests.fakes.runtime import fake_spec


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


def test_ranges_are_kept_in_a_file_that_can_be_read(tmp_path):
    kept = Calibration(3, 3, "parts", 1e-4, {"relu_1": Range(0.0, 2.5)})
    kept.write(tmp_path / "ranges.json")
    assert json.loads((tmp_path / "ranges.json").read_text()) == asdict(kept)
