"""Parameters and multiply-accumulates of a system, counted while it runs."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from destseg_bench.baselines.system import System


def count_parameters(system: System) -> int:
    """Return the parameters of the networks that inference runs."""
    return sum(p.numel() for module in system.modules() for p in module.parameters())


@torch.no_grad()
def count_macs(system: System, device: torch.device) -> int:
    """Return the multiply-accumulates of an image's convolutions and matrix products.

    Those of ``network`` alone: a search through a memory bank is not among them.
    """
    images = torch.zeros(1, 3, *system.size, device=device)
    with FlopCounterMode(display=False) as counter:
        system.network(images)
    return int(counter.get_total_flops()) // 2
