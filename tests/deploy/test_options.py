"""Devices are read in one place, and values out of range are refused when options are made."""

import math
from pathlib import Path

import pytest

from destseg_deploy.device import CPU, CUDA, Device
from destseg_deploy.errors import BackendError
from destseg_deploy.options import (
    OpenVinoOptions,
    OrtOptions,
    ServerOptions,
    TensorRtOptions,
    TorchOptions,
    check_device,
)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", CPU),
        ("cuda", CUDA),
        ("cuda:12", Device("cuda", 12)),
        ("gpu", Device("gpu")),
        ("gpu:1", Device("gpu", 1)),
    ],
)
def test_devices_are_read(text, device):
    assert Device.parse(text) == device
    assert Device.parse(str(device)) == Device.parse(device) == device


@pytest.mark.parametrize(
    "text",
    ["", "tpu", "CUDA", "cpu:0", "cuda:", "cuda:-1", "cuda:0 ", "cuda:x", "cuda:1:2"],
)
def test_other_devices_are_refused(text):
    with pytest.raises(BackendError, match=r"expected cpu, cuda, cuda:<index>, gpu, gpu:<index>"):
        Device.parse(text)


@pytest.mark.parametrize("number", ["\u0663", "9" * 5000])
def test_the_number_of_a_device_is_short_and_of_the_digits_0_to_9(number):
    """``int`` reads the digits of all scripts, and fails beyond 4,300 of them."""
    with pytest.raises(BackendError, match=r"expected cpu, cuda, cuda:<index>"):
        Device.parse(f"cuda:{number}")


@pytest.mark.parametrize("thing", [None, 0, b"cpu", ["cpu"]])
def test_what_is_no_text_is_no_device(thing):
    with pytest.raises(BackendError, match=r"expected cpu, cuda, cuda:<index>, gpu"):
        Device.parse(thing)


@pytest.mark.parametrize(
    "made", [("tpu", 0), ("cpu", 1), ("cuda", -1), ("cuda", "0"), ("cuda", 0.5), (["cuda"], 0)]
)
def test_no_object_stands_for_a_device_that_cannot_be(made):
    with pytest.raises(BackendError, match=r"device .*: expected cpu, cuda"):
        Device(*made)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("openvino", r"names a back end\. Pass backend 'openvino' \(--backend openvino\)"),
        ("tensorrt:1", r"OrtOptions\(tensorrt=True\).*--ort-tensorrt --device cuda"),
    ],
)
def test_back_ends_that_were_devices_name_what_replaces_them(text, words):
    with pytest.raises(BackendError, match=words):
        Device.parse(text)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (OrtOptions, {"threads": -1}, "threads: -1, expected 0 to 1024"),
        (OrtOptions, {"worker_cores": (1, 1)}, "one is named twice"),
        (
            OrtOptions,
            {"threads": 2, "worker_cores": (1, 2)},
            "threads: 2, expected 3 with 2 worker_cores",
        ),
        (OrtOptions, {"cache": Path("c")}, "cache c: .*Pass tensorrt=True"),
        (OrtOptions, {"prefer_nhwc": True, "tensorrt": True}, "prefer_nhwc: .*Drop one"),
        (OpenVinoOptions, {"precision": "int8"}, "precision 'int8': expected fp32 or bf16"),
        (OpenVinoOptions, {"hint": "fast"}, "hint 'fast': expected latency or throughput"),
        (OpenVinoOptions, {"streams": -2}, "streams: -2, expected 0 to 1024"),
        (TensorRtOptions, {"contexts": 0}, "contexts: 0, expected 1 to 1024"),
        (TensorRtOptions, {"binding": "cupy"}, "binding 'cupy': expected auto or torch or"),
        (TorchOptions, {"threads": -1}, "threads: -1, expected 0 to 1024"),
        (OrtOptions, {"threads": 2**40}, "threads: 1099511627776, expected 0 to 1024"),
        (OpenVinoOptions, {"streams": 10**6}, "streams: 1000000, expected 0 to 1024"),
        (ServerOptions, {"url": "http://a:1", "timeout": math.nan}, "timeout: nan, expected 0 to"),
        (
            ServerOptions,
            {"url": "http://a:1", "timeout": math.inf},
            "timeout: inf, expected 0 to 86400",
        ),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(kind, values, words):
    with pytest.raises(BackendError, match=words) as refused:
        kind(**values)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (OpenVinoOptions, {"cache": 5}, "cache 5: got int, expected Path or None"),
        (OpenVinoOptions, {"cache": ""}, "cache '': got str, expected Path or None"),
        (OpenVinoOptions, {"precision": None}, "precision None: got NoneType, expected str"),
        (OrtOptions, {"threads": "4"}, "threads '4': got str, expected int"),
        (OrtOptions, {"threads": True}, "threads True: got bool, expected int"),
        (OrtOptions, {"arena": "no"}, "arena 'no': got str, expected bool"),
        (OrtOptions, {"worker_cores": [1]}, "worker_cores .*: got list, expected tuple"),
        (OrtOptions, {"worker_cores": ("1",)}, "worker_cores .*: got tuple, expected tuple.int"),
        (TensorRtOptions, {"contexts": 2.0}, "contexts 2.0: got float, expected int"),
    ],
)
def test_values_of_another_type_are_refused(kind, values, words):
    with pytest.raises(BackendError, match=words):
        kind(**values)


def test_a_folder_may_be_text():
    assert OpenVinoOptions(cache="models") == OpenVinoOptions(cache=Path("models"))
    assert OrtOptions(tensorrt=True, cache="engines").cache == Path("engines")


@pytest.mark.parametrize(
    ("options", "device", "name"),
    [
        (OrtOptions(cuda_graph=True), CPU, "cuda_graph"),
        (OrtOptions(tf32=True), CPU, "tf32"),
        (OrtOptions(tensorrt=True), CPU, "tensorrt"),
        (OrtOptions(prefer_nhwc=True), CPU, "prefer_nhwc"),
        (OrtOptions(arena=False), CUDA, "arena"),
        (OrtOptions(spinning=False), CUDA, "spinning"),
        (OrtOptions(worker_cores=(0,)), CUDA, "worker_cores"),
        (OpenVinoOptions(pinning=False), Device("gpu"), "pinning"),
        (OpenVinoOptions(threads=2), Device("gpu"), "threads"),
        (TorchOptions(tf32=True), CPU, "tf32"),
    ],
)
def test_options_that_nobody_reads_on_a_device_are_refused(options, device, name):
    with pytest.raises(BackendError, match=f"{name}: an option for device '.*Drop {name}"):
        check_device(options, device)
    check_device(type(options)(), device)
