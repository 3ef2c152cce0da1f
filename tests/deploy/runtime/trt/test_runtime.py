"""TrtRuntime over a fake GPU and a fake TensorRT: refusals, order, ownership, graphs."""

import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError, SpecError
from destseg_deploy.runtime.cuda.slots import GraphPolicy
from destseg_deploy.runtime.trt.engine import TrtEngine
from destseg_deploy.runtime.trt.library import MODULES, load_library
from destseg_deploy.spec import FileRecord, ModelSpec, spec_path
from tests.deploy.runtime.trt.cases import Bench, equal, frames_of, wanted
from tests.fakes import tensorrt_module as fake_tensorrt
from tests.fakes.device import FakeDevice
from tests.fakes.tensorrt_module import (
    CudaGraphStrategy,
    ExecutionContextAllocationStrategy,
    engine_spec,
    write_engine,
)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Bench(monkeypatch, tmp_path)


# --- what never opens


def _nothing_was_opened(bench):
    return not bench.gpu.calls and not bench.library.live


def test_a_truncated_engine_is_refused_before_it_is_opened(bench):
    path = write_engine(bench.folder)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SpecError, match="damaged or the pair was mixed up"):
        bench.open(path)
    assert _nothing_was_opened(bench)


def test_an_engine_that_tensorrt_finds_damaged_is_an_error_with_its_words(bench):
    path = write_engine(bench.folder)
    path.write_bytes(path.read_bytes()[:-20])
    spec = ModelSpec.read(path)
    replace(spec, artifact=FileRecord.of(path)).write(path)
    with pytest.raises(
        BackendError, match=r"fake\.engine: TensorRT failed at deserialize.*Magic tag.*destseg-exp"
    ):
        bench.open(path)
    assert bench.nothing_lives()
    assert bench.gpu.closed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "10.3.0"}, "TensorRT 10.3.0.*Engines are not portable; rebuild"),
        ({"targets": ("sm_87",)}, "sm_87.*this machine has sm_90"),
        ({"gpu": "NVIDIA L4"}, "NVIDIA L4.*NVIDIA Fake GPU"),
    ],
)
def test_an_engine_of_another_machine_is_not_opened(bench, change, words):
    path = write_engine(bench.folder, engine_spec(**change))
    with pytest.raises(SpecError, match=words):
        bench.open(path)
    assert _nothing_was_opened(bench)
    assert bench.gpu.closed


def test_specs_of_other_kinds_and_missing_ones_are_refused(bench):
    path = write_engine(bench.folder)
    replace(ModelSpec.read(path), kind="onnx").write(path)
    with pytest.raises(SpecError, match=r"its spec says onnx, expected engine"):
        bench.open(path)
    spec_path(path).unlink()
    with pytest.raises(SpecError, match="no spec"):
        bench.open(path)
    assert _nothing_was_opened(bench)


def test_a_missing_tensorrt_says_so(bench):
    path = write_engine(bench.folder)
    bench.monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"tensorrt is not usable here.*Install it"):
        bench.open(path)


@pytest.mark.parametrize(
    ("tensor", "entry", "value"),
    [
        ("image", "dtype", "FLOAT"),
        ("image", "shape", [-1, 3, 64, 64]),
        ("image", "mode", "OUTPUT"),
        ("anomaly_map", "shape", [-1, 32, 32]),
        ("score", "dtype", "HALF"),
        ("score", "shape", [-1, 1]),
    ],
)
def test_tensors_that_are_not_the_specs_are_refused(bench, tensor, entry, value):
    path = write_engine(bench.folder)
    content = json.loads(path.read_bytes().split(b" ", 2)[2])
    content["tensors"][tensor][entry] = value
    path = write_engine(bench.folder, tensors=content["tensors"])
    with pytest.raises(SpecError, match=rf"the engine has .*{tensor}.*its spec says.*mixed up"):
        bench.open(path)
    assert bench.nothing_lives()


def test_a_tensor_too_many_is_refused(bench):
    path = write_engine(bench.folder)
    content = json.loads(path.read_bytes().split(b" ", 2)[2])
    content["tensors"]["extra"] = {"mode": "INPUT", "dtype": "FLOAT", "shape": [1]}
    path = write_engine(bench.folder, tensors=content["tensors"])
    with pytest.raises(SpecError, match="extra"):
        bench.open(path)


