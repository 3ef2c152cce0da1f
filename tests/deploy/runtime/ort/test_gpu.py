"""ONNX Runtime on GPUs, by a fake of both: providers, its stream, CUDA graphs, arrays in place.

What it shares with TensorRT (slots, arrays, frames) is tested in ``runtime/trt`` and
``runtime/cuda``.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.ort.bindings import MAX_GRAPHS
from destseg_deploy.runtime.ort.session import placed_nodes
from destseg_deploy.spec import BatchRange, InputSpec
from tests.deploy.runtime.ort.cases import NODES, SHAPES, OnGpu, OrtBench, equal
from tests.fakes.onnxruntime_module import CPU, CUDA, TENSORRT, AssignedNode

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
    assert bench.session.stream in bench.gpu.live, "all runs are queued on a stream of ours"
    assert bench.session.fallback is False
    assert bench.module.preloaded == 1
    runtime.close()


def test_a_cpu_session_loads_no_cuda(bench):
    bench.open("cpu").close()
    assert not bench.module.preloaded
    assert not bench.module.folders


def test_cudas_libraries_are_found_where_onnxruntime_does_not_look(bench, tmp_path, monkeypatch):
    """It looks beside itself; on a bare host CUDA's packages lie in another folder."""
    libraries = tmp_path / "elsewhere" / "nvidia" / "cu13" / "lib"
    libraries.mkdir(parents=True)
    monkeypatch.setattr("sys.path", [str(tmp_path / "elsewhere"), *sys.path])
    bench.open("cuda").close()
    assert str(libraries) in bench.module.folders
    assert bench.module.preloaded == 1


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
        BackendError, match=rf"on device 'cuda:0' \(\w+Provider: install libraries\).*{words}"
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
    with pytest.raises(BackendError, match=r"device 'cuda:0' does not run \d of \d operators"):
        bench.open(device)


@pytest.mark.parametrize("device", DEVICES)
def test_shapes_may_be_computed_on_the_cpu(bench, device):
    runtime = bench.open(device)
    providers = [node.provider for node in placed_nodes(bench.session)]
    assert providers.count(CPU) == len(SHAPES)
    assert len(providers) == len(NODES + SHAPES)
    runtime.close()


def test_an_old_onnx_runtime_cannot_tell_where_nodes_run_and_opens(bench, monkeypatch):
    from tests.fakes import onnxruntime_module as fake_onnxruntime

    monkeypatch.delattr(fake_onnxruntime.Session, "get_provider_graph_assignment_info")
    runtime = bench.open("cuda")
    assert placed_nodes(bench.session) is None
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


def test_a_call_allocates_nothing_and_waits_once(bench):
    runtime = bench.open("cuda")
    runtime.infer(bench.frames(2))
    start = len(bench.gpu.calls)
    runtime.infer(bench.frames(2, seed=1))
    names = [name for name, _ in bench.gpu.calls[start:]]
    assert not {"allocate", "allocate_pinned"} & set(names)
    assert [n for n in names if n in ("copy_in", "run", "copy_out", "synchronize")] == [
        "copy_in",
        "run",
        "copy_out",
        "synchronize",
    ]
    runtime.close()


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("device", ["cpu", *DEVICES])
def test_threads_do_not_share_memory(bench, device, graph):
    """The fake asserts that no two runs of a session overlap on a GPU."""
    if device == "cpu" and graph:
        pytest.skip("the CPU has no CUDA graphs")
    runtime = bench.open(device, cuda_graph=graph)
    batches = [bench.frames(1 + i % 3, seed=i) for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for frames, found in zip(batches, pool.map(runtime.infer, batches), strict=True):
            equal(found, bench.wanted(frames))
    runtime.close()


def test_each_binding_has_a_graph_of_its_own(bench):
    runtime = bench.open("cuda", cuda_graph=True)
    for count in (1, 2, 1, 2):
        runtime.infer(bench.frames(count))
    assert sorted(bench.session.recorded) == [1, 2]
    runtime.close()


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
    runtime.close()


@pytest.mark.parametrize("graph", [False, True])
def test_no_failing_call_leaks_or_breaks(bench, graph):
    """Whatever call of the GPU fails, the next answer is right and close frees everything."""

    def use(runtime):
        for _ in range(2):
            equal(runtime.infer(bench.frames(2)), bench.wanted(bench.frames(2)))

    runtime = bench.open("cuda", cuda_graph=graph)
    opened = len(bench.gpu.calls)
    use(runtime)
    used = len(bench.gpu.calls)
    runtime.close()
    for index in range(used):
        bench.fresh()
        bench.gpu.fail_at = index
        if index < opened:
            with pytest.raises(BackendError):
                bench.open("cuda", cuda_graph=graph)
            assert bench.gpu.closed, index
            continue
        runtime = bench.open("cuda", cuda_graph=graph)
        with suppress(BackendError):  # what ends a thing never fails
            use(runtime)
        bench.gpu.fail_at = None
        use(runtime)
        runtime.close()
        assert bench.gpu.closed, (index, bench.gpu.calls[index])


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
    assert "copy_in" not in [name for name, _ in bench.gpu.calls]
    runtime.close()


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
        assert len(bench.session.recorded) >= 4 + 3, "four rings, three batch sizes of infer"
    free(*(array for ring in rings for array in ring))
    runtime.close()


def test_what_makes_the_images_is_waited_for_by_the_gpu(bench):
    runtime = bench.open("cuda")
    frames = bench.frames(2)
    maker, asked = bench.gpu.stream(), bench.gpu.stream()
    arrays = in_place(bench, np.zeros_like(frames), stream=maker.handle)

    def write(half):
        arrays[0].values[half] = frames[half]

    maker.queue("write", lambda: write(0))
    asked.queue("write", lambda: write(1))
    runtime.infer_into(*arrays, stream=asked.handle)
    np.testing.assert_array_equal(arrays[2].values, bench.wanted(frames).score)
    assert bench.wanted(frames).score.min() > 0.1, "zeros would be told apart"
    free(*arrays)
    for stream in (maker, asked):
        stream.close()
    runtime.close()


def test_graphs_are_bounded_and_the_rest_runs_without(bench):
    runtime = bench.open("cuda", cuda_graph=True)
    rings = [in_place(bench, bench.frames(1, seed=n)) for n in range(MAX_GRAPHS + 3)]
    for ring in rings:
        for _ in range(2):  # recorded when it comes back
            ring[2].values[...] = 9
            runtime.infer_into(*ring)
            np.testing.assert_array_equal(ring[2].values, bench.wanted(ring[0].values).score)
    assert len(bench.session.recorded) == MAX_GRAPHS
    free(*(array for ring in rings for array in ring))
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
