"""Engines that do not fit the machine are refused with both sides named."""

from dataclasses import replace

import pytest

from destseg_deploy.errors import SpecError
from destseg_deploy.runtime.trt.record import (
    Machine,
    built_by,
    check_engine,
    engine_record,
    rebuild_command,
)
from destseg_deploy.spec import EngineRecord, FileRecord, ModelSpec
from destseg_deploy.testing import fake_spec

H100 = "NVIDIA H100 80GB HBM3"
HERE = Machine("tensorrt", "11.4.0.106", H100, "sm_90")
RECORD = EngineRecord(
    key="k" * 64,
    builder="tensorrt",
    version="11.4.0.106",
    gpu=H100,
    targets=("sm_90",),
    onnx="cable-fp16.onnx",
    onnx_sha256="a" * 64,
    flags=("refit", "workspace=4096MiB"),
    convolutions=66,
    half_convolutions=63,
    precision_source="engine",
    build_seconds=41.5,
    architecture="b" * 64,
)
AHEAD = replace(
    RECORD, builder="tensorrt-rtx", version="1.7.1.116", gpu=None, targets=("sm_86", "sm_89")
)


def _spec(record: EngineRecord | None = RECORD) -> ModelSpec:
    artifact = FileRecord("cable-fp16.engine", "c" * 64)
    spec = replace(fake_spec(), kind="engine", category="cable", precision="fp16")
    return replace(spec, artifact=artifact, engine=record)


def test_refittable_engines_and_their_builder_are_told_from_the_record():
    assert RECORD.refittable
    assert not replace(RECORD, flags=()).refittable
    assert built_by(RECORD) == "TensorRT 11.4.0.106"


@pytest.mark.parametrize("spec", [replace(_spec(), kind="onnx"), _spec(None)])
def test_a_spec_without_an_engine_has_no_record(spec):
    with pytest.raises(SpecError, match=f"its spec says {spec.kind}, expected engine"):
        engine_record(spec)


def test_an_engine_for_this_machine_is_taken():
    assert check_engine(_spec(), HERE) == RECORD


def test_an_engine_built_ahead_fits_every_gpu_of_its_targets():
    for sm in AHEAD.targets:
        here = Machine("tensorrt-rtx", "1.7.1.116", "some GPU", sm)
        assert check_engine(_spec(AHEAD), here) == AHEAD


@pytest.mark.parametrize(
    ("record", "here", "words"),
    [
        (
            replace(RECORD, version="10.3.0", targets=("sm_87",), gpu="Orin"),
            HERE,
            "built for sm_87 by TensorRT 10.3.0, this machine has sm_90 and TensorRT 11.4.0.106",
        ),
        (
            RECORD,
            replace(HERE, version="10.16.1.11"),
            f"built for sm_90 ({H100}) by TensorRT 11.4.0.106, this machine has sm_90 ({H100}) and "
            "TensorRT 10.16.1.11",
        ),
        (
            RECORD,
            replace(HERE, gpu="NVIDIA H200"),
            f"built for sm_90 ({H100}) by TensorRT 11.4.0.106, this machine has sm_90 (NVIDIA "
            "H200) and TensorRT 11.4.0.106",
        ),
        (
            AHEAD,
            replace(HERE, builder="tensorrt-rtx", version="1.7.1.116"),
            "built for sm_86, sm_89 by TensorRT-RTX 1.7.1.116, this machine has sm_90 and "
            "TensorRT-RTX 1.7.1.116",
        ),
        (
            AHEAD,
            replace(HERE, sm="sm_86"),
            "by TensorRT-RTX 1.7.1.116, this machine has sm_86 and TensorRT 11.4.0.106",
        ),
    ],
)
def test_a_foreign_engine_is_refused_with_both_sides(record, here, words):
    spec = _spec(record)
    with pytest.raises(SpecError) as refusal:
        check_engine(spec, here)
    line = str(refusal.value)
    assert line.startswith("cable-fp16.engine: built for ")
    assert words in line
    assert line.endswith(f"Engines are not portable; rebuild it here: {rebuild_command(spec)}")


def test_the_command_rebuilds_that_very_engine():
    assert rebuild_command(_spec()) == "destseg-export --category cable --format engine"
    fp32 = replace(_spec(AHEAD), precision="fp32")
    assert rebuild_command(fp32) == (
        "destseg-export --category cable --format engine --precision fp32 --builder tensorrt-rtx"
    )
