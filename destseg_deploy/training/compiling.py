"""torch.compile for the networks, tried before the training begins."""

from __future__ import annotations

import torch

from destseg_deploy.errors import BackendError
from destseg_deploy.models.destseg import DeSTSeg


def compile_networks(net: DeSTSeg, device: torch.device) -> None:
    """Compile teacher, student and segmentation network in place; parameters keep their names.

    Raises:
        BackendError: If this machine cannot compile.
    """
    require_compiler(device)
    for part in (net.teacher_net, net.student_net, net.segmentation_net):
        part.compile()


def require_compiler(device: torch.device) -> None:
    """Compile a trifle, to find out before hours of work whether this machine can.

    Raises:
        BackendError: If it cannot.
    """
    probe = torch.compile(lambda x: torch.relu(x) + 1, fullgraph=True)
    try:
        probe(torch.zeros(8, device=device))
    except Exception as error:  # the compiler raises of many kinds
        paragraph = str(error).strip().split("\n\n")[0]  # advice on torch's debugging follows
        reason = " ".join(paragraph.split())[:160] or type(error).__name__
        raise BackendError(
            f"torch.compile does not work here ({reason}). Install a C++ compiler (CPU) or Triton "
            "(GPU), or leave out --compile."
        ) from error
