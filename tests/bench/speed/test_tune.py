"""Tuning takes what is faster beyond doubt, and says what it tried."""

import json
from dataclasses import replace
from threading import Barrier, current_thread, main_thread

import pytest
from click.testing import CliRunner

from destseg_bench.cli.tune import tune as command
from destseg_bench.report.tune_table import tune_table
from destseg_bench.speed import tune as module
from destseg_bench.speed.tune import BACK_ENDS, _fastest, _variations, budget_of, tune
from destseg_deploy.errors import BackendError, DataError, ParityError
from destseg_deploy.runtime.ort.runtime import OrtRuntime
from destseg_deploy.spec import ModelSpec
from destseg_deploy.tuning import Choice, tuned

DEFAULT, OTHER, BF16 = BACK_ENDS


@pytest.fixture
def images(category):
    return sorted((category / "test").rglob("*.png"))


def timed(monkeypatch, milliseconds):
    """Each choice takes as long as the table says, by a tenth more in every second round."""

    def interleave(calls, *, rounds, warmup, report):
        for call in calls.values():
            call()
        report(1, 1, next(iter(calls)))
        return {
            name: [1e-3 * milliseconds(name) * (1 + i % 2 / 10) for i in range(rounds)]
            for name in calls
        }

    monkeypatch.setattr(module, "interleave", interleave)


def test_a_later_choice_must_be_faster_beyond_doubt():
    clear = {DEFAULT: [1.0] * 9, OTHER: [0.9] * 9}
    assert _fastest(clear) == OTHER
    doubtful = {DEFAULT: [1.0] * 9, OTHER: [0.9, 1.1] * 4 + [0.8]}
    assert _fastest(doubtful) == DEFAULT
    assert _fastest({DEFAULT: [1.0] * 9, OTHER: [0.8] * 9, BF16: [0.9] * 9}) == OTHER


def test_threads_are_varied_within_the_cores(monkeypatch):
    monkeypatch.setattr(module, "allowed_cores", lambda: list(range(6)))
    assert [one.threads for one in _variations(OTHER)] == [6, 3, 1]
    assert list(_variations(DEFAULT))[-1] == Choice("onnxruntime", spinning=False)
    monkeypatch.setattr(module, "allowed_cores", lambda: [0])
    assert [one.threads for one in _variations(OTHER)] == [1]


def test_streams_are_tried_where_several_cameras_ask_openvino(monkeypatch):
    monkeypatch.setattr(module, "allowed_cores", lambda: list(range(2)))
    assert [one.streams for one in _variations(OTHER, 4)] == [0, 0, 2, 4]
    assert [one.streams for one in _variations(OTHER, 1)] == [0, 0]
    assert not any(one.streams for one in _variations(DEFAULT, 4))


def test_all_cameras_ask_at_the_same_time(own_tiny, images, monkeypatch):
    """Each call waits for the other ones; one after another, they would wait in vain."""
    meeting = Barrier(3, timeout=30)
    timed(monkeypatch, lambda name: 1.0)

    def ask(self, frames, really=OrtRuntime.infer):
        if current_thread() is not main_thread():  # the comparison of precisions asks from here
            meeting.wait()
        return really(self, frames)

    monkeypatch.setattr(module, "BACK_ENDS", (DEFAULT,))
    monkeypatch.setattr(OrtRuntime, "infer", ask)
    found, _ = tune(own_tiny, images, rounds=8, cameras=3)
    assert found.measured.cameras == 3
    assert ", 3 cameras: onnxruntime" in tune_table(own_tiny, found, []).text()


def test_the_fastest_back_end_is_tried_with_other_threads(own_tiny, images, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(module, "allowed_cores", lambda: [0, 1])
    times = {"onnxruntime": 20.0, "openvino": 10.0, "openvino, 1 thread": 8.0}
    timed(monkeypatch, lambda name: times.get(name, 30.0))
    found, trials = tune(own_tiny, images, rounds=8)
    assert found.choice == Choice("openvino", threads=1)
    assert found.measured.times_faster == pytest.approx(20 / 8)
    assert found.measured.milliseconds == pytest.approx(8 * 1.05)
    second = {one.choice for one in trials if one.stage == "threads"}
    assert second == {DEFAULT, OTHER, *_variations(OTHER)}
    text = tune_table(own_tiny, found, trials).text()
    assert "2.50 times as fast as without options (8.4 ms instead of 21.0 ms)" in text
    assert text.count("taken") == 1


def test_a_precision_beyond_its_budget_does_not_compete(own_tiny, images, monkeypatch):
    pytest.importorskip("openvino")

    def refuse(found, precision, name):
        if precision == "bf16":
            raise ParityError(f"{name}: too far")

    monkeypatch.setattr(module, "check_difference", refuse)
    timed(monkeypatch, lambda name: 1.0 if "bf16" in name else 2.0)
    found, trials = tune(own_tiny, images, rounds=8)
    assert found.choice == DEFAULT
    reasons = [one.skipped for one in trials if one.choice == BF16]
    assert reasons in (["openvino, bf16: too far"], [r for r in reasons if "compute" in r])


def test_an_int8_artifact_may_round_otherwise_in_another_back_end(own_tiny):
    spec = ModelSpec.read(own_tiny)
    int8 = replace(spec, precision="int8")
    assert [budget_of(one, int8) for one in BACK_ENDS] == ["bf16"] * 3
    assert [budget_of(one, spec) for one in BACK_ENDS] == ["fp32", "fp32", "bf16"]


def test_what_cannot_be_tuned_is_refused(checkpoint, own_tiny, images):
    with pytest.raises(BackendError, match=r"expected an \.onnx or \.xml"):
        tune(checkpoint, images)
    with pytest.raises(DataError, match="1 images, expected at least 2"):
        tune(own_tiny, images[:1])


def test_the_command_writes_what_load_follows(own_tiny, category):
    """Real calls in both back ends; which of them wins is this machine's affair."""
    words = [str(own_tiny), "--images", str(category / "test"), "--rounds", "6"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    backend, options = tuned(own_tiny)
    written = json.loads(own_tiny.with_name("cable-fp32.tuning.json").read_text())
    assert written["choice"]["backend"] == backend
    assert written["choice"]["threads"] == options.threads
    assert written["measured"]["milliseconds"] > 0
    assert "written to" in done.output
