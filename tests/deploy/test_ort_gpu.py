"""ONNX Runtime on GPUs, by a fake of both: providers, lanes, CUDA graphs, arrays in place."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.ort_binding import MAX_GRAPHS
from destseg_deploy.spec import BatchRange, InputSpec
from tests.deploy.fake_onnxruntime import CPU, CUDA, TENSORRT, AssignedNode
from tests.deploy.ort_cases import NODES, SHAPES, OnGpu, OrtBench, equal

DEVICES = ["cuda:1", "tensorrt"]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return OrtBench(monkeypatch, tmp_path)


# ---------------------------------------------------------------------------- opening


@pytest.mark.parametrize("device", DEVICES)
def test_the_provider_asked_for_is_opened(bench, device):
    runtime = bench.open(device)
    provider = {"cuda:1": CUDA, "tensorrt": TENSORRT}[device]
    assert bench.session.get_providers()[0] == provider
    assert CPU not in bench.session.provider_options, "ONNX Runtime adds it for shapes"
    index = {"cuda:1": "1", "tensorrt": "0"}[device]
    assert {o["device_id"] for o in bench.session.provider_options.values()} == {index}
    assert bench.session.fallback is False
    assert bench.module.preloaded == 1
    runtime.close()


def test_a_cpu_session_loads_no_cuda(bench):
    bench.open("cpu").close()
    assert not bench.module.preloaded


def test_engines_are_cached_beside_the_artifact_or_where_one_says(bench, tmp_path):
    bench.open("tensorrt").close()
    settings = bench.session.provider_options[TENSORRT]
    beside = tmp_path / ".trt-cache" / f"{bench.spec.artifact.sha256[:12]}-ort1.31.1"
    assert settings["trt_engine_cache_path"] == settings["trt_timing_cache_path"] == str(beside)
    assert beside.is_dir()
    bench.open("tensorrt", cache=tmp_path / "elsewhere").close()
    assert (
        str(tmp_path / "elsewhere")
        in bench.session.provider_options[TENSORRT]["trt_engine_cache_path"]
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_provider_that_does_not_start_is_an_error(bench, device, capsys):
    """What onnxruntime-gpu 1.31.1 does without CUDA's libraries."""
    bench.module.starts = (CPU,)
    bench.module.missing = "Failed to load libcublasLt.so.13: no such file\nPlease follow"
    with pytest.raises(BackendError, match=r"did not start.*fell back to CPU.*libcublasLt.so.13"):
        bench.open(device)
    assert not capsys.readouterr().out, "a command's results belong there"


def test_tensorrt_that_leaves_all_to_cuda_is_an_error(bench):
    bench.module.starts = (CUDA, CPU)
    with pytest.raises(
        BackendError, match=r"fell back to CUDA.*linked to TensorRT 10.*no TensorRT 11"
    ):
        bench.open("tensorrt")


@pytest.mark.parametrize(
    ("device", "words"), [("cuda", "device 'cpu'"), ("tensorrt", "libnvinfer")]
)
def test_a_provider_that_refuses_is_not_replaced(bench, device, words):
    bench.module.raises = (CUDA, TENSORRT)
    with pytest.raises(
        BackendError, match=rf"on device '{device}:0' \(\w+Provider: install libraries\).*{words}"
    ):
        bench.open(device)
    assert not bench.module.sessions, "nothing was opened on another device"


@pytest.mark.parametrize(("device", "other"), [("cuda", CPU), ("tensorrt", CUDA)])
def test_an_old_onnx_runtime_that_tries_again_is_found_out(bench, device, other):
    bench.module.raises = ({"cuda": CUDA, "tensorrt": TENSORRT}[device],)
    bench.module.tries_again = True
    with pytest.raises(BackendError, match=f"did not start and ONNX Runtime fell back to {other}"):
        bench.open(device)


def test_a_provider_that_is_not_there_is_an_error(bench):
    bench.module.available = (CUDA, CPU)
    with pytest.raises(BackendError, match=f"has no {TENSORRT}, only {CUDA}, {CPU}"):
        bench.open("tensorrt")


