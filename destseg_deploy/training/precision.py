"""What a training computes with: device, precision, CPU threads, ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from destseg_deploy.errors import BackendError
from destseg_deploy.memory import refuse_shortage
from destseg_deploy.models.destseg import DeSTSeg
from destseg_deploy.runtime.torch_runtime import exact_products
from destseg_deploy.training.recipe import PRECISIONS, check_option

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` takes CUDA where PyTorch sees a GPU.

    Raises:
        BackendError: If CUDA is asked for and PyTorch sees no GPU.
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
    """Return ``fp32``, ``bf16`` or ``fp16``; ``auto`` takes the fastest that the device computes.

    That is bf16 on CPUs with its instructions and on GPUs from compute capability 8.0, fp16 on
    older GPUs, and fp32 on other CPUs, where half precisions are slower.

    Raises:
        TrainingError: If the name is unknown.
    """
    check_option(name in PRECISIONS, "precision", name, ", ".join(PRECISIONS))
    if name != "auto":
        return name
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


class Precision:
    """Autocast for the forward pass, and for fp16 the loss scaling.

    fp16 rounds gradients below 6e-8 to zero. Scaling multiplies the loss, and so every gradient, by
    a large factor; the optimiser's step divides by it.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Set up ``fp32``, ``bf16`` or ``fp16`` on a device."""
        self.name = name
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """Return the context of the forward pass; it does nothing in fp32."""
        enabled = self.name != "fp32"
        kind = _TYPES[self.name] if enabled else None
        return torch.autocast(self.device.type, kind, enabled=enabled)


def pick_threads(count: int) -> int:
    """Return the number of threads that was asked for; for 0, PyTorch's in this process."""
    return count or torch.get_num_threads()


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Compute with a number of CPU threads; 0 changes nothing.

    Sums are split among them, so another number changes their last bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def tuned_convolutions(device: torch.device) -> Iterator[None]:
    """Let a GPU's cuDNN measure its kernels and keep the fastest, and products be float32.

    Measuring pays because the shapes never change during a training. Convolutions may round to
    TF32, matrix products never, as PyTorch has it by itself. Afterwards the settings of the host
    program are restored. On a CPU, nothing is changed.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with exact_products():
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def compile_networks(net: DeSTSeg, device: torch.device) -> None:
    """Compile teacher, student and segmentation network in place; parameters keep their names.

    Raises:
        BackendError: If this machine cannot compile.
    """
    require_compiler(device)
    for part in (net.teacher_net, net.student_net, net.segmentation_net):
        part.compile()


def require_compiler(device: torch.device) -> None:
    """Compile a tiny function. torch compiles at the first step, so its own error comes too late.

    Raises:
        BackendError: If this machine cannot compile.
    """
    probe = torch.compile(lambda x: torch.relu(x) + 1, fullgraph=True)
    try:
        probe(torch.zeros(8, device=device))
    except Exception as error:  # the compiler raises exceptions of many types
        refuse_shortage(error, "torch.compile")
        # The first paragraph is the reason; the others are advice on debugging torch.
        paragraph = str(error).strip().split("\n\n")[0]
        reason = " ".join(paragraph.split())[:160] or type(error).__name__
        raise BackendError(
            f"torch.compile does not work here ({reason}). Install a C++ compiler (CPU) or Triton "
            "(GPU), or leave out --compile."
        ) from error
