"""A GPU that PyTorch uses already: memory from torch's allocators, so that both share one pool.

torch keeps what it has once allocated; memory asked for beside it may be refused while torch holds
much unused. Its streams are not used: it hands the same 32 out again and again, and a capture would
record what others queue there. Nor are its graphs, which bring a private memory pool along.
"""

from __future__ import annotations

import torch

from destseg_deploy.errors import BackendError
from destseg_deploy.runtime.cuda.device import DriverGpu
from destseg_deploy.runtime.cuda.driver import Driver
from destseg_deploy.runtime.cuda.memory import Memory, PinnedMemory


class TorchGpu(DriverGpu):
    """See ``Gpu``."""

    binding = "torch"

    def __init__(self, index: int = 0, driver: Driver | None = None) -> None:
        """Open a GPU; see ``DriverGpu``.

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

    def _take(self, size: int) -> Memory:
        device = torch.device("cuda", self.index)
        tensor = torch.empty(size, dtype=torch.uint8, device=device)
        # torch may give what kernels on its stream still use; our streams do not wait for that one.
        torch.cuda.current_stream(device).synchronize()
        held = [tensor]  # torch frees a tensor with its last name
        return Memory(tensor.data_ptr(), size, held.clear)

    def _take_pinned(self, size: int) -> PinnedMemory:
        tensor = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        held = [tensor]
        return PinnedMemory(tensor.numpy(), held.clear)