@pytest.mark.parametrize(
    ("device", "placed"),
    [
        ("cuda", {CUDA: NODES[1:], CPU: (NODES[0], *SHAPES)}),
        ("cuda", {CUDA: NODES, CPU: (AssignedNode("TopK", "node_1"),)}),
        ("tensorrt", {CUDA: NODES, CPU: SHAPES}),
        ("tensorrt", {TENSORRT: NODES[2:], CUDA: NODES[:2], CPU: SHAPES}),
        ("tensorrt", {TENSORRT: NODES[:3], CPU: (NODES[3],)}),
        ("cuda", {CUDA: (*NODES[2:], NODES[0]), TENSORRT: (NODES[1],)}),
    ],
)
def test_work_left_to_another_provider_is_an_error(bench, device, placed):
    bench.module.placed = placed
    with pytest.raises(BackendError, match=rf"device '{device}:0' does not run \d of \d operators"):
        bench.open(device)


@pytest.mark.parametrize("device", DEVICES)
def test_shapes_may_be_computed_on_the_cpu(bench, device):
    runtime = bench.open(device)
    assert runtime.placement[CPU] == len(SHAPES)
    assert sum(runtime.placement.values()) == len(NODES + SHAPES)
    runtime.close()


def test_an_old_onnx_runtime_cannot_tell_the_placement(bench, monkeypatch):
    from tests.deploy import fake_onnxruntime

    monkeypatch.delattr(fake_onnxruntime.Session, "get_provider_graph_assignment_info")
    runtime = bench.open("cuda")
    assert runtime.placement is None
    runtime.close()


# ---------------------------------------------------------------------------- running


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("device", ["cpu", *DEVICES])
def test_answers_are_the_graphs(bench, device, graph):
    if device == "cpu" and graph:
        pytest.skip("the CPU has no CUDA graphs")
    runtime = bench.open(device, cuda_graph=graph)
    for turn, count in enumerate((2, 1, 4, 2, 2, 1)):
        frames = bench.frames(count, seed=turn)
        strided = frames.repeat(2, axis=2)[:, :, ::2]
        equal(runtime.infer(strided), bench.wanted(frames))
    runtime.close()


def test_answers_belong_to_the_caller(bench):
    runtime = bench.open("cuda")
    first = runtime.infer(bench.frames(2))
    runtime.infer(255 - bench.frames(2))
    equal(first, bench.wanted(bench.frames(2)))
    assert first.anomaly_map.flags.writeable


def test_memory_is_kept_on_the_gpu(bench):
    runtime = bench.open("cuda")
    for _ in range(3):
        for count in (1, 2):
            runtime.infer(bench.frames(count))
    assert bench.module.allocated == 6, "three tensors for each of two batch sizes"


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("device", ["cpu", *DEVICES])
def test_threads_do_not_share_memory(bench, device, graph):
    """The fake asserts that no two runs use the same memory, and that graphs run one by one."""
    if device == "cpu" and graph:
        pytest.skip("the CPU has no CUDA graphs")
    runtime = bench.open(device, cuda_graph=graph)
    batches = [bench.frames(1 + i % 3, seed=i) for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for frames, found in zip(batches, pool.map(runtime.infer, batches), strict=True):
            equal(found, bench.wanted(frames))
    runtime.close()


def test_calls_run_at_the_same_time_without_graphs(bench):
    runtime = bench.open("cuda")
    both = threading.Barrier(2, timeout=10)
    bench.module.meanwhile = both.wait
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(runtime.infer, [bench.frames(1)] * 2))
    assert bench.module.allocated == 6, "a lane for each"


def test_each_binding_has_a_graph_of_its_own(bench):
    runtime = bench.open("cuda", cuda_graph=True)
    for count in (1, 2, 1, 2):
        runtime.infer(bench.frames(count))
    assert sorted(bench.session.recorded) == [1, 2]


