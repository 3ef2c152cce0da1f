"""ModelSpec: strict reading, one clear line for each fault, and the threshold's arithmetic."""

import json
import os
from dataclasses import asdict, is_dataclass, replace
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from destseg_deploy.errors import SpecError
from destseg_deploy.spec import (
    MAX_BATCH,
    MAX_CALL_BYTES,
    MAX_NETWORK_SIDE,
    MAX_SIDE,
    Accuracy,
    BatchRange,
    Budget,
    EngineRecord,
    FileRecord,
    FusionRecord,
    HalfRecord,
    InputSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
    ParityRecord,
    QuantizationRecord,
    RegionSpec,
    TeacherRecord,
    Threshold,
    TilingSpec,
    TrainingRecord,
    default_top_k,
    exceeds,
    spec_path,
    verdicts,
)
from destseg_deploy.spec.digest import Digest

PARITY = ParityRecord(
    compared="cable-fp16.onnx",
    images="images of data/cable/test",
    count=16,
    map_max_abs=1e-3,
    score_max_abs=2e-4,
    control=0.5,
    map_mean_abs=1e-5,
    score_mean_abs=1e-5,
    budget=Budget(0.01, 0.005, 5e-4),
    rounding="emulated fp16",
)

SPEC = ModelSpec(
    kind="onnx",
    category="cable",
    precision="fp16",
    input=InputSpec(1024, 1280, BatchRange(2, 3, 8), name="pixels"),
    network=NetworkSpec(320, 384),
    output=OutputSpec(512, 640, 188, "maps", "scores"),
    artifact=FileRecord("cable-fp16.onnx", "a" * 64),
    checkpoint=FileRecord("cable.safetensors", "b" * 64),
    threshold=Threshold(0.25, 0.75, "a rule", 40, 0.02),
    teacher=TeacherRecord("file", "resnet18.pth", "c" * 64),
    training=TrainingRecord(
        recipe={"size": 320, "decay": "none", "gamma": 4.0, "rotation": None},
        data="data/cable",
        images=224,
        held_out=("001.png",),
        textures="dtd/images",
        device="cuda:0",
        precision="bf16",
        loop="lean",
        seconds=12.5,
        losses={"student": 2.5},
        identity="d" * 64,
    ),
    parity=PARITY,
    fusion=FusionRecord(("stems",), PARITY, 1000, 900),
    half=HalfRecord(66, 63, ("stem",), 12, 1000, 1, 2, "conv_1", 100.5),
    quantization=QuantizationRecord(
        quantiser="destseg-export",
        scheme="u8",
        layers=("conv_2",),
        given_back=("conv_3",),
        share_of_macs=0.75,
        images="test images",
        count=20,
        fp32=Accuracy(0.75, 0.9),
        int8=Accuracy(0.74, 0.9),
        drop=1.0,
        max_drop=1.5,
        moved_alone={"conv_2": 0.01},
    ),
    engine=EngineRecord(
        key="e" * 64,
        builder="tensorrt",
        version="11.4.0.106",
        gpu="NVIDIA H100",
        targets=("sm_90",),
        onnx="cable-fp16.onnx",
        onnx_sha256="a" * 64,
        flags=("refit",),
        convolutions=66,
        half_convolutions=63,
        precision_source="engine",
        build_seconds=41.5,
        architecture="f" * 64,
    ),
    tools={"torch": "2.13"},
    extra={"newer": [1, {"a": None}]},
)
"""Every entry differs from its default, except those that have no other value and ``TILED``'s."""

TILED = replace(SPEC, tiling=TilingSpec(0.5, 64, 3), region=RegionSpec(100, 50, 800, 900))
"""The same with the entries that may be missing."""

ELLIPSE = np.hypot(*np.meshgrid(np.linspace(-1, 1, 1280), np.linspace(-1, 1, 1024))) < 0.9
MASKED = replace(TILED, region=RegionSpec.of_mask(ELLIPSE))


