"""The key: everything that decides an engine changes it, nothing else does."""

import shutil
from dataclasses import replace

import pytest

from destseg_deploy.spec import BatchRange, ModelSpec, spec_path
from destseg_deploy.thresholds import by_hand
from destseg_export.engine import build as engine_cache
from destseg_export.engine.build import build_engine, engine_key, find_built
from destseg_export.engine.options import BuildOptions
from destseg_export.engine.site import Site
from tests.export.engine.cases import GpuMachine, write_model
from tests.fakes.device import FakeDevice
from tests.fakes.tensorrt_builder import Library

DEVICE = FakeDevice()
SITE = Site("tensorrt", Library(DEVICE), ("sm_90",), DEVICE)


@pytest.fixture
def source(tmp_path) -> ModelSpec:
    return ModelSpec.read(write_model(tmp_path))


def _newer() -> Library:
    library = Library(DEVICE)
    library.__version__ = "11.5.0.1"
    return library


def test_what_decides_an_engine_changes_the_key(source):
    artifact = replace(source.artifact, sha256="0" * 64)
    options = BuildOptions()
    keys = [
        engine_key(source, SITE, options),
        engine_key(replace(source, artifact=artifact), SITE, options),
        engine_key(replace(source, precision="fp32"), SITE, options),
        engine_key(
            replace(source, input=replace(source.input, batch=BatchRange(1, 1, 1))), SITE, options
        ),
        engine_key(source, replace(SITE, library=_newer()), options),
        engine_key(source, replace(SITE, builder="tensorrt-rtx"), options),
        engine_key(source, replace(SITE, targets=("sm_89",)), options),
        engine_key(source, replace(SITE, device=FakeDevice(name="another")), options),
        engine_key(source, SITE, BuildOptions(refit=True)),
        engine_key(source, SITE, BuildOptions(tf32=True)),
        engine_key(source, SITE, BuildOptions(workspace_mib=1024)),
        engine_key(source, SITE, BuildOptions(workspace_mib=2048)),
    ]
    assert len(set(keys)) == len(keys)


def test_what_decides_nothing_leaves_it(source, tmp_path):
    key = engine_key(source, SITE, BuildOptions())
    assert engine_key(replace(source, threshold=by_hand(0.3)), SITE, BuildOptions()) == key
    assert engine_key(source, SITE, BuildOptions(timing_cache=tmp_path / "x")) == key


def test_another_recipe_is_another_engine(source, monkeypatch):
    key = engine_key(source, SITE, BuildOptions())
    monkeypatch.setattr(engine_cache, "RECIPE", engine_cache.RECIPE + 1)
    assert engine_key(source, SITE, BuildOptions()) != key


def test_only_a_whole_engine_of_that_key_is_found(tmp_path, monkeypatch):
    GpuMachine(monkeypatch)
    engine = tmp_path / "out/cable-fp16.engine"
    spec = build_engine(write_model(tmp_path), engine)
    key = spec.engine.key
    assert find_built(engine, key) == spec
    assert find_built(engine, "0" * 64) is None
    assert find_built(tmp_path / "cable-fp16.onnx", key) is None
    cut = tmp_path / "cut.engine"
    cut.write_bytes(engine.read_bytes()[:-1])
    shutil.copy(spec_path(engine), spec_path(cut))
    assert find_built(cut, key) is None
    cut.unlink()
    assert find_built(cut, key) is None
    spec_path(cut).write_text("{")
    assert find_built(cut, key) is None
    assert find_built(tmp_path / "nowhere.engine", key) is None
