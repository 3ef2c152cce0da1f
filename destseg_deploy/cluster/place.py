"""Where a command runs: in its own process, or on a Ray cluster. The one definition of ``--on``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from destseg_deploy.device import Device
from destseg_deploy.errors import BackendError
from destseg_deploy.options import Checked, option

HERE, LOCAL, RUNNING = "here", "ray", "ray://auto"
CLUSTER = re.compile(r"ray://([^/\s:]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")


@dataclass(frozen=True)
class Place(Checked):
    """Where something runs.

    Attributes:
        on: ``here``, in this process; ``ray``, a Ray cluster on this machine that lives as long as
            the command; ``ray://auto``, the one that was started here with ``ray start``; or
            ``ray://HOST:PORT``, the Ray client port of a cluster.
    """

    on: str = option(
        HERE,
        "Where to run: this process, a Ray cluster of this machine, the one that 'ray start' "
        "started here (ray://auto), or another one.",
        metavar="here|ray|ray://HOST:PORT",
    )

    def __post_init__(self) -> None:
        """Refuse what names no place.

        Raises:
            BackendError: With the value, and what was expected.
        """
        super().__post_init__()
        found = CLUSTER.fullmatch(self.on)
        port = int(found[2]) if found else 1
        if (self.on not in (HERE, LOCAL, RUNNING) and found is None) or not 0 < port < 65536:
            raise BackendError(
                f"on {self.on!r}: expected here, ray, ray://auto or ray://HOST:PORT, such as "
                "ray://10.0.0.5:10001."
            )

    @property
    def here(self) -> bool:
        """Whether it is this process."""
        return self.on == HERE


def takes_gpu(device: Device) -> bool:
    """Tell whether a worker needs a GPU for a device.

    Raises:
        BackendError: If Ray cannot give what the device names.
    """
    if device.kind == "gpu" or device.index:
        raise BackendError(
            f"device '{device}': Ray gives each worker its GPU, and knows NVIDIA's only. Pass "
            "'cuda' or 'cpu'."
        )
    return device.kind == "cuda"


def refuse_lack(gpus: float) -> None:
    """Refuse to run on a GPU where a cluster has none.

    Raises:
        BackendError: If it has less than one.
    """
    if gpus < 1:
        raise BackendError(
            "device 'cuda': the cluster has no GPU that is free for Ray. Start Ray on a "
            "machine with one, or pass --device cpu (to predict, with an artifact that runs there)."
        )