def test_a_batch_without_a_profile_is_refused(bench):
    path = write_engine(bench.folder, profiles=[[1, 2, 3]])
    with pytest.raises(SpecError, match="no optimization profile holds a batch of 4"):
        bench.open(path)


def test_options_reach_the_runtime(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "destseg_deploy.runtime.trt.runtime.open_device",
        lambda device, *, binding: asked.append((device, binding)) or bench.gpu,
    )
    options = {"binding": "pycuda", "contexts": 3, "cuda_graph": False}
    runtime = bench.open(device=Device("cuda", 1), **options)
    assert asked == [(Device("cuda", 1), "pycuda")]
    assert [name for name, _ in bench.gpu.calls].count("stream") == 3
    for _ in range(3):
        runtime.infer(frames_of(1))
    assert "begin_capture" not in [name for name, _ in bench.gpu.calls]
    runtime.close()


# --- order and ownership


def test_one_call_copies_in_runs_copies_out_and_waits_once(bench):
    with_graph = bench.open(cuda_graph=False)
    frames = frames_of(3)
    with_graph.infer(frames)
    start = len(bench.gpu.calls)
    equal(with_graph.infer(frames), wanted(frames))
    assert [name for name, _ in bench.names(start)] == [
        "copy_in",
        "execute",
        "copy_out",
        "synchronize",
    ]
    assert not any("alloc" in name for name, _ in bench.gpu.calls[start:]), "a call allocates"
    with_graph.close()


def test_profiles_are_chosen_by_batch(bench):
    runtime = bench.open(write_engine(bench.folder, profiles=[[1, 1, 1], [2, 3, 4]]))
    for count in (1, 2, 4):
        frames = frames_of(count)
        equal(runtime.infer(frames), wanted(frames))
    runtime.close()


def test_an_engine_of_one_batch_size_needs_no_profile(bench):
    spec = engine_spec(batch=(3, 3, 3))
    path = write_engine(bench.folder, spec)
    content = json.loads(path.read_bytes().split(b" ", 2)[2])
    for tensor in content["tensors"].values():
        tensor["shape"][0] = 3
    runtime = bench.open(write_engine(bench.folder, spec, tensors=content["tensors"]))
    equal(runtime.infer(frames_of(3)), wanted(frames_of(3)))
    runtime.close()


def test_close_frees_everything_and_the_device_last(bench):
    runtime = bench.open(contexts=3)
    for count in (1, 2, 2, 2):
        runtime.infer(frames_of(count))
    runtime.close()
    assert bench.gpu.closed
    assert bench.nothing_lives()
    runtime.close()


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "rtx"])
def test_no_failing_call_leaks_while_opening(bench, rtx):
    bench.fresh(rtx=rtx)
    builder = "tensorrt-rtx" if rtx else "tensorrt"
    path = write_engine(bench.folder, engine_spec(builder=builder))
    bench.open(path)
    calls = len(bench.gpu.calls)
    assert calls > 10
    for index in range(calls):
        bench.fresh(rtx=rtx)
        bench.gpu.fail_at = index
        with pytest.raises(BackendError):
            bench.open(path)
        assert bench.nothing_lives(), (index, bench.gpu.calls[index], bench.gpu.live)
        assert bench.gpu.closed, index


def test_no_failing_call_leaks_or_breaks_while_running(bench):
    """Whatever call fails, the next one gives the right answer and close frees everything."""
    path, frames = write_engine(bench.folder), frames_of(2)

    def use(runtime):
        for _ in range(3):  # plain, recorded, replayed
            equal(runtime.infer(frames), wanted(frames))

    runtime = bench.open(path)
    opened = len(bench.gpu.calls)
    use(runtime)
    used = len(bench.gpu.calls)
    assert ("launch_graph", 1) in bench.gpu.calls
    refused = 0
    for index in range(opened, used):
        bench.fresh()
        runtime = bench.open(path)
        bench.gpu.fail_at = index
        try:
            use(runtime)
        except BackendError:
            refused += 1
        bench.gpu.fail_at = None
        use(runtime)
        runtime.close()
        assert bench.nothing_lives(), (index, bench.gpu.calls[index])
    assert 0 < refused < used - opened, "a failing capture falls back, other failures are errors"


