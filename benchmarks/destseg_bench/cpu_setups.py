"""The ways to run DeSTSeg on a CPU that are compared: a file, a back end, a precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.base import Runtime
from destseg_deploy.runtime.openvino_runtime import OpenVinoRuntime
from destseg_deploy.runtime.ort import OrtRuntime
from destseg_deploy.spec import ModelSpec

if TYPE_CHECKING:
    from destseg_bench.contenders import Contender
    from destseg_bench.timing import Call

BACK_ENDS = ("pytorch", "compiled", "onnxruntime", "openvino", "openvino-bf16")
OPENVINO_ALONE = ".xml"
"""Suffix of what no other back end opens."""


@dataclass(frozen=True)
class Setup:
    """One way.

    Attributes:
        artifact: The file.
        back_end: One of ``BACK_ENDS``.
        note: What tells the file from others, such as ``plain`` or ``fused``.
    """

    artifact: Path
    back_end: str
    note: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.back_end}, {self.note}"


def list_setups(
    checkpoint: Path, plain: Path, fused: Path, int8: Sequence[Path], *, compiled: bool
) -> list[Setup]:
    """Return what is compared; PyTorch eager first, then what users have, then ours.

    Args:
        checkpoint: ``.safetensors``.
        plain: The export without fusions.
        fused: The same with them.
        int8: INT8 artifacts made from it; those in OpenVINO's format meet OpenVINO alone.
        compiled: Include torch.compile.
    """
    torch = ["pytorch", "compiled"] if compiled else ["pytorch"]
    found = [Setup(checkpoint, back_end, "fp32") for back_end in torch]
    for back_end in ("onnxruntime", "openvino", "openvino-bf16"):
        found += [Setup(plain, back_end, "plain"), Setup(fused, back_end, "fused")]
        opened = [p for p in int8 if back_end != "onnxruntime" or p.suffix != OPENVINO_ALONE]
        found += [Setup(path, back_end, path.stem) for path in opened]
    return found


def open_setup(setup: Setup, threads: int = 0) -> Runtime:
    """Open a setup as a runtime; torch.compile is timed by ``contender`` alone.

    Raises:
        BackendError: If the back end is not there.
        SpecError: If the artifact's spec is missing or belongs to another file.
    """
    if setup.back_end == "pytorch":
        from destseg_deploy.runtime.pytorch import PyTorchRuntime

        return PyTorchRuntime.open(setup.artifact)
    if setup.back_end == "onnxruntime":
        return OrtRuntime(setup.artifact, threads=threads)
    precision = {"openvino": "fp32", "openvino-bf16": "bf16"}.get(setup.back_end)
    if precision is None:
        raise BackendError(f"{setup.back_end}: no runtime of its own.")
    return OpenVinoRuntime(setup.artifact, threads=threads, precision=precision)


def contender(setup: Setup, threads: int = 0) -> Contender:
    """Return a setup for ``measure_latency``."""
    from destseg_bench.contenders import Contender  # loads torch, which a cold start must not

    spec = ModelSpec.read(setup.artifact)
    if setup.back_end == "compiled":
        from destseg_bench.torch_contenders import Mode, open_torch

        mode = Mode("compiled fp32", "fp32", kind="compiled")
        opened = partial(open_torch, setup.artifact, mode, "cpu")
        return Contender(setup.name, "fp32", "host", spec.network_size, opened)
    return Contender(
        setup.name, spec.precision, "host", spec.size, partial(_opened, setup, threads)
    )


@contextmanager
def _opened(setup: Setup, threads: int, frames: NDArray[np.uint8]) -> Iterator[Call]:
    runtime = open_setup(setup, threads)
    try:
        yield lambda: runtime.infer(frames)
    finally:
        runtime.close()
