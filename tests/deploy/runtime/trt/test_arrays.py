"""TrtRuntime.infer_into: arrays on the GPU, read and written where they lie."""

import ctypes
import gc
import weakref

import numpy as np
import pytest

from destseg_deploy.errors import BackendError, ShapeError
from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.cuda.arrays import NO_WAIT, _Tensor, read_array
from destseg_deploy.runtime.cuda.memory import array_at
from tests.deploy.runtime.trt.cases import Bench, equal, frames_of, wanted
from tests.fakes.device import FakeDevice


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Bench(monkeypatch, tmp_path)


class Interface:
    """An array on the fake GPU with ``__cuda_array_interface__``."""

    def __init__(self, gpu, values, *, offset=0, stream=None, strides=None, read_only=False):
        self.memory = gpu.allocate(values.nbytes + offset)
        self.pointer = self.memory.pointer + offset
        self.values = array_at(self.pointer, values.nbytes).view(values.dtype)
        self.values = self.values.reshape(values.shape)
        self.values[...] = values
        self.interface = {
            "version": 3,
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.pointer, read_only),
            "strides": strides,
            "stream": stream,
        }

    @property
    def __cuda_array_interface__(self):
        return self.interface

    def close(self):
        self.memory.close()


class DLPack(Interface):
    """The same with DLPack only, as torch and CuPy export it."""

    codes = {"u": 1, "f": 2, "i": 0}  # noqa: RUF012 - a table, never written

    def __init__(self, gpu, values, *, device=(2, 0), strides=None, **options):
        super().__init__(gpu, values, **options)
        self.device = device
        self.asked = []
        self.capsules = 0
        self.tensor = _Tensor(
            data=self.memory.pointer,
            device_type=device[0],
            device_id=device[1],
            ndim=values.ndim,
            code=self.codes[values.dtype.kind],
            bits=values.dtype.itemsize * 8,
            lanes=1,
            shape=(ctypes.c_int64 * values.ndim)(*values.shape),
            strides=strides and (ctypes.c_int64 * values.ndim)(*strides),
            byte_offset=self.pointer - self.memory.pointer,
        )

    @property
    def __cuda_array_interface__(self):
        raise AttributeError("this one has DLPack only")

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.asked.append(stream)
        self.capsules += 1
        self.destructor = DESTRUCTOR(self.freed)
        new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, DESTRUCTOR)
        make = new(("PyCapsule_New", ctypes.pythonapi))
        return make(ctypes.addressof(self.tensor), b"dltensor", self.destructor)

    def freed(self, capsule):
        """What a producer does when nobody holds its capsule any more."""
        self.capsules -= 1


DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


def _outputs(kind, gpu, count, **options):
    return (
        kind(gpu, np.zeros((count, 64, 64), np.float32), **options),
        kind(gpu, np.zeros(count, np.float32), **options),
    )


@pytest.mark.parametrize("kind", [Interface, DLPack])
def test_answers_are_written_where_they_are_wanted(bench, kind):
    runtime = bench.open(contexts=1)
    for count in (1, 3, 4, 3):
        frames = frames_of(count, seed=count)
        images = kind(bench.gpu, frames)
        maps, score = _outputs(kind, bench.gpu, count)
        start = len(bench.gpu.calls)
        runtime.infer_into(images, maps, score)
        equal(Prediction(maps.values, score.values), wanted(frames))
        names = {name for name, _ in bench.gpu.calls[start:]}
        assert not names & {"copy_in", "copy_out", "allocate", "allocate_pinned"}
        if kind is DLPack:
            assert images.asked == [runtime._pool.slots[0].stream.handle]
            assert maps.asked == score.asked == [NO_WAIT], "its package was asked already"
        for array in (images, maps, score):
            array.close()
    runtime.close()
    assert bench.nothing_lives()


def test_infer_and_infer_into_do_not_disturb_each_other(bench):
    runtime = bench.open(contexts=1)
    frames = frames_of(2)
    arrays = Interface(bench.gpu, frames), *_outputs(Interface, bench.gpu, 2)
    for turn in range(4):
        other = frames_of(2, seed=turn + 1)
        equal(runtime.infer(other), wanted(other))
        arrays[1].values[...] = 0
        runtime.infer_into(*arrays)
        equal(Prediction(arrays[1].values, arrays[2].values), wanted(frames))
    for array in arrays:
        array.close()
    runtime.close()


def test_buffers_that_come_back_get_graphs_and_only_the_latest_keep_them(bench):
    runtime = bench.open(contexts=1)
    ring = [
        (Interface(bench.gpu, frames_of(1, n)), *_outputs(Interface, bench.gpu, 1))
        for n in range(6)
    ]

    def graphs():
        return [type(thing).__name__ for thing in bench.gpu.live].count("FakeGraph")

    launched = []
    for _ in range(4):
        start = len(bench.gpu.calls)
        for images, maps, score in ring[:3]:
            runtime.infer_into(images, maps, score)
        launched.append([n for n, _ in bench.gpu.calls[start:]].count("launch_graph"))
    assert launched == [0, 0, 3, 3], "seen, warmed, recorded, replayed"
    assert graphs() == 3
    for _ in range(3):
        for images, maps, score in ring[2:]:
            maps.values[...] = 0
            runtime.infer_into(images, maps, score)
            equal(Prediction(maps.values, score.values), wanted(images.values))
    assert graphs() == 4
    for arrays in ring:
        for array in arrays:
            array.close()
    runtime.close()
    assert bench.nothing_lives()