def test_a_failing_run_is_an_error_and_the_next_one_works(bench):
    runtime = bench.open("cuda", cuda_graph=True)
    runtime.infer(bench.frames(2))
    bench.module.failing = True
    with pytest.raises(
        BackendError, match=r"failed on device 'cuda:0' \(CUDA failure 700: an illegal"
    ):
        runtime.infer(bench.frames(2))
    bench.module.failing = False
    frames = bench.frames(2, seed=5)
    equal(runtime.infer(frames), bench.wanted(frames))
    assert bench.module.allocated == 6, "the memory of a failed run is not used again"


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_without_memory_it_is_an_error(bench, refused):
    runtime = bench.open("cuda")
    bench.module.out_of_memory_at = refused
    with pytest.raises(BackendError, match="Failed to allocate memory for requested buffer"):
        runtime.infer(bench.frames(1))
    equal(runtime.infer(bench.frames(1)), bench.wanted(bench.frames(1)))


@pytest.mark.parametrize("graph", [False, True])
def test_close_is_final_and_may_be_repeated(bench, graph):
    runtime = bench.open("cuda", cuda_graph=graph)
    runtime.infer(bench.frames(1))
    runtime.close()
    runtime.close()
    for call in (lambda: runtime.infer(bench.frames(1)), lambda: runtime.infer_into(1, 2, 3)):
        with pytest.raises(BackendError, match="closed"):
            call()


def test_images_are_checked_before_they_are_copied(bench):
    runtime = bench.open("cuda")
    with pytest.raises(ShapeError, match="batch of 17"):
        runtime.infer(bench.frames(17))
    assert not bench.module.allocated


# ---------------------------------------------------------------------------- arrays in place


def free(*arrays):
    for array in arrays:
        array.memory.close()


def in_place(bench, frames, **options):
    height, width = bench.spec.map_size
    count = len(frames)
    return (
        OnGpu(bench.gpu, frames, **options),
        OnGpu(bench.gpu, np.full((count, height, width), 9, np.float32)),
        OnGpu(bench.gpu, np.full(count, 9, np.float32)),
    )


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_arrays_on_the_gpu_are_read_and_written_in_place(bench, device, graph):
    runtime = bench.open(device, cuda_graph=graph)
    rings = [in_place(bench, bench.frames(count, seed=count)) for count in (1, 2, 4, 2)]
    for turn in range(3):
        for images, anomaly_map, score in rings:
            images.values[...] = bench.frames(len(images.values), seed=turn)
            runtime.infer_into(images, anomaly_map, score)
            wanted = bench.wanted(images.values)
            np.testing.assert_array_equal(anomaly_map.values, wanted.anomaly_map)
            np.testing.assert_array_equal(score.values, wanted.score)
            frames = bench.frames(len(images.values), seed=turn + 50)
            equal(runtime.infer(frames), bench.wanted(frames))
    assert bench.opened == [{"cuda:1": "cuda:1", "tensorrt": "cuda:0"}[device]], "once"
    if graph:
        assert len(bench.session.recorded) == 4 + 3, "four rings, three batch sizes of infer"
    free(*(array for ring in rings for array in ring))
    runtime.close()


def test_what_makes_the_images_is_waited_for(bench):
    runtime = bench.open("cuda")
    frames = bench.frames(2)
    maker, asked = bench.gpu.stream(), bench.gpu.stream()
    images, anomaly_map, score = in_place(bench, np.zeros_like(frames), stream=maker.handle)

    def write(half):
        images.values[half] = frames[half]

    maker.queue("write", lambda: write(0))
    asked.queue("write", lambda: write(1))
    runtime.infer_into(images, anomaly_map, score, stream=asked.handle)
    np.testing.assert_array_equal(score.values, bench.wanted(frames).score)
    assert bench.wanted(frames).score.min() > 0.1, "zeros would be told apart"


