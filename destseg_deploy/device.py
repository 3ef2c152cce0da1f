"""A place that computes: the CPU, an NVIDIA GPU, or an Intel GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from destseg_deploy.errors import BackendError

DEVICES = {"cpu": "cpu", "cuda": "cuda, cuda:<index>", "gpu": "gpu, gpu:<index>"}
"""Kind of device -> how it is written."""

REPLACED = {
    "openvino": "backend 'openvino' (--backend openvino) and leave the device out",
    "tensorrt": "OrtOptions(tensorrt=True) and device 'cuda' (--ort-tensorrt --device cuda)",
}
"""Names that were devices until version 0.1 and are back ends -> what to pass instead."""


@dataclass(frozen=True)
class Device:
    """A place that computes.

    Attributes:
        kind: ``cpu``; ``cuda``, an NVIDIA GPU; or ``gpu``, an Intel GPU by way of OpenVINO.
        index: Which of the GPUs that the process sees, counted from 0; 0 for the CPU.
    """

    kind: str
    index: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no device.

        Raises:
            BackendError: If the kind is unknown, or the index is below 0 or given for the CPU.
        """
        if (
            not (isinstance(self.kind, str) and self.kind in DEVICES)
            or type(self.index) is not int
            or self.index < 0
            or (self.kind == "cpu" and self.index)
        ):
            raise BackendError(_unknown_device(f"{self.kind}:{self.index}"))

    @classmethod
    def parse(cls, text: str | Device) -> Device:
        """Read ``cpu``, ``cuda``, ``cuda:1``, ``gpu`` or ``gpu:1``; a ``Device`` is returned as is.

        Raises:
            BackendError: If the text names no device.
        """
        if isinstance(text, Device):
            return text
        found = re.fullmatch(r"(cpu|cuda|gpu)(?::(\d{1,4}))?", str(text), re.ASCII)
        if found is None or text.startswith("cpu:"):
            raise BackendError(_unknown_device(text))
        return cls(found[1], int(found[2] or 0))

    def __str__(self) -> str:
        """Return how a user writes it, such as ``cpu`` or ``cuda:0``."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


CPU = Device("cpu")
CUDA = Device("cuda")


def _unknown_device(text: str) -> str:
    replacement = REPLACED.get(str(text).partition(":")[0])
    if replacement is not None:
        return f"device {text!r}: this names a back end. Pass {replacement}."
    return (
        f"device {text!r}: expected {', '.join(DEVICES.values())}. An NVIDIA GPU is 'cuda', "
        "OpenVINO's Intel GPU is 'gpu'."
    )
