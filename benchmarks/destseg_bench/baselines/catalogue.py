"""Opens a compared system by its name; each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch

from destseg_bench.baselines.system import System, Task
from destseg_deploy.errors import BackendError

OPENERS = {
    "stpm": "stpm:open_system",
    "draem": "draem:open_system",
    "patchcore": "patchcore:open_system",
    "patchcore-resnet18": "patchcore:open_resnet18",
    "dsr": "dsr:open_system",
    "cutpaste": "cutpaste:open_system",
    "uninformed-students": "uninformed_students:open_system",
    "destseg-reference": "destseg:open_reference",
    "destseg": "destseg:open_ours",
}
"""Name -> the module here and its function that makes the system for a task."""


def open_system(name: str, task: Task) -> System:
    """Make a system with fresh weights, in eval mode.

    Args:
        name: One of ``OPENERS``.
        task: What it is for.

    Raises:
        BackendError: If there is no such system.
        WeightsError: If pretrained weights are asked for and cannot be had.
        DataError: If an image cannot be read.
    """
    check_systems([name])
    torch.manual_seed(task.seed)
    module, function = OPENERS[name].split(":")
    system: System = getattr(import_module(f"destseg_bench.baselines.{module}"), function)(task)
    return system


def check_systems(names: Sequence[str]) -> None:
    """Refuse unknown systems and repeated ones.

    Raises:
        BackendError: If a name is unknown or there twice, or there is none.
    """
    if not names:
        raise BackendError(f"no system. Expected some of {', '.join(OPENERS)}.")
    for i, name in enumerate(names):
        if name not in OPENERS:
            raise BackendError(f"system {name!r}: expected one of {', '.join(OPENERS)}.")
        if name in names[:i]:
            raise BackendError(f"system {name!r}: given twice. Name each once.")
