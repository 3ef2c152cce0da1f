"""Calibration images: normal ones of one size, and the same with an anomaly."""

from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.data.calibration import add_anomalies, read_normal
from destseg_deploy.errors import DataError
from destseg_deploy.spec import InputSpec
from destseg_deploy.testing import fake_spec
from tests.deploy.data.noise_images import write_noise


def test_images_come_at_the_networks_size(tmp_path):
    frames = read_normal(write_noise(tmp_path, 9), fake_spec(), 4)
    assert frames.shape == (4, 32, 32, 3)
    assert frames.dtype == np.uint8


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no images in it"):
        read_normal(tmp_path, fake_spec(), 4)
    with pytest.raises(DataError, match="5 images, all the same"):
        read_normal(write_noise(tmp_path / "same", 5, same=True), fake_spec(), 8)
    with pytest.raises(DataError, match="1 images, all the same"):
        read_normal(write_noise(tmp_path / "one", 1), fake_spec(), 8)
    camera = replace(fake_spec(), input=InputSpec(48, 50))
    with pytest.raises(DataError, match=r"50x40 pixels, the graph takes 50x48"):
        read_normal(write_noise(tmp_path / "other", 3), camera, 8)


def test_half_of_the_images_get_an_anomaly(tmp_path):
    normal = read_normal(write_noise(tmp_path, 6), fake_spec(), 6)
    seen = add_anomalies(normal)
    assert seen.frames.shape == (12, 32, 32, 3)
    assert seen.labels.tolist() == [False] * 6 + [True] * 6
    np.testing.assert_array_equal(seen.frames[:6], normal)
    changed = (seen.frames[6:] != normal).any(axis=3)
    assert (changed <= seen.masks[6:]).all(), "nothing changes outside of the mask"
    assert changed.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(add_anomalies(normal).frames, seen.frames)
    assert (add_anomalies(normal, seed=1).frames != seen.frames).any()
