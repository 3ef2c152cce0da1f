"""Arrays of other packages that lie on the GPU already: DLPack and ``__cuda_array_interface__``.

Nothing is copied and no package is imported; torch, CuPy, cuda.core, Numba and others are read
alike. An array must stay alive while its address is in use, so each keeps what it was read from.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from destseg_deploy.errors import ShapeError
from destseg_deploy.runtime.base import check_batch
from destseg_deploy.runtime.cuda.protocols import Gpu
from destseg_deploy.spec import ModelSpec

CUDA, CUDA_MANAGED = 2, 13
"""DLPack's numbers of memory that a GPU's address reaches."""
LETTERS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
"""DLPack's numbers of kinds of values."""
INTERFACE_TYPES = {"|u1": "uint8", "<f4": "float32"}
"""The interface's names of the two types used here; others are shown as they are."""
NO_WAIT = -1
"""The stream to name to DLPack where nothing has to be waited for."""
ALIGNMENT = 256
"""Bytes; what TensorRT asks of every address."""


class _Tensor(ctypes.Structure):
    """The part of DLPack's ``DLManagedTensor`` that is read here, in the layout of its header."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class GpuArray:
    """An array on the GPU.

    Attributes:
        name: What it is to the caller, for messages.
        pointer: Where it starts.
        dtype: Such as ``uint8``.
        shape: As the caller sees it.
        contiguous: Whether it lies in one piece, the last axis densest.
        read_only: Whether it must not be written.
        stream: A ``cudaStream_t`` whose work must be done first, if there is one to wait for.
        owner: What keeps the memory alive.
    """

    name: str
    pointer: int
    dtype: str
    shape: tuple[int, ...]
    contiguous: bool
    read_only: bool
    stream: int | None
    owner: Any

    def check(self, dtype: str, shape: tuple[int, ...], *, written: bool) -> None:
        """Refuse an array that TensorRT cannot read or write in place.

        Args:
            dtype: What is expected.
            shape: What is expected; -1 stands for any number.
            written: Whether it is written to.

        Raises:
            ShapeError: If type, shape, layout or alignment is another, or it is read-only.
        """
        fits = len(shape) == len(self.shape) and all(
            wanted in (-1, found) for wanted, found in zip(shape, self.shape, strict=True)
        )
        sizes = ", ".join("N" if n < 0 else str(n) for n in shape)
        expected = f"{self.name}: expected {dtype} ({sizes}{',' * (len(shape) == 1)}) on the GPU"
        if self.dtype != dtype or not fits:
            raise ShapeError(f"{expected}, got {self.dtype} {self.shape}.")
        if not self.contiguous:
            raise ShapeError(
                f"{expected}, got one that is not contiguous. Nothing is copied here; pass "
                "x.contiguous() (torch) or ascontiguousarray(x) (CuPy)."
            )
        if self.pointer % ALIGNMENT:
            raise ShapeError(
                f"{expected}, at an address that is a multiple of {ALIGNMENT}, got "
                f"{self.pointer % ALIGNMENT} bytes past one. Pass a whole array and no part of one."
            )
        if written and self.read_only:
            raise ShapeError(f"{expected} to write to, got a read-only one. Pass another.")


def check_arrays(arrays: Sequence[GpuArray], spec: ModelSpec) -> int:
    """Refuse arrays that are not what an artifact reads and writes; return the batch.

    Args:
        arrays: Images, uint8 (N, H, W, 3), which are read; map, float32 (N, h, w), and score,
            float32 (N,), which are written.
        spec: The artifact's contract.

    Raises:
        ShapeError: If the batch is out of range; else as ``GpuArray.check``.
    """
    images, anomaly_map, score = arrays
    images.check("uint8", (-1, *spec.size, 3), written=False)
    count = images.shape[0]
    check_batch(count, spec)
    anomaly_map.check("float32", (count, *spec.map_size), written=True)
    score.check("float32", (count,), written=True)
    return count


def read_arrays(given: Mapping[str, Any], gpu: Gpu, stream: int) -> list[GpuArray]:
    """Read several arrays; see ``read_array``.

    A package lets the stream wait for all that it has queued, so it is asked once.
    """
    arrays, waited = [], set[type]()
    for name, array in given.items():
        arrays.append(read_array(array, name, gpu, NO_WAIT if type(array) in waited else stream))
        waited.add(type(array))
    return arrays


def read_array(source: Any, name: str, gpu: Gpu, stream: int) -> GpuArray:
    """Read where an array lies on the GPU and how.

    Args:
        source: Any object with ``__dlpack__`` or ``__cuda_array_interface__``.
        name: What it is to the caller, for messages.
        gpu: The GPU it must lie on.
        stream: The ``cudaStream_t`` that will use it; the array's package lets that wait for what
            it has queued itself.

    Raises:
        ShapeError: If it has neither, or lies in other memory.
    """
    try:
        if hasattr(source, "__dlpack__") and hasattr(source, "__dlpack_device__"):
            return _read_dlpack(source, name, gpu, stream)
        if hasattr(source, "__cuda_array_interface__"):
            return _read_interface(source, name, gpu)
    except (BufferError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ShapeError(
            f"{name}: this {type(source).__name__} cannot be read where it lies ({reason}). Pass "
            "a plain array, such as x.detach() of a torch tensor."
        ) from error
    raise ShapeError(
        f"{name}: expected an array on the GPU with __dlpack__ or __cuda_array_interface__, got "
        f"{type(source).__name__}. For NumPy arrays, use infer."
    )


def _read_dlpack(source: Any, name: str, gpu: Gpu, stream: int) -> GpuArray:
    where, index = source.__dlpack_device__()
    if int(where) not in (CUDA, CUDA_MANAGED):
        raise ShapeError(f"{name}: lies in the host's memory, expected the GPU's. Use infer.")
    if index != gpu.index:
        raise ShapeError(
            f"{name}: lies on cuda:{index}, this runtime is on cuda:{gpu.index}. Move one."
        )
    capsule = source.__dlpack__(stream=stream)
    tensor = ctypes.cast(_address(capsule), ctypes.POINTER(_Tensor)).contents
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    many = f"x{tensor.lanes}" if tensor.lanes != 1 else ""
    kind = LETTERS.get(tensor.code, f"type {tensor.code} of ")
    return GpuArray(
        name=name,
        pointer=(tensor.data or 0) + tensor.byte_offset,
        dtype=f"{kind}{tensor.bits}{many}",
        shape=shape,
        contiguous=_contiguous(shape, strides, 1),
        read_only=False,  # what is, refuses to be exported without saying so
        stream=None,
        owner=(source, capsule),
    )


def _read_interface(source: Any, name: str, gpu: Gpu) -> GpuArray:
    interface = source.__cuda_array_interface__
    pointer, read_only = interface["data"]
    if not gpu.holds(pointer):
        raise ShapeError(
            f"{name}: does not lie in the memory of cuda:{gpu.index}, where this runtime is."
        )
    dtype, shape = interface["typestr"], tuple(interface["shape"])
    if interface.get("mask") is not None:
        raise ShapeError(f"{name}: a masked array, expected a plain one.")
    return GpuArray(
        name=name,
        pointer=int(pointer),
        dtype=INTERFACE_TYPES.get(dtype, dtype),
        shape=shape,
        contiguous=_contiguous(shape, interface.get("strides"), int(dtype[2:])),
        read_only=bool(read_only),
        stream=interface.get("stream"),
        owner=source,
    )


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, step: int) -> bool:
    """Whether strides, in units of ``step``, are those of an array in one piece."""
    if strides is None:
        return True
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _address(capsule: Any) -> int:
    """Return what a capsule holds; the capsule stays the owner and frees it in the end."""
    return int(_READ_CAPSULE(capsule, b"dltensor"))


_READ_CAPSULE = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
