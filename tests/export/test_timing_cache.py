"""The timing cache: reused where TensorRT takes it, put aside where not, written whole."""

import types

import pytest

from destseg_deploy.runtime.device_fake import FakeDevice
from destseg_export.timing_cache import load_timing_cache, save_timing_cache
from tests.export.fake_builder import Config, Library


@pytest.fixture
def config():
    return Config(types.SimpleNamespace(library=Library(FakeDevice())))


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
    save_timing_cache(types.SimpleNamespace(get_timing_cache=lambda: None), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
