"""Opens a compared system by its name; its module is imported only then."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch

from destseg_bench.systems.system import System, Task
from destseg_deploy.errors import BackendError

SYSTEMS = {
    "stpm": ("stpm", "Stpm"),
    "draem": ("draem.system", "Draem"),
    "patchcore": ("patchcore.system", "PatchCore"),
    "patchcore-resnet18": ("patchcore.system", "PatchCoreResNet18"),
    "dsr": ("dsr.system", "Dsr"),
    "cutpaste": ("cutpaste.system", "CutPaste"),
    "uninformed-students": ("uninformed_students.system", "UninformedStudents"),
    "destseg-reference": ("destseg", "DestsegReference"),
    "destseg": ("destseg", "Destseg"),
}
"""Name -> the module in this folder, and its class, which takes a task."""


def open_system(name: str, task: Task) -> System:
    """Make a system with fresh weights, in eval mode.

    Args:
        name: One of ``SYSTEMS``.
        task: What it is for.

    Raises:
        BackendError: If there is no such system.
        WeightsError: If pretrained weights are asked for and cannot be had.
        DataError: If an image cannot be read.
    """
    check_systems([name])
    torch.manual_seed(task.seed)
    module, cls = SYSTEMS[name]
    system: System = getattr(import_module(f"destseg_bench.systems.{module}"), cls)(task)
    return system


def check_systems(names: Sequence[str]) -> None:
    """Refuse unknown systems and repeated ones, before anything costs time.

    Raises:
        BackendError: If a name is unknown or given twice, or no name is given.
    """
    if not names:
        raise BackendError(f"no system. Expected some of {', '.join(SYSTEMS)}.")
    for i, name in enumerate(names):
        if name not in SYSTEMS:
            raise BackendError(f"system {name!r}: expected one of {', '.join(SYSTEMS)}.")
        if name in names[:i]:
            raise BackendError(f"system {name!r}: given twice. Name each once.")
