"""Pretrained weights of the systems that start from some: found, downloaded, loaded.

torchvision's files are taken from torch's own cache, or downloaded once. Their names end in the
first 8 hex digits of their SHA-256, which is checked.
"""

from __future__ import annotations

from pathlib import Path

import torch

from destseg_bench.systems.system import Task
from destseg_deploy.errors import WeightsError
from destseg_deploy.files import sha256
from destseg_deploy.models.resnet import ResNet18, init_residual
from destseg_deploy.models.weights import TEACHER_FILE, fetch_pinned, read_state_dict

URL = "https://download.pytorch.org/models/"
FILES = {"resnet18": TEACHER_FILE, "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth"}
"""Purpose -> torchvision's file, ``IMAGENET1K_V1`` of each: those that the papers' codes load."""

RANDOM = "random"


def load_pretrained(network: torch.nn.Module, task: Task, name: str) -> str:
    """Fill a network with pretrained weights and say where they came from.

    Args:
        network: Filled in place.
        task: Says which weights; see ``find_weights``.
        name: One of ``FILES``.

    Returns:
        The file's name, or ``random`` if the network was left as it is.

    Raises:
        WeightsError: If the weights cannot be had, or are of another network.
    """
    path = find_weights(task, name)
    if path is None:
        return RANDOM
    fill(network, read_state_dict(path), str(path))
    return path.name


def load_resnet18(task: Task) -> tuple[ResNet18, str]:
    """Return a ResNet18, as many layers of it as the weights have, and where they came from.

    Files of a DeSTSeg teacher end at ``layer3``: the network then ends there, too. Random weights
    are drawn as torchvision draws them.

    Raises:
        WeightsError: If weights cannot be had, or are of another network.
    """
    try:
        network = ResNet18()
        init_residual(network, zero_last=False)
        return network, load_pretrained(network, task, "resnet18")
    except WeightsError:
        network = ResNet18(layers=3)
        # Raises the same error again unless layer4 alone is missing.
        return network, load_pretrained(network, task, "resnet18")


def find_weights(task: Task, name: str) -> Path | None:
    """Return the weights file for a purpose; None for random weights.

    Args:
        task: Its ``weights[name]`` is taken if given, else torchvision's file from torch's cache.
            If that is missing, ``pretrained`` downloads it.
        name: One of ``FILES``.

    Raises:
        WeightsError: If the task asks for pretrained weights and they cannot be had.
    """
    if name in task.weights:
        return task.weights[name]
    file = FILES[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    digest = path.stem.rsplit("-", 1)[-1]
    # A cached file of another content is as good as none, unless the user asks for the real one.
    intact = path.is_file() and sha256(path).startswith(digest)
    if not intact and not task.pretrained:
        return None
    if not path.is_file():
        advice = (
            "Copy the file there, or pass one of the same network by --weights NAME=FILE; "
            "--random-weights goes on without, but only times are then meaningful."
        )
        fetch_pinned(URL + file, path, digest, what="pretrained weights", advice=advice)
    elif not intact:
        raise WeightsError(
            f"{path}: its sha256 does not begin with {digest}, so it is not torchvision's file. "
            "Delete it, or pass the file you want by --weights NAME=FILE."
        )
    return path


def fill(network: torch.nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Fill a network from a state dict that has all its entries.

    Further entries are ignored, such as the classifier of a torchvision file.

    Args:
        network: Filled in place.
        state: Name -> tensor.
        origin: Where the state came from, for the error.

    Raises:
        WeightsError: If entries are missing or have another shape.
    """
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            continue  # a counter that inference does not read; old files lack it
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "missing"
            raise WeightsError(
                f"{origin}: {name} is {found}, expected {tuple(tensor.shape)}. Pass weights of "
                "this network."
            )
    network.load_state_dict({**wanted, **{n: state[n] for n in wanted if n in state}})
