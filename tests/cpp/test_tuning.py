"""The library follows what ``destseg tune`` wrote, on this machine and for this file."""

import json

import numpy as np
import pytest

from destseg_deploy.spec import FileRecord
from destseg_deploy.tuning import Choice, Machine, Measured, Tuning
from tests.cpp.library import Refused, frame_of
from tests.tiny import unpacked

CHOICE = Choice("onnxruntime", threads=1, spinning=False)


@pytest.fixture
def artifact(packing, tmp_path):
    """A copy, so that a tuning beside it is this test's alone."""
    for suffix in (".onnx", ".json"):
        source = packing[0].with_suffix(suffix)
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path / packing[0].name


def write(artifact, choice=CHOICE):
    pytest.importorskip(choice.backend)
    record, measured = FileRecord.of(artifact), Measured(1, 1, 8, 10.0, 12.0, 1.2)
    return Tuning(1, record, choice, Machine.here(choice.backend), measured).write(artifact)


@pytest.mark.parametrize(
    "choice", [CHOICE, Choice("openvino", threads=1), Choice("openvino", streams=2)], ids=str
)
def test_it_is_followed(library, artifact, choice):
    library.need(choice.backend)
    write(artifact, choice)
    image = np.random.default_rng(0).integers(0, 256, (40, 24, 3)).astype(np.uint8)
    with library.open(artifact, tuned=1) as handle:
        assert handle.text("backend") == choice.backend
        assert np.array_equal(unpacked(handle.scores([image])[0])[0], image)


def test_a_reload_follows_the_tuning_of_the_other_file(library, artifact, tmp_path):
    library.need("onnxruntime")
    write(artifact)
    other = tmp_path / "other.onnx"
    other.write_bytes(artifact.read_bytes())
    other.with_suffix(".json").write_bytes(artifact.with_suffix(".json").read_bytes())
    with library.open(artifact, tuned=1) as handle:
        with pytest.raises(Refused, match=r"other.tuning.json: no such file"):
            library.check(library.c.destseg_reload(handle.value, str(other).encode()))
        write(other)
        library.check(library.c.destseg_reload(handle.value, str(other).encode()))


@pytest.mark.parametrize(
    ("place", "entry", "value", "words"),
    [
        ("machine", "cpu", "Another CPU", "made on Another CPU with"),
        ("machine", "cores", 4097, "with 4097 cores; this is"),
        ("machine", "version", "0.0.1", "made with version 0.0.1 of onnxruntime; this is"),
        ("artifact", "sha256", "0" * 64, "was changed after it was tuned"),
        (
            "choice",
            "backend",
            "tensorrt",
            "expected onnxruntime or openvino",
        ),
        ("choice", "precision", "bf16", 'precision is "bf16", expected fp32'),
        ("choice", "threads", -1, "threads is -1, expected 0 to 1024"),
        ("choice", "threads", "2", 'threads is "2", expected a whole number'),
        ("choice", "streams", 2, "streams is 2, expected 0 to 0"),
        (None, "format", 2, "format is 2, expected 1 to 1"),
        (None, "choice", 3, "entry 'choice: backend' is missing"),
    ],
)
def test_another_machine_file_or_version_is_refused(library, artifact, place, entry, value, words):
    library.need("onnxruntime")
    path = write(artifact)
    data = json.loads(path.read_text())
    (data[place] if place else data)[entry] = value
    path.write_text(json.dumps(data))
    with pytest.raises(Refused, match=words) as refused:
        library.open(artifact, tuned=1)
    assert refused.value.status == "backend"
    assert f"Run destseg tune {artifact} --images FOLDER on this machine." in str(refused.value)


@pytest.mark.parametrize("content", [b"\xff\xff", b" " * (5 << 20), b"{"], ids=range(3))
def test_a_damaged_tuning_is_to_be_made_again(library, artifact, content):
    """It is a fault of the tuning, not of the spec."""
    artifact.with_suffix(".tuning.json").write_bytes(content)
    with pytest.raises(Refused) as refused:
        library.open(artifact, tuned=1)
    assert refused.value.status == "backend"
    assert refused.value.text.startswith(f"{artifact.with_suffix('.tuning.json')}: ")
    assert "xport again" not in refused.value.text
    advice = f" Run destseg tune {artifact} --images FOLDER on this machine."
    assert refused.value.text.endswith(advice)


def test_engines_are_not_tuned(library, engine):
    with pytest.raises(Refused, match=r"tuned with tiny\.engine, but engines are not tuned"):
        library.open(engine, tuned=1)


def test_without_one_the_command_is_named(library, artifact):
    with pytest.raises(Refused, match=r"tuning.json: no such file, .* Run destseg tune"):
        library.open(artifact, tuned=1)
    with pytest.raises(Refused, match="tuned 2, expected 0 to 1"):
        library.open(artifact, tuned=2)


@pytest.mark.parametrize(
    "more", [{"threads": 1}, {"no_spinning": 1}, {"device": "cuda"}, {"worker_cores": "0"}]
)
def test_nothing_beside_it_decides(library, artifact, more):
    write(artifact)
    with pytest.raises(Refused, match="which the tuning decides"):
        library.open(artifact, tuned=1, **more)


def test_pixels_are_the_same_either_way(library, artifact):
    library.need("onnxruntime")
    write(artifact)
    frame = np.arange(40 * 24 * 3, dtype=np.uint8).reshape(40, 24, 3)
    with library.open(artifact, tuned=1) as tuned, library.open(artifact, "onnxruntime") as usual:
        scores = [one.infer([frame_of(frame)])[1][0].score for one in (tuned, usual)]
    assert scores[0] == scores[1]