def _entries(cls: type, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Return path -> annotation of every entry, those of nested dataclasses included."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        found[(*prefix, name)] = hint
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                found |= _entries(part, (*prefix, name))
    return found


HINTS = {path: hint for path, hint in _entries(ModelSpec).items() if path != ("format",)}
ENTRIES = list(HINTS)
OBJECTS = [(), *(path[:-1] for path in ENTRIES if len(path) > 1)]
OBJECTS = list(dict.fromkeys(OBJECTS))


def _allows(path: tuple[str, ...], value: object) -> bool:
    """Return whether null or an empty list is a valid value of an entry."""
    if path == ("digest",):  # None only in memory
        return False
    hint = HINTS[path]
    if value is None:
        return type(None) in get_args(hint)
    return value == [] and get_origin(hint) is tuple and get_args(hint)[1] is ...


OPTIONAL = ("tiling", "region")
NUMBERS = [("tiling", "scale"), ("network", "std"), ("threshold", "score"), ("threshold", "pixel")]


def sealed(data: dict) -> str:
    """Return a spec's JSON with the digest that fits."""
    return json.dumps({**data, "digest": asdict(Digest.of(data))})


def _changed(path: tuple[str, ...], change) -> str:
    """Return the spec's JSON after ``change(the object that holds the entry, its name)``.

    Its digest fits, except where that is what was changed.
    """
    data = json.loads((MASKED if path[0] in OPTIONAL else SPEC).to_json())
    holder = data
    for name in path[:-1]:
        holder = holder[name]
    change(holder, path[-1])
    return json.dumps(data) if path[0] == "digest" or "digest" not in data else sealed(data)


def _refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(text, "cable.json")
    message = str(caught.value)
    assert message.startswith("cable.json: ")
    assert "\n" not in message
    return message


def test_every_entry_was_found():
    names = {path[-1] for path in ENTRIES}
    assert names > {"kind", "opt", "mean", "top_k", "false_reject_rate", "tools", "image_auroc"}
    assert ("fusion", "parity", "budget", "map_mean") in ENTRIES


def test_json_round_trip():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    unjudged = replace(SPEC, threshold=None)
    assert ModelSpec.from_json(unjudged.to_json()) == unjudged
    assert SPEC.to_json().endswith("}\n")


def test_optional_entries_are_written_only_where_they_are_used():
    """Older versions refuse entries that they do not know, so that they read the first."""
    plain, tiled = (json.loads(spec.to_json()) for spec in (SPEC, MASKED))
    assert set(tiled) - set(plain) == set(OPTIONAL)
    assert ModelSpec.from_json(MASKED.to_json()) == MASKED
    assert ModelSpec.from_json(sealed({**plain, "tiling": None, "region": None})) == SPEC


def test_whole_numbers_are_read_as_floats():
    text = _changed(("threshold", "score"), lambda holder, name: holder.update({name: 1}))
    score = ModelSpec.from_json(text).threshold.score
    assert (score, type(score)) == (1.0, float)


@pytest.mark.parametrize("path", ENTRIES, ids=".".join)
def test_a_missing_entry_is_named(path):
    if len(path) == 1 and path[0] in OPTIONAL:
        ModelSpec.from_json(_changed(path, lambda holder, name: holder.pop(name)))
        return
    message = _refusal(_changed(path, lambda holder, name: holder.pop(name)))
    assert f"entry '{path[-1]}' is missing" in message
    assert all(f"{name}: " in message for name in path[:-1])


@pytest.mark.parametrize("path", OBJECTS, ids=str)
def test_an_unknown_entry_is_named(path):
    text = _changed((*path, "colour"), lambda holder, name: holder.update({name: "RGB"}))
    assert "unknown entry 'colour'" in _refusal(text)


@pytest.mark.parametrize("wrong", [True, None, [], [1, 2, "3"]], ids=json.dumps)
@pytest.mark.parametrize("path", ENTRIES, ids=".".join)
def test_a_mistyped_entry_is_named(path, wrong):
    text = _changed(path, lambda holder, name: holder.update({name: wrong}))
    if _allows(path, wrong):
        ModelSpec.from_json(text)
        return
    message = _refusal(text)
    assert f"{path[-1]} is " in message
    assert ", expected " in message
    assert "class" not in message


@pytest.mark.parametrize("wrong", ["1", 2.5, {"a": 1}], ids=repr)
def test_numbers_are_not_read_from_other_types(wrong):
    text = _changed(("input", "height"), lambda holder, name: holder.update({name: wrong}))
    assert f"height is {json.dumps(wrong)}, expected a whole number" in _refusal(text)


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_threshold_that_is_no_number_is_refused(path, value):
    """score > NaN is never true: every defect would pass as a good part."""
    wrong = ["@", "@", "@"] if path[-1] == "std" else "@"
    text = _changed(path, lambda holder, name: holder.update({name: wrong}))
    assert f"{path[-1]} is " in _refusal(text.replace('"@"', value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), "tensorflow"),
        (("precision",), "fp64"),
        (("network", "resize"), "bicubic"),
        (("input", "dtype"), "float32"),
        (("input", "layout"), "NCHW"),
        (("input", "color"), "BGR"),
    ],
)
def test_what_no_runtime_does_is_refused(path, value):
    text = _changed(path, lambda holder, name: holder.update({name: value}))
    message = _refusal(text)
    assert f"{': '.join(path)} is {json.dumps(value)}, expected " in message


