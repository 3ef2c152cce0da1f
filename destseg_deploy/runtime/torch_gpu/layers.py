"""The kernels of ``layers.cu`` on tensors: what lies between the convolutions, a kernel each.

PyTorch's own functions do the same in several kernels, some of them slow for channels last in half
precision: on an H200, at 32 images of 256 x 256, 3 of 7.7 ms.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from destseg_deploy.models.fused import STEM_CHANNELS, Work
from destseg_deploy.runtime.cuda.protocols import Gpu, Kernel, Stream

KERNELS = (
    "split_image",
    "max_pool",
    "upsample",
    "products",
    "upsample_products",
    "concatenate",
    "probability",
)
THREADS = 256
"""Of a block."""
EIGHT = 8
"""Channels of a thread."""


class GpuLayers:
    """See ``models.fused.Layers``; for one GPU and one half type."""

    def __init__(
        self,
        gpu: Gpu,
        kind: torch.dtype,
        stream: Callable[[], Stream],
        device: torch.device | None = None,
    ) -> None:
        """Compile.

        Args:
            gpu: Where the tensors lie.
            kind: ``float16`` or ``bfloat16``.
            stream: Gives the stream on which PyTorch computes at that moment.
            device: The GPU's name in PyTorch; None where tests run the kernels on the host.

        Raises:
            BackendError: If NVRTC is not there or refuses the source.
        """
        self.kind = kind
        self._stream = stream
        self._device = device
        self._sides: list[torch.cuda.Stream] = []
        source = files("destseg_deploy.runtime.torch_gpu").joinpath("layers.cu").read_text("utf-8")
        options = (f"-DBFLOAT={int(kind == torch.bfloat16)}",)
        self._kernels: dict[str, Kernel] = {}
        with ExitStack() as owned:
            for name in KERNELS:
                self._kernels[name] = gpu.compile(source, name, options)
                owned.callback(self._kernels[name].close)
            self._owned = owned.pop_all()

    def split(self, image: Tensor) -> Tensor:
        """See ``Layers.split``."""
        image = image.contiguous(memory_format=torch.channels_last)
        count, _, height, width = image.shape
        made = self._empty(count, STEM_CHANNELS, height, width, image)
        pixels = count * height * width
        self._launch("split_image", pixels, image, made)
        return made

    def pool(self, x: Tensor) -> Tensor:
        """See ``Layers.pool``."""
        return self._resized("max_pool", x, *((side + 1) // 2 for side in x.shape[-2:]))

    def upsample(self, x: Tensor, size: torch.Size) -> Tensor:
        """See ``Layers.upsample``."""
        return self._resized("upsample", x, *size)

    def products(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """See ``Layers.products``."""
        count, _, height, width = teacher[0].shape
        total = sum(one.shape[1] for one in teacher) // EIGHT
        made = self._empty(count, total * EIGHT, height, width, teacher[0])
        begin, nothing = 0, ctypes.c_void_p(None)
        for t, s in zip(teacher, student, strict=True):
            eights, (h, w) = t.shape[1] // EIGHT, t.shape[-2:]
            lengths = ctypes.c_int(eights), ctypes.c_int(total)
            if begin == 0:  # of the size wanted already
                self._launch("products", t.numel() // EIGHT, t, s, nothing, made, *lengths)
            else:
                wide = torch.empty(t.numel(), dtype=torch.float32, device=t.device)
                self._launch("products", t.numel() // EIGHT, t, s, wide, nothing, *lengths)
                sizes = map(ctypes.c_int, (h, w, eights, height, width, begin, total))
                threads = count * height * width * eights
                self._launch("upsample_products", threads, wide, made, *sizes)
            begin += eights
        return made

    def concatenate(self, pooled: Tensor, branches: Sequence[Tensor]) -> Tensor:
        """See ``Layers.concatenate``."""
        count, channels, height, width = branches[0].shape
        made = self._empty(count, 4 * channels, height, width, pooled)
        sizes = ctypes.c_int(channels // EIGHT), ctypes.c_int(height * width)
        self._launch("concatenate", made.numel() // EIGHT, pooled, *branches, made, *sizes)
        return made

    def probability(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See ``Layers.probability``."""
        count, channels, height, width = x.shape
        made = torch.empty((count, 1, height, width), dtype=torch.float32, device=x.device)
        eights = ctypes.c_int(channels // EIGHT)
        self._launch("probability", made.numel(), x, weight, bias, made, eights)
        return made

    def together(self, works: Sequence[Work]) -> list[Any]:
        """See ``Layers.together``: the first on the stream, each other on one of its own."""
        if self._device is None:
            return [work() for work in works]
        current, new_stream = torch.cuda.current_stream(self._device), torch.cuda.Stream
        while len(self._sides) < len(works) - 1:
            self._sides.append(new_stream(self._device))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        found: list[Any] = []
        for side, work in zip(self._sides, works[1:], strict=False):
            side.wait_stream(current)
            with torch.cuda.stream(side):
                found.append(work())
        first = works[0]()
        for side, made in zip(self._sides, found, strict=False):
            current.wait_stream(side)
            for tensor in made if isinstance(made, list) else [made]:
                # It was allocated for the side stream, which may be ahead of the one that reads it.
                tensor.record_stream(current)
        return [first, *found]

    def close(self) -> None:
        """Unload the kernels; the GPU must have finished with them."""
        self._owned.close()

    def _resized(self, name: str, x: Tensor, height: int, width: int) -> Tensor:
        count, channels, source_height, source_width = x.shape
        made = self._empty(count, channels, height, width, x)
        eights = channels // EIGHT
        sizes = map(ctypes.c_int, (source_height, source_width, eights, height, width))
        self._launch(name, made.numel() // EIGHT, x, made, *sizes)
        return made

    def _empty(self, count: int, channels: int, height: int, width: int, near: Tensor) -> Tensor:
        shape, order = (count, channels, height, width), torch.channels_last
        return torch.empty(shape, dtype=self.kind, device=near.device, memory_format=order)

    def _launch(self, name: str, threads: int, *arguments: Any) -> None:
        """Queue a kernel; its last argument is the number of threads."""
        given = [_address(one) if isinstance(one, Tensor) else one for one in arguments]
        blocks = -(-threads // THREADS)
        kernel, last = self._kernels[name], ctypes.c_ulonglong(threads)
        self._stream().launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), [*given, last])


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
