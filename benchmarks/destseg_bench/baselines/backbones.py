"""Pretrained backbones for the systems that start from one."""

from __future__ import annotations

from pathlib import Path

import torch

from destseg_bench.baselines.pinned import pinned_file
from destseg_bench.baselines.system import Task
from destseg_deploy.errors import WeightsError
from destseg_deploy.models.resnet import ResNet18
from destseg_deploy.models.weights import TEACHER_FILE, read_state_dict

RANDOM = "random"


def load_resnet18(network: ResNet18, task: Task) -> str:
    """Fill a ResNet18, as many layers as it has, by ``load_pretrained``."""
    return load_pretrained(network, task, "resnet18", TEACHER_FILE)


def load_pretrained(network: torch.nn.Module, task: Task, name: str, file: str) -> str:
    """Fill a network with torchvision's weights and say where they came from.

    Args:
        network: Filled in place.
        task: Its ``weights[name]`` is used where given, else torchvision's cached file. Where there
            is none, ``pretrained`` downloads it; else the random weights stay.
        name: What the weights are for.
        file: torchvision's name of the file, which pins it.

    Returns:
        The file's name, or ``random``.

    Raises:
        WeightsError: If the weights cannot be had, or are of another network.
    """
    path = find_weights(task, name, file)
    if path is None:
        return RANDOM
    fill(network, read_state_dict(path), str(path))
    return path.name


def find_weights(task: Task, name: str, file: str) -> Path | None:
    """Return the file that ``load_pretrained`` takes; None for random weights.

    Raises:
        WeightsError: If the task asks for pretrained weights and they cannot be had.
    """
    if name in task.weights:
        return task.weights[name]
    try:
        return pinned_file(file, download=task.pretrained)
    except WeightsError:
        if task.pretrained:
            raise
        return None


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