def test_without_graphs_buffers_are_only_launched(bench):
    runtime = bench.open(contexts=1, cuda_graph=False)
    arrays = Interface(bench.gpu, frames_of(1)), *_outputs(Interface, bench.gpu, 1)
    for _ in range(4):
        runtime.infer_into(*arrays)
    assert len(bench.library.made) == 1
    for array in arrays:
        array.close()
    runtime.close()


def test_work_of_the_callers_stream_is_done_first(bench):
    """A frame is copied on the caller's stream, which nobody waits for."""
    runtime = bench.open()
    frames = frames_of(1)
    for named in (True, False):
        grabber = bench.gpu.stream()
        source = Interface(bench.gpu, frames)
        images = Interface(
            bench.gpu, np.zeros_like(frames), stream=grabber.handle if named else None
        )
        maps, score = _outputs(Interface, bench.gpu, 1)
        grabber.grab(images.pointer, source.pointer, frames.nbytes)
        runtime.infer_into(images, maps, score, stream=None if named else grabber.handle)
        equal(Prediction(maps.values, score.values), wanted(frames))
        assert grabber in bench.gpu.live, "somebody else's stream was closed"
        for thing in (source, images, maps, score, grabber):
            thing.close()
    runtime.close()
    assert bench.nothing_lives()


def test_nobody_waits_for_a_stream_that_was_not_named(bench):
    """The control of the test above: without the stream, the frame is not there yet."""
    runtime, frames = bench.open(), frames_of(1)
    grabber, source = bench.gpu.stream(), Interface(bench.gpu, frames)
    images = Interface(bench.gpu, np.zeros_like(frames))
    maps, score = _outputs(Interface, bench.gpu, 1)
    grabber.grab(images.pointer, source.pointer, frames.nbytes)
    runtime.infer_into(images, maps, score)
    assert (maps.values == 0).all()
    for thing in (grabber, source, images, maps, score):
        thing.close()
    runtime.close()


# --- refusals


def _refused(bench, images, maps, score, words, error=ShapeError):
    runtime = bench.open()
    start = len(bench.gpu.calls)
    with pytest.raises(error, match=words):
        runtime.infer_into(images, maps, score)
    assert "execute" not in [name for name, _ in bench.gpu.calls[start:]]
    runtime.infer(frames_of(1))  # the slot is free again
    for thing in (images, maps, score):
        if hasattr(thing, "memory"):
            thing.close()
    runtime.close()
    bench.fresh()  # closing a runtime closes its GPU


@pytest.mark.parametrize("kind", [Interface, DLPack])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.astype(np.float32), r"images: expected uint8 \(N, 64, 64, 3\).*got float32"),
        (lambda x: x.astype(np.int8), r"got .*i.*1|int8"),
        (lambda x: x.transpose(0, 3, 1, 2).copy(), r"got uint8 \(2, 3, 64, 64\)"),
        (lambda x: x[0], r"got uint8 \(64, 64, 3\)"),
        (lambda x: np.concatenate([x] * 3), "images: a batch of 6, expected 1 to 4"),
        (lambda x: x[:1], r"anomaly_map: expected float32 \(1, 64, 64\).*got float32 \(2, 64, 64"),
    ],
)
def test_images_of_another_form_are_refused(bench, kind, change, words):
    images = kind(bench.gpu, change(frames_of(2)))
    _refused(bench, images, *_outputs(kind, bench.gpu, 2), words)


@pytest.mark.parametrize("kind", [Interface, DLPack])
def test_arrays_that_are_not_contiguous_are_refused(bench, kind):
    images = kind(bench.gpu, frames_of(2), strides=(64 * 64 * 3, 64 * 3, 1, 64))
    _refused(bench, images, *_outputs(kind, bench.gpu, 2), "not contiguous.*contiguous()")
    scale = 4 if kind is Interface else 1
    maps = kind(
        bench.gpu, np.zeros((2, 64, 64), np.float32), strides=(64 * scale, 128 * scale, scale)
    )
    images, score = kind(bench.gpu, frames_of(2)), kind(bench.gpu, np.zeros(2, np.float32))
    _refused(bench, images, maps, score, "anomaly_map: .*not contiguous")


@pytest.mark.parametrize("kind", [Interface, DLPack])
def test_strides_of_contiguous_arrays_are_fine(bench, kind):
    scale = 4 if kind is Interface else 1
    frames = frames_of(1)
    images = kind(bench.gpu, frames, strides=(7, 192, 3, 1))  # the first counts for nothing
    maps = kind(
        bench.gpu, np.zeros((1, 64, 64), np.float32), strides=(4096 * scale, 64 * scale, scale)
    )
    score = kind(bench.gpu, np.zeros(1, np.float32), strides=(scale,))
    runtime = bench.open()
    runtime.infer_into(images, maps, score)
    equal(Prediction(maps.values, score.values), wanted(frames))
    for thing in (images, maps, score):
        thing.close()
    runtime.close()


