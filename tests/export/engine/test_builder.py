"""The timing cache is reused where TensorRT takes it; parser errors name node and remedy."""

from types import SimpleNamespace

import pytest

from destseg_export.engine.builder import (
    OTHERWISE,
    describe_parser_errors,
    load_timing_cache,
    save_timing_cache,
)
from tests.fakes.device import FakeDevice
from tests.fakes.tensorrt_builder import Config, Library


@pytest.fixture
def config():
    return Config(SimpleNamespace(library=Library(FakeDevice())))


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_build_without_a_file_starts_one(config, said, tmp_path):
    path = tmp_path / "new/tensorrt.timing"
    load_timing_cache(config, path, said.append)
    assert config.cache.content == b""
    assert said == []
    config.timed = True
    save_timing_cache(config, path)
    assert path.read_bytes() == b"timed here "
    assert sorted(path.parent.iterdir()) == [path]


def test_the_next_build_reuses_it(config, said, tmp_path):
    path = tmp_path / "tensorrt.timing"
    path.write_bytes(b"timed here ")
    load_timing_cache(config, path, said.append)
    assert config.cache.content == b"timed here "
    assert said == [f"timing cache {path}: 11 bytes reused"]


@pytest.mark.parametrize("content", [b"timed elsewhere", b"\0" * 100])
def test_another_machines_cache_is_written_anew(content, config, said, tmp_path):
    path = tmp_path / "tensorrt.timing"
    path.write_bytes(content)
    load_timing_cache(config, path, said.append)
    assert config.cache.content == b""
    assert said == [f"timing cache {path}: another GPU's or TensorRT's, written anew"]


def test_a_config_without_a_cache_writes_nothing(tmp_path):
    save_timing_cache(SimpleNamespace(get_timing_cache=lambda: None), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# --- what the parser refuses


def _parser(desc: str, operator: str, name: str = "find", node: int = 3, count: int = 1):
    error = SimpleNamespace(
        desc=lambda: desc, node_operator=lambda: operator, node_name=lambda: name, node=lambda: node
    )
    return SimpleNamespace(num_errors=count, get_error=lambda index: error)


# As TensorRT-RTX 1.7.1 said of small graphs with these faults.
SAID = {
    "NonZero": "Assertion failed: creator && getPluginCreatorVersion(creator) == CreatorVersion::"
    "kV3ONE: NonZero plugin creator version 1 was not found in plugin registry.",
    "Resize": '(antialias == 0) && "Antialiasing is not supported currently."',
    "Transpose": "Invalid Node - find\nITensor::getDimensions: Error Code 4: API Usage Error (tr: "
    "first input has type UInt8 but must have type Float, Half)\n[checkMacros.cpp::catchCudaError::"
    "250] Error Code 1: Cuda Runtime",
    "Add": "Invalid Node - find\nITensor::getDimensions: Error Code 4: API Usage Error (add: "
    "ElementWiseOperation SUM must have same input types. But they are of types Float and Half.)",
}


@pytest.mark.parametrize(
    ("operator", "advice"),
    [
        ("NonZero", "compute that part on the host"),
        ("Resize", "must be two matrix products"),
        ("Transpose", "Cast to float first"),
        ("Add", "strongly typed: cast one input"),
    ],
)
def test_a_known_cause_is_told(operator, advice):
    line = describe_parser_errors(_parser(SAID[operator], operator))
    assert line.startswith(f"node find ({operator}): ")
    assert advice in line
    assert "\n" not in line
    assert "catchCudaError" not in line  # that no GPU is there is not the reason
    others = {"host", "matrix products", "Cast to float", "cast one input"}
    assert sum(other in line for other in others) == 1


def test_an_unknown_cause_still_names_the_node():
    line = describe_parser_errors(_parser("bad axis", "Gather", name=""))
    assert line == f"node 3 (Gather): bad axis. {OTHERWISE}."


def test_a_file_that_is_no_model_is_said_to_be_none():
    line = describe_parser_errors(_parser("Failed to parse the ONNX model.", "", name=""))
    assert line.startswith("Failed to parse the ONNX model. The file is no ONNX model")


def test_a_parser_that_says_nothing_is_not_asked():
    line = describe_parser_errors(_parser("", "", count=0))
    assert line == f"TensorRT's parser gave no reason. {OTHERWISE}."