def test_a_failed_call_is_explained_in_tensorrts_words(bench):
    runtime = bench.open()
    runtime.infer(frames_of(1))
    bench.gpu.fail_on = {"execute_async_v3"}
    with pytest.raises(BackendError, match=r"at execute_async_v3: \[fake\] execute") as caught:
        runtime.infer(frames_of(1))
    assert "not an error" not in str(caught.value)
    runtime.close()


@pytest.mark.parametrize("failing", ["execute_async_v3", "set_input_shape", "set_tensor_address"])
def test_an_error_that_is_kept_keeps_nothing_of_the_engine(bench, failing):
    """Else contexts die with the error, when no CUDA context is current."""
    runtime = bench.open(contexts=1)
    bench.gpu.fail_on = {failing}
    with pytest.raises(BackendError) as kept:
        runtime.infer(frames_of(1))
    runtime.close()
    assert bench.nothing_lives()
    assert failing in str(kept.value) or "a context for 1 images" in str(kept.value)


@pytest.mark.parametrize("configs", [False, True])
def test_scratch_is_shared_and_allocated_once_per_slot(bench, configs):
    bench.fresh(configs=configs)
    runtime = bench.open(contexts=2)
    for count in (1, 2, 3, 4):
        runtime.infer(frames_of(count))
    how = bench.library.made
    assert len(how) == 4, "one context per batch size"
    managed = ExecutionContextAllocationStrategy.USER_MANAGED
    assert all((entry.strategy if configs else entry) is managed for entry in how)
    assert [n for name, n in bench.gpu.calls if name == "allocate"].count(1000) == 2
    runtime.close()


# --- graphs


def test_each_batch_size_gets_a_graph_on_its_second_call(bench, caplog):
    runtime = bench.open(contexts=1)
    for count in (1, 3):
        for turn in range(4):
            start = len(bench.gpu.calls)
            frames = frames_of(count, seed=turn)
            equal(runtime.infer(frames), wanted(frames))
            names = [name for name, _ in bench.names(start)]
            assert ("launch_graph" in names) == (turn > 0)
            assert ("begin_capture", 0) in bench.gpu.calls[start:] or turn != 1
            if turn > 1:
                assert names == ["copy_in", "launch_graph", "copy_out", "synchronize"]
    equal(runtime.infer(frames_of(1, 9)), wanted(frames_of(1, 9)))  # the first graph still holds
    assert not caplog.records
    runtime.close()


@pytest.mark.parametrize("broken", ["begin_capture", "end_capture"])
def test_a_failing_capture_falls_back_and_is_said_once(bench, caplog, broken):
    runtime = bench.open(contexts=1)
    bench.gpu.fail_on = {broken}
    with caplog.at_level(logging.WARNING):
        for turn in range(4):
            for count in (1, 2):
                frames = frames_of(count, seed=turn)
                equal(runtime.infer(frames), wanted(frames))
    assert f"{broken} was told to fail" in caplog.text
    assert len(caplog.records) == 1
    assert "CUDA graphs are not used" in caplog.text
    assert ("launch_graph", 0) not in bench.gpu.calls
    runtime.close()
    assert bench.nothing_lives()


def test_an_operation_that_cannot_be_recorded_leaves_no_capture_open(bench, caplog):
    runtime = bench.open(contexts=1)
    runtime.infer(frames_of(1))
    real = bench.gpu.note

    def refuse(name, number=0):
        real(name, number)
        if name == "execute_async_v3" and ("begin_capture", 0) in bench.gpu.calls[-4:]:
            raise BackendError("CUDA: operation not permitted when stream is capturing")

    bench.gpu.note = refuse
    equal(runtime.infer(frames_of(1, 5)), wanted(frames_of(1, 5)))
    assert "end_capture" in [name for name, _ in bench.gpu.calls]
    assert "failed" in caplog.text
    runtime.close()
    assert bench.nothing_lives()


