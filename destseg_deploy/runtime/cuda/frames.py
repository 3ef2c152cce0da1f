"""Frames of the host, resized on the GPU, through double-buffered slots; maps resized there, too.

While the GPU works on one batch, the next one is uploaded on another slot. Within a slot, the host
copies a frame into pinned memory while the GPU copies and resizes the one before:

    frame ──► pinned ──copy_in──► GPU ──FrameResize──► input ──plan──► map ──MapResize──► pinned

``Predictor`` reaches it through ``GpuRuntime.open_frames``. On an H200 it ran with frames of the
input's size, which need no resize; **resizing within it was not run on a GPU yet**.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.runtime.base import Prediction
from destseg_deploy.runtime.cuda.memory import Growing
from destseg_deploy.runtime.cuda.protocols import Buffer, Gpu, PinnedBuffer, Stream
from destseg_deploy.runtime.cuda.resize import FrameResize, FramesOnGpu, MapResize, ResizeKernels
from destseg_deploy.runtime.cuda.slots import Slot, SlotPool
from destseg_deploy.spec import ModelSpec

BUFFERS = 2
"""Frames of a slot that are on their way at the same time; more would hide nothing more."""


class _Transfer:
    """Memory for one frame or map on its way: pinned on the host, and on the GPU.

    Both sides grow with what comes; the event tells when the GPU has finished with them.
    """

    def __init__(self, gpu: Gpu, stream: Stream) -> None:
        self._stream = stream
        self._pinned: Growing[PinnedBuffer] = Growing(gpu.allocate_pinned)
        self._buffer: Growing[Buffer] = Growing(gpu.allocate)
        self._used = gpu.event()

    def upload(self, frame: NDArray[np.uint8]) -> int:
        """Queue the copy of a frame; return its address on the GPU, where it has no padding."""
        self._used.synchronize()  # the frame before may still be on its way
        pointer = self._buffer.at_least(frame.size).pointer
        staged = self._pinned.at_least(frame.size).array[: frame.size]
        np.copyto(staged.reshape(frame.shape), frame)
        self._stream.copy_in(pointer, staged)
        return pointer

    def mark(self) -> None:
        """Note that all that uses the memory is queued."""
        self._stream.record(self._used)

    def download(self, resize: MapResize, anomaly_map: int, size: tuple[int, int]) -> None:
        """Queue the resize of a map and its copy to the host."""
        count = size[0] * size[1] * 4
        pointer = self._buffer.at_least(count).pointer
        resize(anomaly_map, size, pointer)
        self._stream.copy_out(self._pinned.at_least(count).array[:count], pointer)
        self.mark()

    def take(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """Wait for the map that was queued and return a copy, float32 (height, width)."""
        self._used.synchronize()
        count = size[0] * size[1] * 4
        return self._pinned.at_least(count).array[:count].view(np.float32).reshape(size).copy()

    def close(self) -> None:
        for owned in (self._used, self._buffer, self._pinned):
            owned.close()


class SlotFrames:
    """What a slot needs to take frames and to give maps of any size."""

    def __init__(self, gpu: Gpu, slot: Slot, spec: ModelSpec, kernels: ResizeKernels) -> None:
        """Prepare; memory grows as frames come.

        Raises:
            BackendError: If the GPU refuses.
        """
        self._slot = slot
        self._spec = spec
        self._batch = 0
        self._sizes: list[tuple[int, int]] = []
        with ExitStack() as owned:
            self._resize = FrameResize(gpu, slot.stream, spec.size, kernels)
            owned.callback(self._resize.close)
            self._resize_map = MapResize(gpu, slot.stream, spec.map_size, kernels)
            owned.callback(self._resize_map.close)
            self._uploads = [self._transfer(owned, gpu) for _ in range(BUFFERS)]
            self._downloads = [self._transfer(owned, gpu) for _ in range(BUFFERS)]
            self._owned = owned.pop_all()

    def submit(self, frames: Sequence[NDArray[np.uint8]], *, source_maps: bool) -> None:
        """Queue a batch; the frames are read before this returns, and no answer is waited for.

        Args:
            frames: uint8 (H, W, 3) RGB or (H, W) grey, each of its own size, with any strides.
            source_maps: Whether ``collect`` is to return maps of the frames' sizes.

        Raises:
            BackendError: If the slot is closed, or there is not enough memory.
        """
        slot, self._batch = self._slot, len(frames)
        sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        self._sizes = sizes if source_maps and set(sizes) != {self._spec.map_size} else []
        slot.begin()
        if all(frame.shape == (*self._spec.size, 3) for frame in frames):
            slot.stage(frames)  # one copy for all, and no kernel
        else:
            for position, frame in enumerate(frames):
                self._resize_to(position, frame)
        slot.launch(self._batch)
        slot.fetch(self._batch, maps=not self._sizes)
        for position in range(min(BUFFERS, len(self._sizes))):
            self._download(position)

    def collect(self) -> list[Prediction]:
        """Wait for the batch and return one prediction with N = 1 for each frame, in order.

        Raises:
            BackendError: If the slot is closed or the GPU failed.
        """
        if not self._sizes:
            answer = self._slot.collect(self._batch)
            return [
                Prediction(answer.anomaly_map[i : i + 1], answer.score[i : i + 1])
                for i in range(self._batch)
            ]
        maps = []
        for i, size in enumerate(self._sizes):
            maps.append(self._downloads[i % BUFFERS].take(size))
            if i + BUFFERS < self._batch:
                self._download(i + BUFFERS)
        score = self._slot.wait(self._batch)
        return [Prediction(each[None], score[i : i + 1]) for i, each in enumerate(maps)]

    def close(self) -> None:
        """Wait for the stream and free everything."""
        self._slot.settle()
        self._owned.close()

    def _transfer(self, owned: ExitStack, gpu: Gpu) -> _Transfer:
        transfer = _Transfer(gpu, self._slot.stream)
        owned.callback(transfer.close)
        return transfer

    def _resize_to(self, position: int, frame: NDArray[np.uint8]) -> None:
        """Queue the upload of a frame and its resize to a position of the input."""
        rows, columns = self._spec.size
        target = self._slot.addresses.images + position * rows * columns * 3
        height, width = frame.shape[:2]
        upload = self._uploads[position % BUFFERS]
        pointer = upload.upload(frame)
        order = "GREY" if frame.ndim == 2 else "RGB"
        try:
            self._resize(FramesOnGpu(pointer, height, width, order), target)
        finally:
            upload.mark()  # also after a refusal: the copy is queued and reads the pinned memory

    def _download(self, position: int) -> None:
        height, width = self._spec.map_size
        pointer = self._slot.addresses.anomaly_map + position * height * width * 4
        self._downloads[position % BUFFERS].download(
            self._resize_map, pointer, self._sizes[position]
        )


class GpuFrames:
    """See ``FramePipeline``: frames of any size through the slots of one runtime."""

    def __init__(self, gpu: Gpu, pool: SlotPool, spec: ModelSpec) -> None:
        """Compile the kernels, once for all slots.

        Raises:
            BackendError: If NVRTC is not there, or the GPU refuses.
        """
        self._pool = pool
        self._spec = spec
        with ExitStack() as owned:
            kernels = ResizeKernels(gpu)
            owned.callback(kernels.close)
            self._lanes: dict[Slot, SlotFrames] = {}
            for slot in pool.slots:
                self._lanes[slot] = SlotFrames(gpu, slot, spec, kernels)
                owned.callback(self._lanes[slot].close)
            self._owned = owned.pop_all()

    def stream(
        self, batches: Iterable[Sequence[NDArray[np.uint8]]], *, source_maps: bool
    ) -> Iterator[Prediction]:
        """See ``FramePipeline.stream``. With one slot there is nothing to overlap.

        An iterator that is not exhausted keeps a slot busy until it is closed or collected.
        """
        running: deque[tuple[Slot, int]] = deque()  # and how many answers are wanted
        remaining = iter(batches)
        try:
            while True:
                try:
                    frames = next(remaining, None)
                except Exception:  # a bad frame: those before it are answered first
                    while running:
                        yield from self._finish(running)
                    raise
                if frames is None:
                    break
                # Whoever holds a slot must not wait for another one: the next caller may do the
                # same, and both would wait for ever. So an answer is fetched first.
                while (slot := self._pool.take_idle() if running else self._pool.take()) is None:
                    yield from self._finish(running)
                running.append((slot, len(frames)))
                self._submit(slot, frames, source_maps)
                if len(running) == min(2, len(self._pool.slots)):
                    yield from self._finish(running)
            while running:
                yield from self._finish(running)
        finally:
            for slot, _ in running:
                self._pool.give_back(slot)

    def close(self) -> None:
        """Wait for the GPU and free everything; before the slots."""
        self._owned.close()

    def _submit(self, slot: Slot, frames: Sequence[NDArray[np.uint8]], source_maps: bool) -> None:
        """Queue a batch, filled up to the smallest one allowed with copies of its first frame."""
        missing = max(self._spec.input.batch.min - len(frames), 0)
        self._lanes[slot].submit([*frames, *[frames[0]] * missing], source_maps=source_maps)

    def _finish(self, running: deque[tuple[Slot, int]]) -> list[Prediction]:
        """Wait for the oldest batch, give its slot back, and return its answers."""
        slot, count = running[0]
        answers = self._lanes[slot].collect()
        running.popleft()
        self._pool.give_back(slot)
        return answers[:count]
