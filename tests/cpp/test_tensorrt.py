"""The TensorRT back end's logic, on a fake TensorRT that runs on the CPU. No GPU was seen here.

The fake's stream runs its work only when it is waited for, so reading results too early shows.
"""

from dataclasses import replace

import numpy as np
import pytest

from destseg_deploy.errors import SpecError
from destseg_deploy.runtime.trt.record import Machine, check_engine
from destseg_deploy.spec import BatchRange, InputSpec, OutputSpec
from tests.cpp.conftest import ENGINE, write_engine
from tests.cpp.library import Refused
from tests.tiny import unpacked


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (8, 6, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("word", ["", "nograph"])
def test_batches_of_changing_sizes(library, tmp_path, word):
    """Queued, captured and captured anew: each answer is of its own frames."""
    path = tmp_path / "tiny.engine"
    write_engine(path, (8, 6), word, input=InputSpec(8, 6, BatchRange(1, 4, 4)))
    with library.open(path, parallel=1) as handle:
        for seed, count in enumerate([1, 1, 1, 2, 2, 1, 1, 4, 4, 4, 9, 3, 3, 1]):
            frames = images(count, seed)
            maps, scores = handle.scores(frames)
            assert np.array_equal(unpacked(maps), frames)
            assert np.array_equal(scores, maps[:, 0, 0])


def test_an_engine_that_fails_says_so_with_the_runtimes_reason(library, tmp_path):
    path = tmp_path / "tiny.engine"
    write_engine(path, (8, 6), "fails")
    with library.open(path) as handle, pytest.raises(Refused) as refused:
        handle.scores(images(1))
    assert refused.value.status == "backend"
    assert refused.value.text == (
        "tiny.engine: TensorRT failed at an inference: the fake was told to fail. If it goes on, "
        "rebuild the engine: destseg-export --category tiny --format engine --precision fp32"
    )


def test_a_file_that_is_no_engine_is_refused(library, tmp_path):
    path = tmp_path / "tiny.engine"
    spec = write_engine(path, (8, 6))
    path.write_bytes(b"something else")
    replace(spec, artifact=type(spec.artifact).of(path)).write(path)
    with pytest.raises(Refused) as refused:
        library.open(path)
    assert refused.value.text == (
        "tiny.engine: TensorRT failed at deserialize_cuda_engine: no fake engine: bad magic. If it "
        "goes on, rebuild the engine: destseg-export --category tiny --format engine --precision "
        "fp32"
    )


@pytest.mark.parametrize("change", ["input", "output", "name"])
def test_an_engine_of_other_tensors_than_its_spec_is_refused(library, tmp_path, change):
    path = tmp_path / "tiny.engine"
    spec = write_engine(path, (8, 6))
    changes = {
        "input": {"input": InputSpec(9, 6)},
        "output": {"output": OutputSpec(8, 7, 1)},
        "name": {"output": OutputSpec(8, 6, 1, map_name="map")},
    }
    replace(spec, **changes[change]).write(path)
    with pytest.raises(Refused, match="its tensors are not those of its spec"):
        library.open(path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "10.3.0.26"},
        {"builder": "tensorrt-rtx", "version": "1.7.1.116"},
        {"builder": "other"},
        {"targets": ("sm_87",)},
        {"targets": ("sm_80", "sm_86"), "gpu": None},
        {"targets": ()},
        {"gpu": "Other GPU"},
        {"gpu": "Other GPU", "targets": ("sm_80",)},
    ],
    ids=str,
)
def test_an_engine_for_another_machine_is_refused_as_in_python(library, tmp_path, change):
    path = tmp_path / "tiny.engine"
    spec = write_engine(path, (8, 6), engine=replace(ENGINE, **change))
    machine = Machine("tensorrt", "11.4.0.106", "Fake GPU", "sm_90")
    with pytest.raises(SpecError) as expected:
        check_engine(spec, machine)
    with pytest.raises(Refused) as refused:
        library.open(path)
    assert refused.value.status == "spec"
    assert refused.value.text == str(expected.value)


@pytest.mark.parametrize("change", [{}, {"gpu": None}, {"targets": ("sm_80", "sm_90")}], ids=str)
def test_an_engine_for_this_machine_opens(library, tmp_path, change):
    path = tmp_path / "tiny.engine"
    write_engine(path, (8, 6), engine=replace(ENGINE, **change))
    with library.open(path) as handle:
        assert handle.text("backend") == "tensorrt"
        assert handle.text("backend.version") == "11.4.0.106"
        assert handle.text("device") == "cuda"


def test_a_spec_of_another_kind_is_refused(library, tmp_path):
    path = tmp_path / "tiny.engine"
    write_engine(path, (8, 6), kind="onnx")
    with pytest.raises(Refused, match="its spec says onnx, expected engine"):
        library.open(path)


def test_a_batch_that_no_profile_holds_is_refused(library, tmp_path):
    """The fake's profile goes from 1 to 64."""
    path = tmp_path / "tiny.engine"
    write_engine(path, (8, 6), input=InputSpec(8, 6, BatchRange(1, 1, 65)))
    with pytest.raises(Refused, match="no optimization profile holds a batch of 65"):
        library.open(path)


def test_devices(library, engine):
    library.open(engine, device="cuda:1").close()
    for device, words in (
        ("cuda:2", "this machine has 2 CUDA devices"),
        ("cpu", "runs on a GPU only"),
    ):
        with pytest.raises(Refused, match=words):
            library.open(engine, device=device)