def test_a_batch_out_of_order_is_refused():
    text = _changed(("input", "batch", "opt"), lambda holder, name: holder.update({name: 99}))
    with pytest.raises(SpecError, match=r"2:99:8.*1 <= MIN <= OPT <= MAX"):
        ModelSpec.from_json(text)


SIZES = [
    *[(part, side) for part in ("input", "network", "output") for side in ("height", "width")],
    ("output", "top_k"),
]


@pytest.mark.parametrize("wrong", [0, -1, 2**70])
@pytest.mark.parametrize("path", SIZES, ids=".".join)
def test_a_size_that_could_not_become_a_buffer_is_named(path, wrong):
    text = _changed(path, lambda holder, name: holder.update({name: wrong}))
    assert f"{': '.join(path)} is {wrong}, expected 1 to " in _refusal(text)


def test_the_largest_sizes_are_read_and_larger_ones_refused():
    for path, most in (
        (("network", "height"), MAX_NETWORK_SIDE),
        (("output", "width"), MAX_SIDE),
        (("output", "top_k"), 320 * 384),
        (("threshold", "images"), 2**31 - 1),
    ):
        ModelSpec.from_json(_changed(path, lambda o, name, most=most: o.update({name: most})))
        text = _changed(path, lambda o, name, most=most: o.update({name: most + 1}))
        assert f" to {most}" in _refusal(text)
    batch = ("input", "batch", "max")
    fits = MAX_CALL_BYTES // (3 * 1024 * 1280)
    ModelSpec.from_json(_changed(batch, lambda holder, name: holder.update({name: fits})))
    text = _changed(batch, lambda holder, name: holder.update({name: fits + 1}))
    assert f"a batch of {fits + 1} takes {(fits + 1) * 3 * 1024 * 1280} bytes" in _refusal(text)
    text = _changed(batch, lambda holder, name: holder.update({name: MAX_BATCH + 1}))
    assert f"batch: max is {MAX_BATCH + 1}, expected 1 to {MAX_BATCH}" in _refusal(text)


def test_json_beyond_all_measure_is_refused_in_a_line():
    assert "nested too deeply" in _refusal("[" * 100_000)
    huge = 10**400
    text = _changed(("threshold", "score"), lambda holder, name: holder.update({name: huge}))
    assert f"score is 1{'0' * 79}..., expected a number" in _refusal(text)


@pytest.mark.parametrize("text", ["[]", "7", "null"])
def test_json_that_is_no_object_is_refused(text):
    assert f"{text} is not a spec, expected an object" in _refusal(text)


@pytest.mark.parametrize("number", [0, 3, "1", None, 1.5, True])
def test_another_format_is_refused_with_its_number(number):
    text = _changed(("format",), lambda holder, name: holder.update({name: number}))
    expected = f"format is {json.dumps(number)}, this version of destseg-deploy reads 1 and 2"
    assert expected in _refusal(text)


