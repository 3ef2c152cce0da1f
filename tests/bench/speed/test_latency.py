"""Latency tables: who competes, on what, and what is said of those that cannot."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from destseg_bench import timing
from destseg_bench.speed import latency
from destseg_bench.speed.contenders import list_contenders, open_contender
from destseg_bench.speed.latency import find_frames, least_bytes, measure_latency
from destseg_bench.speed.matrix_rate import add_shares
from destseg_bench.timing import Contender, at_once
from destseg_deploy.errors import BackendError, DataError
from destseg_deploy.runtime.base import Prediction
from tests.bench.calls import refuse, succeed

ROUNDING = 5e-5
"""The random network amplifies float32 rounding, which changes with the batch, up to this."""


class Fakes:
    """Contenders of a known duration that note the frames they were given and their closing."""

    def __init__(self):
        self.frames, self.closed, self.calls = {}, [], {}

    def make(self, name, seconds=0.0, size=(16, 16), error=None):
        self.calls[name] = (seconds, error)
        return Contender(name, Path(name), "fp32", size)

    @contextmanager
    def open(self, contender, frames):
        seconds, error = self.calls[contender.name]
        if error is not None:
            raise error
        self.frames[contender.name] = frames
        yield lambda: time.sleep(seconds)
        self.closed.append(contender.name)


@pytest.fixture
def fakes(monkeypatch):
    made = Fakes()
    monkeypatch.setattr(latency, "open_contender", made.open)
    return made


@pytest.fixture
def no_rests(monkeypatch):
    """The command rests before each call, 0.1 s."""
    monkeypatch.setattr(timing, "SETTLE", 0.0)


@pytest.fixture
def images(category):
    return find_frames(category / "test", 8)


def measure(*given, **options):
    """Time without the rests between calls, which test_timing looks at."""
    return measure_latency(*given, settle=0.0, **options)


def test_rows_hold_times_ratios_and_throughput(images, fakes):
    contenders = [fakes.make("slow", 0.02), fakes.make("fast", 0.002)]
    (rows,) = measure(contenders, images, batches=(3,), rounds=5, warmup=1)
    slow, fast = rows
    assert slow["median"] >= 20
    assert slow["times_faster"] == 1
    assert fast["times_faster"] == pytest.approx(slow["median"] / fast["median"])
    assert fast["times_faster"] > 2
    assert slow["images_per_second"] == pytest.approx(3000 / slow["median"])
    assert (slow["count"], slow["batch"]) == (5, 3)
    assert fakes.closed == ["fast", "slow"]


def test_all_get_the_same_images_each_at_its_size(images, fakes):
    contenders = [fakes.make("a"), fakes.make("b"), fakes.make("c", size=(8, 24))]
    list(measure(contenders, images, batches=(4,), rounds=1, warmup=1))
    assert fakes.frames["a"].shape == (4, 16, 16, 3)
    assert fakes.frames["c"].shape == (4, 8, 24, 3)
    np.testing.assert_array_equal(fakes.frames["a"], fakes.frames["b"])
    assert len({frame.tobytes() for frame in fakes.frames["a"]}) > 1, "not one image repeated"


@pytest.mark.parametrize("error", [BackendError("no GPU here"), RuntimeError("out of memory")])
def test_what_cannot_run_is_named_and_the_others_are_timed(images, fakes, error):
    contenders = [fakes.make("broken", error=error), fakes.make("works")]
    broken, works = next(measure(contenders, images, rounds=2, warmup=1))
    assert broken["skipped"] == str(error)
    assert "median" not in broken
    assert works["times_faster"] == 1
    (alone,) = next(measure(contenders[:1], images, rounds=1, warmup=1))
    assert alone["skipped"] == str(error)


def test_without_images_there_is_nothing_to_time(tmp_path):
    with pytest.raises(DataError, match="no images"):
        list(measure([], [], rounds=1, warmup=1))
    with pytest.raises(DataError, match="no images"):
        find_frames(tmp_path, 4)


def test_a_checkpoint_competes_in_each_way_and_a_model_in_its_runtime(checkpoint, onnx_artifact):
    found = list_contenders([checkpoint, onnx_artifact], device="cpu", compiled=True)
    names = [one.name for one in found]
    assert names[:2] == ["PyTorch reference", "PyTorch eager fp32"]
    assert [name for name in names if "compiled" in name] == [
        f"PyTorch compiled {'bf16' if 'PyTorch eager bf16' in names else 'fp32'}"
    ], "the fastest precision alone"
    assert names[-1] == onnx_artifact.name
    gpu = [one.name for one in list_contenders([checkpoint], device="cuda")]
    assert {"PyTorch eager tf32", "PyTorch CUDA graph fp16, on the GPU"} <= set(gpu)
    onnx = [one.name for one in list_contenders([onnx_artifact], device="cuda")]
    assert [name.partition(", ")[2] for name in onnx] == [
        "",
        "CUDA graph",
        "NHWC",
        "CUDA graph, on the GPU",
    ]
    options = [one.options for one in list_contenders([onnx_artifact], device="cuda")]
    assert not any(one and one.cuda_graph and one.prefer_nhwc for one in options), "refused"
    with pytest.raises(BackendError, match="competes twice"):
        list_contenders([onnx_artifact, onnx_artifact], device="cpu")


@pytest.mark.parametrize("way", ["reference", "eager fp32"])
def test_every_way_of_pytorch_gives_the_same_answers(checkpoint, frames, way):
    """Timing a way that computes something else would mean nothing."""
    from destseg_deploy.loading import load

    contenders = {one.name: one for one in list_contenders([checkpoint], device="cpu")}
    opened = open_contender(contenders[f"PyTorch {way}"], frames)
    with opened as call, load(checkpoint) as predictor:
        answer = call()
        expected = predictor(frames)
    maps = answer.anomaly_map
    np.testing.assert_allclose(maps, expected.anomaly_map, atol=ROUNDING)
    np.testing.assert_allclose(answer.score, expected.score, atol=ROUNDING)
    assert not np.allclose(maps, expected.anomaly_map[::-1], atol=100 * ROUNDING)


def test_the_command_makes_a_table_for_each_batch_and_number_of_streams(
    onnx_artifact, category, tmp_path, no_rests
):
    output = tmp_path / "latency.json"
    words = ["latency", onnx_artifact, "--images", category / "test", "--batch", "1,2"]
    words += ["--streams", "1,2", "--rounds", "3", "--warmup", "1", "--output", output]
    lines = [line.split() for line in succeed(*words).output.splitlines()]
    counts = [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    heads = [line for line in lines if line[:4] == ["contender", "batch", "streams", "frames"]]
    assert len(heads) == len(counts)
    assert [tuple(line[1:3]) for line in lines if line[0] == onnx_artifact.name] == counts
    result = json.loads(output.read_text())
    assert result["complete"] is True
    assert result["protocol"]["rounds"] == 3
    found = [(str(row["batch"]), str(row["streams"])) for row in result["rows"]]
    assert found == counts
    assert result["environment"]["versions"]["numpy"] == np.__version__
    assert "rates" not in result, "not asked for on a CPU"


def test_a_device_that_is_not_there_is_said_in_the_table(onnx_artifact, category):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("there is one here")
    words = ["latency", onnx_artifact, "--images", category / "test", "--device", "cuda"]
    output = succeed(*words, "--rounds", "1").output
    assert "skipped: " in output
    assert "CUDAExecutionProvider" in output


@pytest.mark.parametrize(
    ("name", "message"), [("no.onnx", "no.json"), ("cable-fp32.onnx", "no images")]
)
def test_a_missing_artifact_or_an_empty_folder_is_one_line(tmp_path, onnx_artifact, name, message):
    refuse(message, "latency", onnx_artifact.with_name(name), "--images", tmp_path)


def test_streams_score_at_the_same_time(images, fakes):
    """Four calls that each wait 50 ms take about as long as one, and score four times as many."""
    one, four = measure(
        [fakes.make("waits", 0.05)], images, batches=(2,), streams=(1, 4), rounds=4, warmup=1
    )
    assert (one[0]["streams"], four[0]["streams"]) == (1, 4)
    assert four[0]["median"] < 3 * one[0]["median"]
    for (row,) in (one, four):
        wanted = 1e3 * 2 * row["streams"] / row["median"]
        assert row["images_per_second"] == pytest.approx(wanted)


def test_calls_that_share_memory_of_the_device_do_not_run_together(images, fakes):
    alone = replace(fakes.make("device"), origin="device")
    one, two = measure([alone, fakes.make("b")], images, streams=(1, 2), rounds=1, warmup=1)
    assert "skipped" not in one[0]
    assert "share one buffer" in two[0]["skipped"]
    assert "median" in two[1]


def test_overlapping_calls_compute_alike_and_leave_pytorch_as_it_was():
    """cuDNN's switches belong to the process: a call that ends must not change the others'."""
    import torch

    from destseg_bench.speed.torch_contenders import _in_precision

    def switches():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, cudnn.benchmark, cudnn.enabled

    before = switches()
    assert before != (False, True, True), "else nothing is shown"
    one = Contender("fp32", Path("a"), "fp32", (16, 16), torch_way="eager")
    together, ends = Barrier(3), iter((0.0, 0.05, 0.1))

    def score():
        together.wait(20)
        time.sleep(next(ends))  # they end one after another
        return switches()

    call = _in_precision(one, score)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(2):
            ends = iter((0.0, 0.05, 0.1))
            assert at_once(call, 3, pool)() == [(False, True, True)] * 3
            assert switches() == before


def _answering(monkeypatch, answers):
    @contextmanager
    def opened(contender, frames):
        yield lambda: answers[contender.name]

    monkeypatch.setattr(latency, "open_contender", opened)


def test_what_is_too_far_from_float32_is_not_timed(images, monkeypatch):
    """Compared with the float32 row, also where another one comes first."""
    exact = Prediction(np.full((1, 16, 16), 0.5, np.float32), np.array([0.5], np.float32))
    far = Prediction(exact.anomaly_map + np.float32(0.02), exact.score)
    answers = {"tf32": exact, "fp32": exact, "near": exact, "far": far, "bf16": far, "int8": far}
    _answering(monkeypatch, answers)
    names = {"near": "fp16", "far": "fp16"}
    contenders = [Contender(name, Path(name), names.get(name, name), (16, 16)) for name in answers]
    (rows,) = measure(contenders, images, rounds=1, warmup=1)
    skipped = {row["name"]: row.get("skipped", "") for row in rows}
    assert [name for name, reason in skipped.items() if reason] == ["far", "bf16"]
    assert skipped["far"].startswith("NG: far: fp16 differs from float32: map by 2.00e-02")


def test_rows_state_their_share_of_the_bounds():
    rates = {"images_per_second": 10_000.0, "memory_gb_per_second": 1000.0}
    row = {"median": 2.0, "images_per_second": 500.0, "size": [256, 256], "bytes": 10**9}
    add_shares(row, rates)
    assert row["matrix_share"] == pytest.approx(0.05)
    assert row["memory_floor_ms"] == pytest.approx(1.0)
    assert row["memory_share"] == pytest.approx(0.5)
    large = {**row, "size": [512, 512]}
    add_shares(large, rates)
    assert large["matrix_share"] == pytest.approx(0.2), "four times the arithmetic"
    skipped = {"skipped": "no GPU"}
    add_shares(skipped, rates)
    assert skipped == {"skipped": "no GPU"}


def test_the_least_bytes_are_the_weights_once_and_the_frames(checkpoint):
    one = Contender("a", checkpoint, "fp32", (64, 64))
    weights = checkpoint.stat().st_size
    assert least_bytes(one, 1) == weights + 64 * 64 * 7 + 4
    half = replace(one, precision="fp16")
    assert least_bytes(half, 3) == weights // 2 + 3 * (64 * 64 * 7 + 4)


def test_the_command_gives_shares_on_a_cpu_when_asked(onnx_artifact, category, tmp_path, no_rests):
    output = tmp_path / "latency.json"
    words = ["--images", category / "test", "--rates", "--rounds", "2", "--output", output]
    printed = succeed("latency", onnx_artifact, *words).output
    result = json.loads(output.read_text())
    rates, row = result["rates"], result["rows"][0]
    arithmetic = row["size"][0] * row["size"][1] / 256**2
    share = row["images_per_second"] * arithmetic / rates["images_per_second"]
    assert row["matrix_share"] == pytest.approx(share)
    seconds = row["bytes"] / rates["memory_gb_per_second"] / 1e9
    assert row["memory_share"] == pytest.approx(1e3 * seconds / row["median"])
    assert "of matrix rate" in printed


def test_a_half_model_is_not_rounded_anew_in_each_call(checkpoint, frames):
    """Autocast cast 35 million weights a call. Compiled, each batch size has its own graph."""
    one = list_contenders([checkpoint], device="cpu")[1]
    half = replace(one, precision="bf16")
    found = []
    with torch_dispatch_of_casts(found), open_contender(half, frames) as call:
        found.clear()
        call()
    assert max(found, default=0) < 10**6, "no tensor as large as weights is cast"


@contextmanager
def torch_dispatch_of_casts(found):
    """Note the sizes of tensors that are cast."""
    import torch

    real = torch.Tensor.to

    def noted(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        if result.dtype != self.dtype:
            found.append(self.numel())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", noted)
        yield


@pytest.mark.gpu
def test_every_way_of_a_gpu_runs(checkpoint, onnx_artifact, category):
    """What cannot run must say that it is not there, and nothing else."""
    contenders = list_contenders([checkpoint, onnx_artifact], device="cuda")
    frames = find_frames(category / "test", 2)
    for rows in measure_latency(contenders, frames, batches=(1, 2), rounds=2, warmup=1, settle=0):
        reasons = [row["skipped"] for row in rows if "skipped" in row]
        assert all("CUDAExecutionProvider" in one or "float32" in one for one in reasons), reasons
