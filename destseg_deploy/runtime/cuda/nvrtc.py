"""NVRTC through ``ctypes``: CUDA C++ to a cubin, without nvcc or a compiler on the line PC.

The library comes with CUDA, with torch, or from ``pip install nvidia-cuda-nvrtc`` (CUDA 13) or
``nvidia-cuda-nvrtc-cu12``. No driver is needed to compile.
"""

from __future__ import annotations

import ctypes
import site
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from destseg_deploy.errors import BackendError

VERSIONS = ("13", "12", "11.2")
"""What the library's file name ends with, newest first; 11.2 stands for all of CUDA 11."""

FOLDERS = ("nvidia/cu[0-9]*/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu*/bin*", "torch/lib")
"""Where packages of PyPI keep it."""

INSTALL = (
    "Install CUDA's NVRTC: pip install nvidia-cuda-nvrtc for CUDA 13, nvidia-cuda-nvrtc-cu12 for "
    "CUDA 12."
)


class Nvrtc:
    """The compiler."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take a loaded library; ``open`` finds and loads one."""
        self._library = library

    @classmethod
    def open(cls) -> Nvrtc:
        """Load the newest NVRTC of this machine.

        Raises:
            BackendError: If there is none.
        """
        for candidate in _candidates():
            try:
                _load_builtins(candidate)
                return cls(ctypes.CDLL(candidate))
            except OSError:  # not there, or for another machine: the next may do
                continue
        raise BackendError(f"NVRTC: the library is not on this machine. {INSTALL}")

    def compile(self, source: str, sm: str, options: Sequence[str] = ()) -> bytes:
        """Compile CUDA C++ for one GPU.

        Args:
            source: The whole program; what it includes must be in ``options`` as ``-I``.
            sm: Compute capability, for example ``sm_90``.
            options: Of the compiler, such as ``-DNAME=1``.

        Returns:
            The cubin.

        Raises:
            BackendError: If it does not compile, with the compiler's messages.
        """
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            source.encode(),
            b"kernel.cu",
            0,
            None,
            None,
        )
        try:
            given = [f"--gpu-architecture={sm}".encode(), *(text.encode() for text in options)]
            listed = (ctypes.c_char_p * len(given))(*given)
            code = self._library.nvrtcCompileProgram(program, len(given), listed)
            if code:
                said = self._read(program, "nvrtcGetProgramLog").rstrip(b"\0").decode().strip()
                reason = said or self._explain(code)
                raise BackendError(f"NVRTC: the kernel does not compile for {sm}: {reason}")
            return self._read(program, "nvrtcGetCUBIN")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, function: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{function}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(function, program, content)
        return content.raw

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            raise BackendError(f"NVRTC: {name} failed: {self._explain(code)}. {INSTALL}")

    def _explain(self, code: int) -> str:
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return (self._library.nvrtcGetErrorString(code) or b"error %d" % code).decode()


def package_folders() -> list[Path]:
    """Return the folders where packages of this process lie, those named by PYTHONPATH included."""
    found = (*site.getsitepackages(), site.getusersitepackages(), *filter(None, sys.path))
    return [Path(folder) for folder in dict.fromkeys(map(str, found))]


def _load_builtins(library: str) -> None:
    """Load the sibling that NVRTC needs when it compiles, where the library is in a known folder.

    NVRTC 13 asks for it by its plain name and does not look beside itself, so it is found only if
    it is on the loader's path or, as here, loaded already.

    Raises:
        OSError: If it cannot be loaded.
    """
    path = Path(library)
    if path.is_absolute():
        for pattern in ("libnvrtc-builtins.so*", "nvrtc-builtins64_*.dll"):
            for builtins in sorted(path.parent.glob(pattern)):
                ctypes.CDLL(str(builtins))


def _candidates() -> Iterator[str]:
    windows = sys.platform == "win32"
    pattern = "nvrtc64_*.dll" if windows else "libnvrtc.so*"
    for folder in package_folders():
        for where in FOLDERS:
            yield from sorted(map(str, folder.glob(f"{where}/{pattern}")), reverse=True)
    for version in VERSIONS:
        digits = version.replace(".", "")
        yield f"nvrtc64_{digits:0<3}_0.dll" if windows else f"libnvrtc.so.{version}"
