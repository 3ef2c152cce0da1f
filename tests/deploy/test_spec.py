"""ModelSpec: strict reading, one clear line for each fault, and the threshold's arithmetic."""

import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from destseg_deploy.errors import SpecError
from destseg_deploy.spec import (
    MAX_BATCH,
    MAX_CALL_BYTES,
    MAX_SIDE,
    MAX_TOP_K,
    BatchRange,
    FileRecord,
    InputSpec,
    ModelSpec,
    NetworkSpec,
    OutputSpec,
    Threshold,
    default_top_k,
    spec_path,
)

SPEC = ModelSpec(
    kind="onnx",
    category="cable",
    precision="fp16",
    input=InputSpec(1024, 1280, BatchRange(2, 3, 8), name="pixels"),
    network=NetworkSpec(320, 384, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    output=OutputSpec(512, 640, 188, "maps", "scores"),
    artifact=FileRecord("cable-fp16.onnx", "a" * 64),
    checkpoint=FileRecord("cable.safetensors", "b" * 64),
    threshold=Threshold(0.25, 0.75, "a rule", 40, 0.02),
    teacher={"source": "random"},
    training={"recipe": {"size": 320}},
    parity={"map_max_abs": 1e-6},
    engine={"sm": 90},
    tools={"torch": "2.13"},
)
"""Every entry differs from its default."""

FREE = ("teacher", "training", "parity", "engine", "tools")


def _entries(data: dict, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every entry, those inside nested objects included."""
    found = []
    for name, value in data.items():
        found.append((*prefix, name))
        if isinstance(value, dict) and name not in FREE:
            found += _entries(value, (*prefix, name))
    return found


ENTRIES = [path for path in _entries(json.loads(SPEC.to_json())) if path != ("format",)]
OBJECTS = [(), ("input",), ("input", "batch"), ("network",), ("output",), ("artifact",)]
NUMBERS = [("network", "std"), ("threshold", "score"), ("threshold", "pixel")]


def _changed(path: tuple[str, ...], change) -> str:
    """Return the spec's JSON after ``change(the object that holds the entry, its name)``."""
    data = json.loads(SPEC.to_json())
    holder = data
    for name in path[:-1]:
        holder = holder[name]
    change(holder, path[-1])
    return json.dumps(data)


def _refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(text, "cable.json")
    message = str(caught.value)
    assert message.startswith("cable.json: ")
    assert "\n" not in message
    return message


def test_every_entry_was_found():
    names = {path[-1] for path in ENTRIES}
    assert names > {"kind", "opt", "mean", "top_k", "sha256", "false_reject_rate", "tools"}


def test_json_round_trip():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    unjudged = replace(SPEC, threshold=None)
    assert ModelSpec.from_json(unjudged.to_json()) == unjudged
    assert SPEC.to_json().endswith("}\n")


def test_whole_numbers_are_read_as_floats():
    text = _changed(("threshold", "score"), lambda holder, name: holder.update({name: 1}))
    score = ModelSpec.from_json(text).threshold.score
    assert (score, type(score)) == (1.0, float)


@pytest.mark.parametrize("path", ENTRIES, ids=".".join)
def test_a_missing_entry_is_named(path):
    message = _refusal(_changed(path, lambda holder, name: holder.pop(name)))
    assert f"entry {path[-1]!r} is missing" in message
    assert all(f"{name}: " in message for name in path[:-1])


@pytest.mark.parametrize("path", OBJECTS, ids=str)
def test_an_unknown_entry_is_named(path):
    text = _changed((*path, "colour"), lambda holder, name: holder.update({name: "RGB"}))
    assert "unknown entry 'colour'" in _refusal(text)


@pytest.mark.parametrize("wrong", [True, None, [], [1, 2, "3"]], ids=json.dumps)
@pytest.mark.parametrize("path", ENTRIES, ids=".".join)
def test_a_mistyped_entry_is_named(path, wrong):
    text = _changed(path, lambda holder, name: holder.update({name: wrong}))
    if wrong is None and path in (("threshold",), ("threshold", "false_reject_rate")):
        ModelSpec.from_json(text)
        return
    message = _refusal(text)
    assert f"{path[-1]} is " in message
    assert ", expected " in message
    assert "class" not in message


@pytest.mark.parametrize("wrong", ["1", 2.5, {"a": 1}], ids=repr)
def test_numbers_are_not_read_from_other_types(wrong):
    text = _changed(("input", "height"), lambda holder, name: holder.update({name: wrong}))
    assert f"height is {wrong!r}, expected int" in _refusal(text)


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
    assert ".".join(path) in message
    assert repr(value) in message


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
    for path, most in ((("network", "height"), MAX_SIDE), (("output", "top_k"), MAX_TOP_K)):
        ModelSpec.from_json(_changed(path, lambda o, name, most=most: o.update({name: most})))
        text = _changed(path, lambda o, name, most=most: o.update({name: most + 1}))
        assert f"expected 1 to {most}" in _refusal(text)
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
    assert f"score is {huge}, expected float" in _refusal(text)


@pytest.mark.parametrize("text", ["[]", "7", '{"kind": "onnx"}'])
def test_json_that_is_no_spec_is_refused(text):
    assert "this version of destseg-deploy reads 1" in _refusal(text)


@pytest.mark.parametrize("number", [0, 2, "1", None, 1.5])
def test_another_format_is_refused_with_its_number(number):
    text = _changed(("format",), lambda holder, name: holder.update({name: number}))
    assert f"format {number!r}, this version of destseg-deploy reads 1" in _refusal(text)


@pytest.mark.parametrize("text", ["", "{", SPEC.to_json()[:-20], "<html>"])
def test_what_is_no_json_is_refused(text):
    assert "not JSON" in _refusal(text)


def test_write_and_read_lie_beside_the_artifact(tmp_path):
    artifact = tmp_path / "deep" / "cable-fp16.onnx"
    assert SPEC.write(artifact) == spec_path(artifact) == tmp_path / "deep" / "cable-fp16.json"
    assert ModelSpec.read(artifact) == SPEC
    assert [path.name for path in artifact.parent.iterdir()] == ["cable-fp16.json"]


def test_a_missing_spec_says_where_it_should_be(tmp_path):
    with pytest.raises(SpecError, match=r"no spec cable\.json beside it\. Copy the \.json"):
        ModelSpec.read(tmp_path / "cable.onnx")


def test_an_unreadable_spec_is_refused(tmp_path):
    (tmp_path / "cable.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read"):
        ModelSpec.read(tmp_path / "cable.onnx")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(SpecError, match="cannot be read"):
        ModelSpec.read(tmp_path / "folder.onnx")


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
    assert threshold.normalized(low) <= 0.5 or low > limit
    assert threshold.normalized(high) >= 0.5 or high <= limit


@pytest.mark.parametrize("limit", [0.001, 0.25, 0.5, 0.999])
def test_the_threshold_lies_at_one_half_and_the_ends_stay(limit):
    threshold = Threshold(limit, 0.5, "test")
    assert threshold.normalized(limit) == 0.5
    assert threshold.normalized(0) == 0
    assert threshold.normalized(1) == pytest.approx(1)
    assert threshold.normalized(limit / 2) == pytest.approx(0.25)
    assert threshold.normalized((limit + 1) / 2) == pytest.approx(0.75)


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