@pytest.mark.parametrize("kind", [Interface, DLPack])
def test_a_part_of_an_array_at_an_odd_address_is_refused(bench, kind):
    maps, score = _outputs(kind, bench.gpu, 2)
    score.close()
    score = kind(bench.gpu, np.zeros(2, np.float32), offset=8)
    images = kind(bench.gpu, frames_of(2))
    _refused(bench, images, maps, score, "score: .*multiple of 256, got 8 bytes past one")


def test_read_only_outputs_are_refused(bench):
    maps, score = _outputs(Interface, bench.gpu, 1, read_only=True)
    images = Interface(bench.gpu, frames_of(1), read_only=True)
    _refused(bench, images, maps, score, "anomaly_map: .*to write to, got a read-only one")


def test_arrays_elsewhere_are_refused(bench):
    maps, score = _outputs(DLPack, bench.gpu, 1)
    _refused(bench, frames_of(1), maps, score, "images: lies in the host's memory.*Use infer")
    maps, score = _outputs(DLPack, bench.gpu, 1)
    images = DLPack(bench.gpu, frames_of(1), device=(2, 1))
    _refused(bench, images, maps, score, "images: lies on cuda:1, this runtime is on cuda:0")
    maps, score = _outputs(DLPack, bench.gpu, 1)
    other = FakeDevice()
    images = Interface(other, frames_of(1))
    _refused(bench, images, maps, score, "images: does not lie in the memory of cuda:0")


@pytest.mark.parametrize("images", [None, 17, [1], "x"])
def test_what_is_no_array_is_refused(bench, images):
    maps, score = _outputs(Interface, bench.gpu, 1)
    _refused(bench, images, maps, score, f"images: expected an array.*got {type(images).__name__}")


def test_arrays_that_refuse_to_be_exported_are_errors_of_ours(bench):
    class Stubborn(DLPack):
        def __dlpack__(self, *, stream=None):
            raise BufferError("requires grad")

    maps, score = _outputs(Interface, bench.gpu, 1)
    images = Stubborn(bench.gpu, frames_of(1))
    _refused(bench, images, maps, score, r"images: this Stubborn .*\(requires grad\).*detach")


def test_torch_tensors_are_read_with_their_layout():
    """torch's own capsules, on the CPU, which pose as the GPU's."""
    torch = pytest.importorskip("torch")

    class Posing:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack_device__(self):
            return 2, 0

        def __dlpack__(self, *, stream):
            return self.tensor.__dlpack__()

    wide = torch.arange(48, dtype=torch.float32).reshape(2, 4, 6)
    for tensor, contiguous in ((wide, True), (wide[:, 1:3], False), (wide[1:], True)):
        found = read_array(Posing(tensor), "x", FakeDevice(), 5)
        assert (found.pointer, found.shape) == (tensor.data_ptr(), tuple(tensor.shape))
        assert (found.dtype, found.contiguous) == ("float32", contiguous)
    half = read_array(Posing(wide.bfloat16()), "x", FakeDevice(), 5)
    assert half.dtype == "bfloat16"


def test_capsules_live_until_the_call_ends_and_no_longer(bench):
    """A producer may free the memory as soon as its capsule is gone."""
    runtime, real, held = bench.open(cuda_graph=False), bench.gpu.note, []
    arrays = (DLPack(bench.gpu, frames_of(1)), *_outputs(DLPack, bench.gpu, 1))

    def note(name, number=0):
        if name in ("execute", "synchronize"):
            gc.collect()
            held.append([array.capsules for array in arrays])
        real(name, number)

    bench.gpu.note = note
    runtime.infer_into(*arrays)
    assert held[-2:] == [[1, 1, 1]] * 2
    assert [array.capsules for array in arrays] == [0, 0, 0]
    for array in arrays:
        array.close()
    runtime.close()


def test_an_array_lives_until_the_call_ends(bench):
    """The caller keeps nothing; what the runtime was given must not vanish under the GPU."""
    runtime, real, alive = bench.open(cuda_graph=False), bench.gpu.note, []
    memory, references = [], []

    def array(values):
        made = Interface(bench.gpu, values)
        memory.append(made.memory)
        references.append(weakref.ref(made))
        return made

    def note(name, number=0):
        if name == "synchronize":
            gc.collect()
            alive.append([reference() is not None for reference in references])
        real(name, number)

    bench.gpu.note = note
    runtime.infer_into(
        array(frames_of(1)),
        array(np.zeros((1, 64, 64), np.float32)),
        array(np.zeros(1, np.float32)),
    )
    assert alive[-1] == [True] * 3
    assert not any(reference() for reference in references)
    for each in memory:
        each.close()
    runtime.close()


def test_a_closed_runtime_refuses(bench):
    runtime = bench.open()
    runtime.close()
    with pytest.raises(BackendError, match="closed"):
        runtime.infer_into(None, None, None)
