"""A tuning is followed on the machine, for the file and with the version it was made with."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from destseg_deploy import tuning
from destseg_deploy.cli.predict import predict
from destseg_deploy.errors import BackendError, OutputError, SpecError
from destseg_deploy.loading import load
from destseg_deploy.options import OpenVinoOptions, OrtOptions
from destseg_deploy.spec import FileRecord
from destseg_deploy.tuning import Choice, Machine, Measured, Tuning, hold_tuning, tuned, tuning_path

CHOICE = Choice("onnxruntime", threads=1, spinning=False)


@pytest.fixture
def artifact(own_tiny):
    return own_tiny


def write(artifact, choice=CHOICE, **changes):
    found = Tuning(
        format=1,
        artifact=FileRecord.of(artifact),
        choice=choice,
        machine=Machine.here("onnxruntime"),
        measured=Measured(1, 1, 8, 10.0, 12.0, 1.2),
    )
    return replace(found, **changes).write(artifact)


def edit(path, **entries):
    data = json.loads(path.read_text())
    for name, value in entries.items():
        place, _, entry = name.rpartition("__")
        (data[place] if place else data)[entry] = value
    path.write_text(json.dumps(data))


def test_it_is_read_as_it_was_written(artifact):
    path = write(artifact)
    assert path == artifact.with_name("cable-fp32.tuning.json") == tuning_path(artifact)
    assert Tuning.read(artifact).choice == Choice("onnxruntime", threads=1, spinning=False)
    assert tuned(artifact) == ("onnxruntime", OrtOptions(threads=1, spinning=False))


def test_each_choice_is_the_options_of_its_back_end():
    assert Choice("openvino", "bf16", 2).options == OpenVinoOptions(threads=2, precision="bf16")
    assert str(Choice("openvino", "bf16", 2)) == "openvino, bf16, 2 threads"
    assert Choice("openvino", streams=4).options == OpenVinoOptions(streams=4)
    assert str(Choice("openvino", streams=4)) == "openvino, 4 streams"
    assert str(Choice("onnxruntime", spinning=False)) == "onnxruntime, no spinning"


def test_load_follows_it(artifact, monkeypatch):
    write(artifact)
    opened = []
    runtime = "destseg_deploy.runtime.ort.runtime.OrtRuntime"
    from destseg_deploy.runtime.ort.runtime import OrtRuntime

    def note(path, device, options):
        opened.append(options)
        return OrtRuntime(path, device, options)

    monkeypatch.setattr(runtime, note)
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    with load(artifact, options="tuned") as predictor, load(artifact) as usual:
        assert predictor(frame).score == pytest.approx(usual(frame).score, abs=1e-5)
    assert opened == [OrtOptions(threads=1, spinning=False), OrtOptions()]


def test_what_contradicts_it_is_refused(artifact):
    write(artifact)
    with pytest.raises(BackendError, match="was tuned to onnxruntime"):
        load(artifact, backend="openvino", options="tuned")
    with pytest.raises(BackendError, match="a tuning is for the CPU"):
        load(artifact, device="cuda", options="tuned")


def test_without_one_the_command_is_named(artifact):
    with pytest.raises(BackendError, match=r"no such file, .* Run destseg tune .*cable-fp32.onnx"):
        load(artifact, options="tuned")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"machine__cpu": "Another CPU"}, "made on Another CPU with"),
        ({"machine__cores": 4097}, "with 4097 cores"),
        ({"machine__version": "0.0.1"}, "version 0.0.1; this is"),
        ({"artifact__sha256": "0" * 64}, "was changed after it was tuned"),
        ({"format": 2}, "format is 2, expected 1 to 1. Run destseg tune"),
        ({"choice__backend": "tensorrt"}, "expected onnxruntime or openvino. Run"),
        ({"choice__precision": "bf16"}, "expected fp32. Run"),
        ({"choice__threads": -1}, "threads is -1, expected 0 to 1024"),
        ({"choice__threads": "2"}, "expected a whole number"),
        ({"choice__color": 1}, "unknown entry 'color'"),
    ],
)
def test_another_machine_file_or_version_is_refused(artifact, entries, words):
    edit(write(artifact), **entries)
    with pytest.raises(BackendError, match=words) as refused:
        tuned(artifact)
    assert "\n" not in str(refused.value)
    assert "xport" not in str(refused.value), "what helps is another tuning"


def test_a_file_that_is_no_tuning_is_refused(artifact):
    tuning_path(artifact).write_text("{")
    with pytest.raises(BackendError, match="not JSON"):
        tuned(artifact)


def test_a_back_end_that_is_missing_is_named(artifact, monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'openvino'")

    write(artifact, Choice("openvino"))
    monkeypatch.setattr(tuning, "import_openvino", missing)
    with pytest.raises(BackendError, match=r"chose openvino, which is not installed"):
        tuned(artifact)


def test_commands_follow_it_and_take_nothing_beside_it(artifact, category, tmp_path):
    words = [str(artifact), str(category / "test" / "good"), "--tuned"]
    refused = CliRunner().invoke(predict, [*words, "--output", str(tmp_path / "none")])
    assert refused.exit_code == 1
    assert "is not tuned" in refused.output
    write(artifact)
    done = CliRunner().invoke(predict, [*words, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for more in (["--threads", "1"], ["--no-ort-arena"], ["--backend", "openvino"]):
        refused = CliRunner().invoke(predict, [*words, *more])
        assert refused.exit_code == 2
        assert f"{more[0]} and --tuned" in refused.output.replace("--ort-arena", "--no-ort-arena")


def test_two_runs_do_not_measure_one_artifact(artifact):
    with hold_tuning(artifact), pytest.raises(OutputError, match=r"\.tuning\.json: process"):
        with hold_tuning(artifact):
            pass
    with pytest.raises(SpecError, match="no spec"), hold_tuning(artifact.with_name("no.onnx")):
        pass