def test_graphs_can_be_left_out(bench, caplog):
    runtime = bench.open(cuda_graph=False)
    for _ in range(3):
        runtime.infer(frames_of(1))
    assert "begin_capture" not in [name for name, _ in bench.gpu.calls]
    assert not caplog.records
    runtime.close()


@pytest.mark.parametrize("graphs", [True, False])
def test_rtx_makes_its_graphs_itself(bench, graphs):
    bench.fresh(rtx=True)
    path = write_engine(bench.folder, engine_spec(builder="tensorrt-rtx", gpu=None))
    runtime = bench.open(path, cuda_graph=graphs)
    for turn in range(3):
        equal(runtime.infer(frames_of(2, turn)), wanted(frames_of(2, turn)))
    strategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if graphs else CudaGraphStrategy.DISABLED
    assert [config.cuda_graph_strategy for config in bench.library.made] == [strategy]
    assert "begin_capture" not in [name for name, _ in bench.gpu.calls]
    runtime.close()


# --- several cameras


def test_several_cameras_run_at_once_and_no_more_than_contexts(bench):
    runtime = bench.open(contexts=3)
    inside, most, lock = [], [], threading.Lock()
    slot_type = type(runtime._pool.slots[0])
    real = slot_type.collect

    def collect(slot, batch):
        with lock:
            inside.append(slot)
            most.append(len(inside))
        barrier.wait(timeout=20)
        with lock:
            inside.remove(slot)
        return real(slot, batch)

    barrier = threading.Barrier(3)
    bench.monkeypatch.setattr(slot_type, "collect", collect)
    frames = [frames_of(1, seed) for seed in range(9)]
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(runtime.infer, frames))
    for frame, answer in zip(frames, answers, strict=True):
        equal(answer, wanted(frame))
    assert max(most) == 3
    runtime.close()


# --- the fake and the real module


@pytest.mark.parametrize("library", sorted(MODULES))
def test_the_real_module_has_every_name_of_the_fake(library):
    """Names only: nothing is called, so neither a GPU nor TensorRT's libraries must work."""
    try:
        real = load_library(library)
    except BackendError as error:
        pytest.skip(str(error))
    stands_for = {
        fake_tensorrt.Runtime: real.Runtime,
        fake_tensorrt.Engine: real.ICudaEngine,
        fake_tensorrt.Context: real.IExecutionContext,
        fake_tensorrt.ILogger: real.ILogger,
    }
    ours = {"compute", "bytes_of", "input_name"}
    for fake, known in stands_for.items():
        names = {n for n in vars(fake) if not n.startswith("_")} - ours
        assert names
        assert not {n for n in names if not hasattr(known, n)}, fake
    attributes = {"refittable", "device_memory_size_v2", "num_optimization_profiles"}
    assert not {n for n in attributes if not hasattr(real.ICudaEngine, n)}
    for enum in ("DataType", "TensorIOMode", "ExecutionContextAllocationStrategy"):
        members = set(getattr(fake_tensorrt, enum).__members__)
        assert members <= set(getattr(real, enum).__members__), enum
    if hasattr(real.ICudaEngine, "create_runtime_config"):
        assert hasattr(real.IRuntimeConfig, "set_execution_context_allocation_strategy")
    if hasattr(real, "CudaGraphStrategy"):
        assert hasattr(real.IRuntimeConfig, "cuda_graph_strategy")
        assert set(CudaGraphStrategy.__members__) <= set(real.CudaGraphStrategy.__members__)


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt-rtx"])
def test_the_real_tensorrt_says_why_in_our_words_and_prints_nothing(builder, capfd):
    """It needs no GPU to find that a file is no engine."""
    try:
        library = load_library(builder)
    except BackendError as error:
        pytest.skip(str(error))
    policy = GraphPolicy(wanted=False)
    with pytest.raises(BackendError, match=r"TensorRT failed at deserialize_cuda_engine: .*agic"):
        TrtEngine(library, b"no engine at all" * 100, engine_spec(), FakeDevice(), policy)
    assert capfd.readouterr() == ("", "")
