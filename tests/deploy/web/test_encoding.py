"""Pictures for browsers: what is shown of a map is never higher than the map."""

import base64

import numpy as np
import pytest

from destseg_deploy.web.encoding import encode_map, encode_picture


def _decoded(levels: np.ndarray) -> np.ndarray:
    """Return the values as drawing.js computes them."""
    return ((levels.astype(np.float64) / 255) ** 2).astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "levels"])
def test_levels_are_the_next_ones_below(kind):
    """They were the nearest ones, so that outlines were drawn below the threshold."""
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32) ** 3
    if kind == "levels":
        values = _decoded(np.arange(256).reshape(16, 16))
    levels = encode_map(values, values.shape)
    assert (_decoded(levels) <= values).all()
    following = np.where(levels < 255, _decoded(levels.astype(int) + 1), np.inf)
    assert (following > values).all()


def test_a_cell_has_its_largest_value_and_the_picture_the_peak():
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = 0.3
    picture = encode_picture(np.zeros((4, 4, 3), np.uint8), values, cells=2, limit=9999)
    levels = np.frombuffer(base64.b64decode(picture["levels"]), np.uint8).reshape(2, 2)
    assert (levels > 0).tolist() == [[False, True], [False, False]]
    assert picture["peak"] == float(np.float32(0.3))


def test_values_that_rounding_moved_out_of_range_are_cut():
    values = np.array([[-1e-7, 1 + 1e-6]], np.float32)
    assert encode_map(values, (1, 2)).tolist() == [[0, 255]]