def test_what_a_newer_version_adds_is_kept_and_ignored():
    again = ModelSpec.from_json(SPEC.to_json())
    assert again.extra == {"newer": [1, {"a": None}]}
    assert json.loads(again.to_json())["extra"] == again.extra


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("engine",), None, "engine is null, but kind is engine"),
        (("engine", "half_convolutions"), 67, "half_convolutions is 67, expected 0 to 66"),
        (("engine", "half_convolutions"), -1, "half_convolutions is -1, expected 0 to 66"),
        (("engine", "build_seconds"), -0.5, "build_seconds is negative"),
        (("engine", "precision_source"), "guess", 'precision_source is "guess", expected engine'),
        (("quantization", "scheme"), "u4", 'scheme is "u4", expected u8 or s8'),
    ],
)
def test_records_that_cannot_be_are_refused(path, value, words):
    text = _changed(path, lambda holder, name: holder.update({name: value}))
    assert words in _refusal(text.replace('"kind": "onnx"', '"kind": "engine"'))


@pytest.mark.parametrize("text", ["", "{", SPEC.to_json()[:-20], "<html>"])
def test_what_is_no_json_is_refused(text):
    assert "not JSON" in _refusal(text)


def test_write_and_read_lie_beside_the_artifact(tmp_path):
    artifact = tmp_path / "deep" / "cable-fp16.onnx"
    assert SPEC.write(artifact) == spec_path(artifact) == tmp_path / "deep" / "cable-fp16.json"
    assert ModelSpec.read(artifact) == SPEC
    assert [path.name for path in artifact.parent.iterdir()] == ["cable-fp16.json"]


def test_a_missing_spec_says_where_it_should_be(tmp_path):
    artifact = tmp_path / "cable.onnx"
    with pytest.raises(SpecError, match=r"onnx: no such file, and no spec cable\.json beside it"):
        ModelSpec.read(artifact)
    artifact.touch()
    with pytest.raises(SpecError, match=r"onnx: no spec cable\.json beside it\. Copy the \.json"):
        ModelSpec.read(artifact)


def test_an_unreadable_spec_is_refused(tmp_path):
    (tmp_path / "cable.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read"):
        ModelSpec.read(tmp_path / "cable.onnx")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(SpecError, match="cannot be read"):
        ModelSpec.read(tmp_path / "folder.onnx")


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_a_spec_that_an_editor_of_windows_saved_is_read(encoding, tmp_path):
    artifact = tmp_path / "cable.onnx"
    named = replace(SPEC, category="käbel €")
    named.write(artifact)
    path = spec_path(artifact)
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    assert ModelSpec.read(artifact) == named
    named.write(artifact)
    assert path.read_bytes()[:1] == b"{"  # written in UTF-8


def test_what_is_no_text_or_no_file_is_named(tmp_path):
    artifact = tmp_path / "cable.onnx"
    path = spec_path(artifact)
    for content, reason in (
        ('{"category": "k\xe4bel"}'.encode("latin-1"), r"byte 15 is not UTF-8; save it as UTF-8"),
        (bytes((4 << 20) + 1), "more than 4 MiB"),
    ):
        path.write_bytes(content)
        with pytest.raises(SpecError, match=rf"cable\.json: cannot be read \(.*{reason}"):
            ModelSpec.read(artifact)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SpecError, match=r"cable\.json: cannot be read \(it is not a file\)"):
        ModelSpec.read(artifact)


def test_the_artifact_must_be_the_one_described(tmp_path):
    artifact = tmp_path / "cable.onnx"
    artifact.write_bytes(b"a graph" * 1000)
    spec = replace(SPEC, artifact=FileRecord.of(artifact))
    spec.check_artifact(artifact)

    whole = artifact.read_bytes()
    for content in (whole[:-1], whole + b"\0", b"another model", b""):
        artifact.write_bytes(content)
        with pytest.raises(SpecError, match=r"damaged or the pair was mixed up.*--category cable"):
            spec.check_artifact(artifact)
    artifact.unlink()
    with pytest.raises(SpecError, match="no such file, only its spec"):
        spec.check_artifact(artifact)


