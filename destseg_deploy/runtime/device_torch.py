"""A GPU that PyTorch uses already: memory from torch's allocators, so that both share one pool.

torch keeps what it has once allocated; memory asked for beside it may be refused while torch sits
on plenty. Its streams are not used: it hands the same 32 out again and again, and a capture would
record what others queue there. Nor are its graphs, which bring a private memory pool along.
"""

from __future__ import annotations

from typing import Any

import torch

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda_driver import Driver
from destseg_deploy.runtime.device import Buffer, PinnedBuffer
from destseg_deploy.runtime.device_driver import DriverDevice, Memory, PinnedMemory


class TorchDevice(DriverDevice):
    """See ``Device``."""

    binding = "torch"

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Open a GPU; see ``DriverDevice``.

        Raises:
            BackendError: If torch or the driver does not see it.
        """
        if not torch.cuda.is_available():
            raise BackendError(
                f"device 'cuda:{index}': this PyTorch ({torch.__version__}) sees no CUDA GPU. "
                "Install a CUDA build of torch, or open it with another binding."
            )
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        super().__init__(index, driver)

    def allocate(self, size: int) -> Buffer:
        """See ``Device.allocate``."""
        device = torch.device("cuda", self.index)
        with self.current():
            tensor = _take(size, lambda: torch.empty(size, dtype=torch.uint8, device=device))
        held = [tensor]
        return Memory(tensor.data_ptr(), size, held.clear)

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        """See ``Device.allocate_pinned``."""
        with self.current():
            tensor = _take(size, lambda: torch.empty(size, dtype=torch.uint8, pin_memory=True))
        held = [tensor]
        return PinnedMemory(tensor.numpy(), held.clear)


def _take(size: int, allocate: Any) -> Any:
    try:
        return allocate()
    except RuntimeError as error:  # torch.OutOfMemoryError is one, too
        reason = str(error).splitlines()[0]
        raise BackendError(
            f"CUDA: PyTorch gives no {size} bytes ({reason}). Free memory on the GPU, or use a "
            "smaller batch or fewer contexts."
        ) from error
