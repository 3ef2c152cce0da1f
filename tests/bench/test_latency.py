"""Latency tables: who competes, on what, and what is said of those that cannot."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from destseg_bench.cli import bench
from destseg_bench.contenders import Contender, list_contenders
from destseg_bench.latency import find_frames, measure_latency
from destseg_deploy.errors import BackendError, DataError

ROUNDING = 5e-5
"""The random network amplifies float32 rounding, which changes with the batch, up to this."""


class Fakes:
    """Contenders of a known duration that note the frames they were given and their closing."""

    def __init__(self):
        self.frames, self.closed = {}, []

    def make(self, name, seconds=0.0, size=(16, 16), error=None):
        @contextmanager
        def opened(frames):
            if error is not None:
                raise error
            self.frames[name] = frames
            yield lambda: time.sleep(seconds)
            self.closed.append(name)

        return Contender(name, "fp32", "host", size, opened)


@pytest.fixture
def images(category):
    return find_frames(category / "test", 8)


def test_rows_hold_times_ratios_and_throughput(images):
    fakes = Fakes()
    contenders = [fakes.make("slow", 0.02), fakes.make("fast", 0.002)]
    (rows,) = measure_latency(contenders, images, batches=(3,), rounds=5, warmup=1)
    slow, fast = rows
    assert slow["median"] >= 20
    assert slow["times_faster"] == 1
    assert fast["times_faster"] == pytest.approx(slow["median"] / fast["median"])
    assert fast["times_faster"] > 2
    assert slow["images_per_second"] == pytest.approx(3000 / slow["median"])
    assert (slow["count"], slow["batch"]) == (5, 3)
    assert fakes.closed == ["fast", "slow"]


def test_all_get_the_same_images_each_at_its_size(images):
    fakes = Fakes()
    contenders = [fakes.make("a"), fakes.make("b"), fakes.make("c", size=(8, 24))]
    list(measure_latency(contenders, images, batches=(4,), rounds=1, warmup=1))
    assert fakes.frames["a"].shape == (4, 16, 16, 3)
    assert fakes.frames["c"].shape == (4, 8, 24, 3)
    np.testing.assert_array_equal(fakes.frames["a"], fakes.frames["b"])
    assert len({frame.tobytes() for frame in fakes.frames["a"]}) > 1, "not one image repeated"


@pytest.mark.parametrize("error", [BackendError("no GPU here"), RuntimeError("out of memory")])
def test_what_cannot_run_is_named_and_the_others_are_timed(images, error):
    fakes = Fakes()
    contenders = [fakes.make("broken", error=error), fakes.make("whole")]
    (rows,) = measure_latency(contenders, images, batches=(1,), rounds=2, warmup=1)
    assert rows[0]["skipped"] == str(error)
    assert "median" not in rows[0]
    assert rows[1]["times_faster"] == 1


def test_where_nothing_runs_every_row_says_why(images):
    fakes = Fakes()
    contenders = [fakes.make("broken", error=BackendError("no"))]
    (rows,) = measure_latency(contenders, images, rounds=1, warmup=1)
    assert [row["skipped"] for row in rows] == ["no"]


def test_without_images_there_is_nothing_to_time(tmp_path):
    with pytest.raises(DataError, match="no images"):
        list(measure_latency([], [], rounds=1, warmup=1))
    with pytest.raises(DataError, match="no images"):
        find_frames(tmp_path, 4)


def test_a_checkpoint_competes_in_each_way_and_a_model_in_its_runtime(checkpoint, onnx_artifact):
    found = list_contenders([checkpoint, onnx_artifact], device="cpu", compiled=True)
    names = [one.name for one in found]
    assert names[:2] == ["PyTorch reference", "PyTorch eager fp32"]
    assert "PyTorch compiled fp32" in names
    assert names[-1] == onnx_artifact.name
    gpu = [one.name for one in list_contenders([checkpoint], device="cuda")]
    assert {"PyTorch eager tf32", "PyTorch CUDA graph fp16, on the GPU"} <= set(gpu)
    with pytest.raises(BackendError, match="competes twice"):
        list_contenders([onnx_artifact, onnx_artifact], device="cpu")


@pytest.mark.parametrize("mode", ["reference", "eager fp32"])
def test_every_way_of_pytorch_gives_the_same_answers(checkpoint, frames, mode):
    """Timing a way that computes something else would mean nothing."""
    from destseg_bench.torch_contenders import modes_for, open_torch
    from destseg_deploy.predictor import load

    chosen = next(one for one in modes_for("cpu", compiled=False) if one.name == mode)
    with open_torch(checkpoint, chosen, "cpu", frames) as call, load(checkpoint) as predictor:
        answer = [np.asarray(part).squeeze() for part in call()]
        expected = predictor(frames)
    maps = next(part for part in answer if part.ndim == 3)
    scores = [part for part in answer if part.ndim == 1]
    np.testing.assert_allclose(maps, expected.anomaly_map, atol=ROUNDING)
    assert any(np.allclose(part, expected.score, atol=ROUNDING) for part in scores)
    assert not np.allclose(maps, expected.anomaly_map[::-1], atol=100 * ROUNDING)


def test_the_command_prints_a_table_and_writes_json(onnx_artifact, category, tmp_path):
    output = tmp_path / "latency.json"
    words = ["latency", str(onnx_artifact), "--images", str(category / "test"), "--batch", "1,2"]
    words += ["--rounds", "3", "--warmup", "1", "--output", str(output)]
    answer = CliRunner().invoke(bench, words)
    assert answer.exit_code == 0, answer.output
    lines = answer.output.splitlines()
    assert lines[1].split()[:4] == ["contender", "batch", "streams", "frames"]
    assert [line.split()[1] for line in lines[2:]] == ["1", "2"]
    result = json.loads(output.read_text())
    assert result["complete"]
    assert result["protocol"]["rounds"] == 3
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    assert result["environment"]["versions"]["numpy"] == np.__version__
    assert "matrix_rate" not in result, "that is a GPU's"


def test_a_device_that_is_not_there_is_said_in_the_table(onnx_artifact, category):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("there is one here")
    words = ["latency", str(onnx_artifact), "--images", str(category / "test")]
    answer = CliRunner().invoke(bench, [*words, "--device", "cuda", "--rounds", "1"])
    assert answer.exit_code == 0
    assert "skipped: " in answer.output
    assert "CUDAExecutionProvider" in answer.output


def test_bad_input_is_one_line(tmp_path, onnx_artifact):
    missing = ["latency", str(tmp_path / "no.onnx"), "--images", str(tmp_path)]
    empty = ["latency", str(onnx_artifact), "--images", str(tmp_path)]
    for words in (missing, empty):
        answer = CliRunner().invoke(bench, words)
        assert answer.exit_code == 1
        assert len(answer.output.splitlines()) == 1, answer.output


def test_streams_score_at_the_same_time(images):
    """Four calls that each wait 50 ms take about as long as one, and four times as many images."""
    fakes = Fakes()
    (one, four) = measure_latency(
        [fakes.make("waits", 0.05)], images, batches=(2,), streams=(1, 4), rounds=4, warmup=1
    )
    assert (one[0]["streams"], four[0]["streams"]) == (1, 4)
    assert four[0]["median"] < 3 * one[0]["median"]
    for (row,) in (one, four):
        wanted = 1e3 * 2 * row["streams"] / row["median"]
        assert row["images_per_second"] == pytest.approx(wanted)


def test_calls_that_share_a_buffer_do_not_run_together(images):
    fakes = Fakes()
    alone = replace(fakes.make("graph"), concurrent=False)
    one, two = measure_latency([alone, fakes.make("b")], images, streams=(1, 2), rounds=1, warmup=1)
    assert "skipped" not in one[0]
    assert "share one buffer" in two[0]["skipped"]
    assert "median" in two[1]


def test_the_command_sweeps_batches_and_streams(tmp_path, checkpoint, onnx_artifact, category):
    output = tmp_path / "latency.json"
    arguments = [str(onnx_artifact), "--images", str(category / "test"), "--batch", "1,2"]
    arguments += ["--streams", "1,2", "--rounds", "1", "--warmup", "1", "--output", str(output)]
    done = CliRunner().invoke(bench, ["latency", *arguments])
    assert done.exit_code == 0, done.output
    result = json.loads(output.read_text())
    assert result["complete"] is True
    found = [(row["batch"], row["streams"]) for row in result["rows"]]
    assert found == [(1, 1), (1, 2), (2, 1), (2, 2)]
