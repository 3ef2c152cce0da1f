"""Where and in which precision to train: device, autocast, loss scaling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from destseg_deploy.errors import BackendError
from destseg_deploy.recipe import check_option

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` takes CUDA where it is there.

    Raises:
        BackendError: If CUDA was asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(
            f"device {name!r}: this PyTorch ({torch.__version__}) sees no CUDA GPU. Use --device "
            "cpu, or install the driver and a CUDA build of torch."
        )
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """Return ``fp32``, ``bf16`` or ``fp16``; ``auto`` takes the fast one that the device computes.

    That is bf16 on CPUs with its instructions and on GPUs from compute capability 8.0, fp16 on
    older GPUs, and fp32 on other CPUs, where halves are slower.

    Raises:
        TrainingError: If the name is unknown.
    """
    check_option(name in PRECISIONS, "precision", name, ", ".join(PRECISIONS))
    if name != "auto":
        return name
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


@contextmanager
def tuned_convolutions(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its kernels and keep the fastest: the shapes of a training do not change."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Precision:
    """Autocast for the forward pass; for fp16 also the loss scaling that saves small gradients."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Set up for ``fp32``, ``bf16`` or ``fp16``."""
        self.name = name
        self._device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """Return the context of the forward pass; it does nothing in fp32."""
        enabled = self.name != "fp32"
        kind = _TYPES[self.name] if enabled else None
        return torch.autocast(self._device.type, kind, enabled=enabled)
