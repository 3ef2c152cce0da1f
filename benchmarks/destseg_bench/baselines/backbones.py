"""Pretrained ResNet18 for the systems that start from one."""

from __future__ import annotations

import torch

from destseg_bench.baselines.system import Task
from destseg_deploy.errors import WeightsError
from destseg_deploy.models.resnet import ResNet18
from destseg_deploy.models.weights import read_state_dict, torchvision_teacher

RANDOM = "random"


def load_resnet18(network: ResNet18, task: Task) -> str:
    """Fill a ResNet18 with ImageNet's weights and say where they came from.

    Args:
        network: Filled in place, as many layers as it has.
        task: Its ``weights["resnet18"]`` is used where given, else torchvision's cached or
            downloaded file; where neither can be had and ``pretrained`` is off, the random weights
            stay.

    Returns:
        The file's name, or ``random``.

    Raises:
        WeightsError: If the weights cannot be had, or are of another network.
    """
    try:
        path = task.weights.get("resnet18") or torchvision_teacher()
    except WeightsError:
        if task.pretrained:
            raise
        return RANDOM
    fill(network, read_state_dict(path), str(path))
    return path.name


def fill(network: torch.nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Fill a network with the entries of a state dict that it has, and refuse if any is missing.

    Entries that the network lacks are left out, such as the classifier of a torchvision file.

    Raises:
        WeightsError: If entries are missing or have another shape.
    """
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise WeightsError(
                f"{origin}: {name} is {found}, expected {tuple(tensor.shape)}. Pass weights of "
                "this network."
            )
    network.load_state_dict({**wanted, **{n: state[n] for n in wanted if n in state}})