def test_what_dlpack_queues_on_our_stream_is_waited_for(bench, monkeypatch):
    """A producer lets the stream that it is given wait for its own work."""
    from destseg_deploy.runtime import ort_arrays

    frames = bench.frames(2)
    arrays = in_place(bench, np.zeros_like(frames))
    read = ort_arrays.read_array

    def read_array(source, name, device, stream):
        if name == "images":
            copy = partial(np.copyto, source.values, frames)
            device.stream_of(stream).queue("wait", copy)
        return read(source, name, device, stream)

    monkeypatch.setattr(ort_arrays, "read_array", read_array)
    bench.open("cuda").infer_into(*arrays)
    np.testing.assert_array_equal(arrays[2].values, bench.wanted(frames).score)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b, c, gpu: (a.values, b, c), "images: lies in the host's memory"),
        (lambda a, b, c, gpu: (b, b, c), r"images: expected uint8 \(N, 16, 24, 3\)"),
        (lambda a, b, c, gpu: (a, c, c), r"anomaly_map: expected float32 \(2, 16, 24\)"),
        (
            lambda a, b, c, gpu: (a, b, OnGpu(gpu, np.zeros(3, np.float32))),
            r"score: expected float32 \(2,\)",
        ),
        (
            lambda a, b, c, gpu: (a, b, OnGpu(gpu, np.zeros(2, np.float32), read_only=True)),
            "score: .* to write to, got a read-only one",
        ),
        (
            lambda a, b, c, gpu: (OnGpu(gpu, np.zeros((17, 16, 24, 3), np.uint8)), b, c),
            "images: a batch of 17, expected 1 to 16",
        ),
    ],
)
def test_other_arrays_are_refused(bench, change, words):
    runtime = bench.open("cuda")
    arrays = change(*in_place(bench, bench.frames(2)), bench.gpu)
    with pytest.raises(ShapeError, match=words):
        runtime.infer_into(*arrays)
    assert not bench.session.runs


def test_graphs_are_bounded(bench):
    runtime = bench.open("cuda", cuda_graph=True)
    rings = [in_place(bench, bench.frames(1)) for _ in range(MAX_GRAPHS + 1)]
    for ring in rings[:-1]:
        runtime.infer_into(*ring)
    with pytest.raises(BackendError, match=f"{MAX_GRAPHS} graphs are recorded.*Reuse the arrays"):
        runtime.infer_into(*rings[-1])
    runtime.infer_into(*rings[0])
    assert len(bench.session.recorded) == MAX_GRAPHS


def test_without_a_cuda_binding_only_arrays_in_place_are_refused(bench, monkeypatch):
    from destseg_deploy.runtime import ort_arrays

    def refuse(name):
        raise BackendError(f"device {name!r}: no NVIDIA driver")

    monkeypatch.setattr(ort_arrays, "open_device", refuse)
    runtime = bench.open("cuda")
    equal(runtime.infer(bench.frames(1)), bench.wanted(bench.frames(1)))
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        runtime.infer_into(*in_place(bench, bench.frames(1)))


def test_a_device_that_opens_halfway_is_closed(bench):
    bench.gpu.fail_on = {"stream"}
    runtime = bench.open("cuda")
    with pytest.raises(BackendError, match="told to fail"):
        runtime.infer_into(None, None, None)
    assert bench.gpu.closed


def test_close_releases_the_cuda_context(bench):
    runtime = bench.open("cuda")
    ring = in_place(bench, bench.frames(1))
    runtime.infer_into(*ring)
    free(*ring)
    runtime.close()
    assert bench.gpu.closed


def test_the_profile_is_the_specs_batch_range(monkeypatch, tmp_path):
    bench = OrtBench(monkeypatch, tmp_path, input=InputSpec(16, 24, BatchRange(2, 3, 4)))
    bench.open("tensorrt").close()
    settings = bench.session.provider_options[TENSORRT]
    shapes = [settings[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")]
    assert shapes == ["image:2x16x24x3", "image:3x16x24x3", "image:4x16x24x3"]


def test_a_changed_spec_is_refused_before_anything_is_opened(bench):
    from destseg_deploy.errors import SpecError

    replace(bench.spec, artifact=replace(bench.spec.artifact, sha256="1" * 64)).write(bench.path)
    with pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        bench.open("cuda")
    assert not bench.module.sessions
