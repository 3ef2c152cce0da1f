"""EngineRecord: read strictly, and engines that do not fit the machine are refused by name."""

import json
from dataclasses import replace

import pytest

from destseg_deploy.errors import SpecError
from destseg_deploy.runtime.engine_record import (
    EngineRecord,
    Machine,
    check_engine,
    rebuild_command,
)
from destseg_deploy.runtime.fake import fake_spec
from destseg_deploy.spec import FileRecord, ModelSpec

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


def _spec(record: EngineRecord = RECORD, **changes) -> ModelSpec:
    artifact = FileRecord("cable-fp16.engine", "c" * 64)
    spec = replace(fake_spec(), kind="engine", category="cable", precision="fp16")
    return replace(spec, artifact=artifact, engine={**record.to_dict(), **changes})


def _without(name: str) -> ModelSpec:
    spec = _spec()
    return replace(spec, engine={k: v for k, v in spec.engine.items() if k != name})


def test_a_record_comes_back_from_the_file():
    spec = ModelSpec.from_json(_spec().to_json())
    assert EngineRecord.of(spec) == RECORD
    assert EngineRecord.of(spec).refittable
    assert EngineRecord.of(spec).built_by == "TensorRT 11.4.0.106"
    assert not replace(RECORD, flags=()).refittable


def test_a_record_is_plain_json():
    assert json.loads(json.dumps(RECORD.to_dict())) == RECORD.to_dict()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("key", 7, "text"),
        ("builder", None, "text"),
        ("gpu", 7, "text or null"),
        ("targets", "sm_90", "a list of text"),
        ("targets", ["sm_90", 86], "a list of text"),
        ("flags", None, "a list of text"),
        ("convolutions", 66.0, "a count"),
        ("convolutions", True, "a count"),
        ("half_convolutions", -1, "a count"),
        ("build_seconds", "41.5", "seconds"),
        ("build_seconds", float("nan"), "seconds"),
        ("build_seconds", True, "seconds"),
        ("architecture", 7, "text or null"),
    ],
)
def test_a_mistyped_entry_is_named(name, value, expected):
    with pytest.raises(SpecError, match=rf"\({name} is .*, expected {expected}\)"):
        EngineRecord.of(_spec(**{name: value}))


def test_missing_unknown_and_impossible_entries_are_named():
    with pytest.raises(SpecError, match="entry 'targets' is missing"):
        EngineRecord.of(_without("targets"))
    with pytest.raises(SpecError, match="unknown entry 'cuda'"):
        EngineRecord.of(_spec(cuda="13"))
    with pytest.raises(SpecError, match="half_convolutions is more than convolutions"):
        EngineRecord.of(_spec(half_convolutions=67))
    with pytest.raises(SpecError, match="precision_source is 'guess'"):
        EngineRecord.of(_spec(precision_source="guess"))
    with pytest.raises(SpecError, match=r"cable-fp16\.engine: .*Rebuild it: destseg-export"):
        EngineRecord.of(_spec(key=7))


def test_records_that_know_no_architecture_are_read():
    assert EngineRecord.of(_without("architecture")).architecture is None


def test_a_spec_of_another_kind_has_no_record():
    with pytest.raises(SpecError, match="its spec says onnx, expected engine"):
        EngineRecord.of(replace(_spec(), kind="onnx"))


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
