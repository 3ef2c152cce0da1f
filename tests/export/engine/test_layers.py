"""Proof of precision: inspectors of several versions are read, and a lie is caught."""

import json

import pytest

from destseg_deploy.errors import ExportError
from destseg_export.engine.layers import Convolutions, check_precision, count_in_engine

HALF_10 = [{"Name": "x", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]
FLOAT_10 = [{"Name": "x", "Format/Datatype": "Row major linear FP32 format"}]
BF16_10 = [{"Name": "x", "Format/Datatype": "Row major linear BF16 format"}]
HALF_11 = [{"Name": "x", "Format": "Row major linear format (kLINEAR)", "DataType": "Half"}]
FLOAT_11 = [{"Name": "x", "Format": "Row major linear format (kLINEAR)", "DataType": "Float"}]
BF16_11 = [{"Name": "x", "Format": "Row major linear format (kLINEAR)", "DataType": "BFloat16"}]


def _engine(*layers: dict, names: str = "Bindings") -> str:
    return json.dumps({"Layers": list(layers), names: ["image", "score"]})


def _conv(inputs: list, **more) -> dict:
    return {"Name": "c", "LayerType": "CaskConvolution", "Inputs": inputs, **more}


@pytest.mark.parametrize(
    ("inputs", "fp16", "bf16"),
    [
        (HALF_10, 1, 0),
        (HALF_11, 1, 0),
        (BF16_10, 0, 1),
        (BF16_11, 0, 1),
        (FLOAT_10, 0, 0),
        (FLOAT_11, 0, 0),
        ([{"Name": "x", "Format/Datatype": "Half"}], 1, 0),
        ([], 0, 0),
        ([{"Name": "x"}], 0, 0),
    ],
)
def test_types_are_read_as_10_and_11_write_them(inputs, fp16, bf16):
    text = _engine(_conv(inputs))
    assert count_in_engine(text, "fp16") == Convolutions(1, fp16, "engine")
    assert count_in_engine(text, "bf16") == Convolutions(1, bf16, "engine")
    assert count_in_engine(text, "fp32") == Convolutions(1, fp16 + bf16, "engine")


def test_weights_tell_what_a_fused_cast_hides():
    half = _conv(FLOAT_10, Weights={"Type": "Half", "Count": 9408})
    float_ = _conv(HALF_10, Weights={"Type": "Float", "Count": 9408})
    assert count_in_engine(_engine(half), "fp16").half == 1
    assert count_in_engine(_engine(float_), "fp16").half == 0


@pytest.mark.parametrize(
    ("layer", "counts"),
    [
        ({"LayerType": "CaskConvolution"}, True),
        ({"LayerType": "CaskGemmConvolution"}, True),
        ({"LayerType": "Myelin", "ParameterType": "Convolution"}, True),
        ({"LayerType": "CaskDeconvolutionV2"}, True),
        ({"LayerType": "conv"}, True),
        ({"LayerType": "Reformat"}, False),
        ({"LayerType": "Convert"}, False),
        ({"LayerType": "CaskPooling", "Name": "conv1 + pool"}, False),
        ({}, False),
    ],
)
def test_only_convolutions_count(layer, counts):
    found = count_in_engine(_engine({**layer, "Inputs": HALF_10}), "fp16")
    assert (found is not None) == counts


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"Layers": ["conv1 + relu"]}'])
def test_what_tells_nothing_proves_nothing(text):
    assert count_in_engine(text, "fp16") is None


def test_a_half_engine_must_be_half():
    check_precision(Convolutions(66, 63, "engine"), "fp16", "x")
    check_precision(Convolutions(10, 9, "network"), "bf16", "x")
    for half in (0, 8):
        with pytest.raises(ExportError, match=rf"x: its spec says fp16, but only {half} of 10"):
            check_precision(Convolutions(10, half, "engine"), "fp16", "x")
    with pytest.raises(ExportError, match="read from the network"):
        check_precision(Convolutions(0, 0, "network"), "fp16", "x")


def test_a_float_engine_must_not_be_half():
    check_precision(Convolutions(66, 0, "engine"), "fp32", "x")
    with pytest.raises(ExportError, match="says fp32, but 1 of 66 convolutions are half"):
        check_precision(Convolutions(66, 1, "engine"), "fp32", "x")


def test_other_precisions_are_not_judged_by_half():
    check_precision(Convolutions(66, 30, "engine"), "int8", "x")
