"""What half can hold, by hand-made values."""

import numpy as np
import pytest

from destseg_deploy.errors import ExportError
from destseg_export.half.ranges import check_activations, check_weights, measure_weights


def _weights(*values):
    return np.array(values, np.float32)


def test_weights_are_counted_by_what_half_makes_of_them():
    value = _weights(0, 1, -65504, 65519, 65520, -1e5, 1e-5, -6e-8, 2e-8, -1e-20)
    found = measure_weights("w", value, "fp16")
    assert (found.count, found.beyond, found.zeroed, found.subnormal) == (10, 2, 2, 2)
    assert found.largest == 1e5


def test_bf16_holds_what_fp16_does_not():
    found = measure_weights("w", _weights(0, 1e5, 1e-20, 1e-39), "bf16")
    assert (found.beyond, found.zeroed, found.subnormal) == (0, 0, 1)


def test_the_worst_weight_is_named():
    weights = [measure_weights(n, _weights(v, 0), "fp16") for n, v in (("a", 7e4), ("b", -9e4))]
    with pytest.raises(ExportError, match=r"b: 1 of 2 weights .*65504 .*9e\+04\), 2 constants"):
        check_weights(weights, "fp16")
    check_weights([measure_weights("c", _weights(65504), "fp16")], "fp16")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_refused(value):
    with pytest.raises(ExportError, match="w: 1 of 2 weights"):
        check_weights([measure_weights("w", _weights(value, 1), "bf16")], "bf16")


def test_the_worst_activation_is_named():
    check_activations({"a": 65504.0 / 8, "b": 0.0}, "fp16")
    words = r"b: reaches 8192 .* at most 8188, an eighth of fp16's 65504.*1 of 2 .*--precision bf16"
    with pytest.raises(ExportError, match=words):
        check_activations({"a": 1.0, "b": 8192.0}, "fp16")
    check_activations({"a": 1.0, "b": 7e4}, "bf16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_activation_that_is_no_number_is_refused(value):
    with pytest.raises(ExportError, match=r"a: reaches (nan|inf) .*destseg-evaluate"):
        check_activations({"a": value, "b": 1.0}, "bf16")
