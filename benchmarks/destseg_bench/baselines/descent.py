"""One step of an optimizer down a loss, as every trained system does it."""

from __future__ import annotations

import torch
from torch import Tensor


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Step down a loss and return it, detached and not waited for.

    Args:
        optimizer: Of the parameters that learn; their old gradients are dropped.
        loss: A scalar.
    """
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    return loss.detach()
