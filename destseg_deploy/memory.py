"""Too little memory: found in the errors of all libraries, and named as the cause.

Python and NumPy have a class for it. The others raise what they also raise for a damaged file, and
differ in their words only. Somebody who is told to export again, or to copy a file again, would
look for the fault in the wrong place.
"""

from __future__ import annotations

import errno

from destseg_deploy.errors import OutOfMemoryError

WORDS = (
    "bad_alloc",  # C++: ONNX Runtime, OpenVINO
    "bad allocation",  # the same on Windows
    "out of memory",  # CUDA, torch on a GPU, TensorRT
    "out_of_memory",
    "outofmemory",
    "can't alloc",  # torch on a CPU, OpenVINO
    "cannot allocate",  # the system, through torch and safetensors
    "failed to allocate",  # ONNX Runtime, OpenCV
    "unable to allocate",
    "insufficient memory",  # OpenCV
    "not enough memory",
)
"""Of errors, in lower case, as seen with onnxruntime 1.32, torch 2.13 and openvino 2026.4."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory was missing."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):  # its text may name a file
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return any(word in text for word in WORDS)


def refuse_shortage(error: BaseException, what: str) -> None:
    """Raise an error that says so where memory was missing; else return.

    For those who catch the errors of a library and would name another cause.

    Args:
        error: What the library raised.
        what: The file, or what else needed the memory.

    Raises:
        OutOfMemoryError: If memory was missing.
    """
    if lacks_memory(error):
        raise OutOfMemoryError(f"{what}: {shortage(error)}") from error


def shortage(error: BaseException) -> str:
    """Return a sentence that says what was missing, and what to do."""
    reason = " ".join(str(error).split())[:120] or "none is left"
    return (
        f"not enough memory ({reason}). Use smaller images or a smaller batch, close other "
        "programs, or take a machine with more."
    )
