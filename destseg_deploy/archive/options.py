"""What may be chosen about an archive; the options of the command are made from it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from destseg_deploy.errors import BackendError
from destseg_deploy.options import Checked, option

HERE, LOCAL, RUNNING = "here", "ray", "ray://auto"
CLUSTER = re.compile(r"ray://([^/\s:]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")


@dataclass(frozen=True)
class ArchiveOptions(Checked):
    """Where an archive is scored, and what is kept of each image.

    Attributes:
        on: ``here``, in this process; ``ray``, a Ray cluster on this machine that lives as long as
            the command; ``ray://auto``, the one that was started here with ``ray start``; or
            ``ray://HOST:PORT``, the Ray client port of a cluster.
        workers: Processes on Ray; 0 for as many as fill the cluster.
        maps: Longer side, in pixels, of the map that is kept of each image; None for no maps.
    """

    on: str = option(
        HERE,
        "Where to run: this process, a Ray cluster of this machine, the one that 'ray start' "
        "started here (ray://auto), or another one.",
        metavar="here|ray|ray://HOST:PORT",
    )
    workers: int = option(
        0,
        "Processes on Ray. Each has a predictor of its own.",
        least=0,
        unset="one for each GPU, or for each 4 CPUs",
    )
    maps: int | None = option(
        None,
        "Keep the map of each image as a 16-bit PNG, its longer side reduced to this many pixels.",
        least=1,
        metavar="SIDE",
        unset="no maps",
    )

    def __post_init__(self) -> None:
        """Refuse what names no place, and workers where there are none.

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
        if self.workers and self.on == HERE:
            raise BackendError(
                f"workers {self.workers}: they are processes on Ray, and this runs here. Pass "
                "--on ray, too, or drop --workers."
            )