def test_properties_are_those_of_the_parts():
    assert (SPEC.size, SPEC.network_size, SPEC.map_size) == ((1024, 1280), (320, 384), (512, 640))
    assert SPEC.max_batch == 8


def test_default_top_k_is_the_papers_share():
    assert default_top_k(256, 256) == 100
    assert default_top_k(512, 512) == 400
    assert default_top_k(1, 1) == 1


# --- batch range


@pytest.mark.parametrize(
    ("text", "expected"), [("1:1:16", (1, 1, 16)), ("2:4:8", (2, 4, 8)), ("4", (4, 4, 4))]
)
def test_batch_ranges_are_read(text, expected):
    batch = BatchRange.parse(text)
    assert (batch.min, batch.opt, batch.max) == expected
    assert BatchRange.parse(str(batch)) == batch


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "1:2", "1:2:3:4", "4:2:8", "1:9:8", "0:1:1", "a:b:c", "1.5", "1::4", "²"],
)
def test_other_batch_ranges_are_refused(text):
    with pytest.raises(SpecError, match=r"batch .*expected .*MIN"):
        BatchRange.parse(text)


# --- threshold

LIMITS = st.floats(0, 1)


@given(LIMITS, LIMITS, LIMITS)
@example(1.0, 1.0, 0.999999)
@example(0.0, 1e-7, 0.0)
def test_normalizing_keeps_order_and_verdict(limit, first, second):
    threshold = Threshold(limit, limit, "test")
    low, high = sorted((first, second))
    assert 0 <= threshold.normalized(low) <= threshold.normalized(high) <= 1
    assert threshold.normalized(low) <= 0.5 or exceeds(low, limit)
    assert threshold.normalized(high) >= 0.5 or not exceeds(high, limit)


@pytest.mark.parametrize("limit", [2**-10, 0.25, 0.5, 1 - 2**-10])
def test_the_threshold_lies_at_one_half_and_the_ends_stay(limit):
    threshold = Threshold(limit, 0.5, "test")
    assert threshold.normalized(limit) == 0.5
    assert threshold.normalized(0) == 0
    assert threshold.normalized(1) == pytest.approx(1)
    assert threshold.normalized(limit / 2) == pytest.approx(0.25)
    assert threshold.normalized((limit + 1) / 2) == pytest.approx(0.75)


@pytest.mark.parametrize("limit", [0.4, 0.97, 0.99, 0.999])
def test_a_score_that_equals_the_threshold_as_float32_is_ok_and_at_one_half(limit):
    """0.99 is a little more as a float32, which every score is."""
    threshold, score = Threshold(limit, 0.5, "test"), np.float32(limit)
    assert threshold.normalized(float(score)) == 0.5
    assert verdicts([score, np.nextafter(score, np.float32(1))], limit) == ["OK", "NG"]


def test_normalizing_at_the_ends():
    nothing_passes, everything_passes = Threshold(0, 0, "test"), Threshold(1, 1, "test")
    assert [nothing_passes.normalized(score) for score in (0, 0.5, 1)] == [0, 0.75, 1]
    assert [everything_passes.normalized(score) for score in (0, 0.5, 1)] == [0, 0.25, 0.5]


@pytest.mark.parametrize("score", [-0.001, 1.001])
def test_normalizing_clips_what_rounding_left_outside(score):
    for limit in (0.0, 0.4, 1.0):
        assert 0 <= Threshold(limit, 0.5, "test").normalized(score) <= 1


def test_an_engine_and_the_onnx_file_it_was_built_from_have_specs_of_their_own(tmp_path):
    assert spec_path(tmp_path / "cable-fp16.onnx").name == "cable-fp16.json"
    assert spec_path(tmp_path / "cable-fp16.engine").name == "cable-fp16.engine.json"
    assert spec_path(spec_path(tmp_path / "x.engine")).name == "x.engine.json"


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_what_names_no_file_has_no_spec(name):
    with pytest.raises(SpecError, match="no name of a file"):
        ModelSpec.read(name)
