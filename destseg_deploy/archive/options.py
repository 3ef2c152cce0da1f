"""What may be chosen about an archive; the options of the command are made from it."""

from __future__ import annotations

from dataclasses import dataclass

from destseg_deploy.cluster.place import Place
from destseg_deploy.errors import BackendError
from destseg_deploy.options import option


@dataclass(frozen=True)
class ArchiveOptions(Place):
    """Where an archive is scored, and what is kept of each image.

    Attributes:
        on: As in ``Place``.
        workers: Processes on Ray; 0 for as many as fill the cluster.
        maps: Longer side, in pixels, of the map that is kept of each image; None for no maps.
    """

    workers: int = option(
        0,
        "Processes on Ray. Each has a predictor of its own.",
        between=(0, 65_536),
        unset="one for each GPU, or for each 4 CPUs",
    )
    maps: int | None = option(
        None,
        "Keep the map of each image as a 16-bit PNG, its longer side reduced to this many pixels.",
        between=(1, 65_536),
        metavar="SIDE",
        unset="no maps",
    )

    def __post_init__(self) -> None:
        """Refuse workers where there are none.

        Raises:
            BackendError: With the value, and what was expected.
        """
        super().__post_init__()
        if self.workers and self.here:
            raise BackendError(
                f"workers {self.workers}: they are processes on Ray, and this runs here. Pass "
                "--on ray, too, or drop --workers."
            )
