"""CUDA kernels that run on the host, for ``FakeDevice``: their own source, compiled by g++."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fakes.device import Grid, HostKernel

HERE = Path(__file__).parent


class HostCompiler:
    """Compiles for ``FakeDevice(compiler=...)``; arguments are checked against the signature."""

    def __init__(
        self, folder: Path, options: Sequence[str] = (), change: tuple[str, str] = ("", "")
    ) -> None:
        """Keep libraries in a folder, each to be built once.

        Args:
            folder: Where they are kept.
            options: Further ones for g++.
            change: What to replace in the source, to see a test fail.
        """
        self._folder, self._options, self._change = folder, tuple(options), change

    def __call__(self, source: str, name: str, options: Sequence[str]) -> HostKernel:
        """See ``Compiler``."""
        old, new = self._change
        assert old in source, f"the source has no {old!r}"
        source = source.replace(old, new) if old else source
        options = (*options, *self._options)
        key = hashlib.sha256(repr((source, options)).encode()).hexdigest()[:16]
        library = self._folder / key / "kernel.so"
        if not library.exists():
            build(source, options, library.parent)
        return _function(ctypes.CDLL(str(library)), name)


def _function(library: ctypes.CDLL, name: str) -> HostKernel:
    launch = getattr(library, f"launch_{name}")
    numbers = (ctypes.c_int * 64)()
    sizes = list(numbers[: getattr(library, f"signature_{name}")(numbers)])

    def run(grid: Grid, block: Grid, arguments: Sequence[Any]) -> None:
        assert [ctypes.sizeof(argument) for argument in arguments] == sizes
        geometry = (ctypes.c_uint * 6)(*grid, *block)
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        assert launch(geometry, addresses) == 0, "threads part at a barrier"

    return run


def build(source: str, options: Sequence[str], folder: Path) -> None:
    """Compile CUDA source as host code that exports ``launch_`` and ``signature_`` of kernels."""
    folder.mkdir(parents=True)
    (folder / "kernel.cu").write_text(source)
    names = re.findall(r"__global__ void (\w+)", source)
    exports = "".join(f"EXPORT_KERNEL({name})\n" for name in names)
    shim = f'#include "{HERE}/host_kernel.h"\n#include "kernel.cu"\n{exports}'
    (folder / "shim.cpp").write_text(shim)
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [*command, *options, "shim.cpp", "-o", "kernel.so"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
