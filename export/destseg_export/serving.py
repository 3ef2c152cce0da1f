"""How a server runs a model: the options of ``destseg export repository``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from destseg_deploy.errors import ExportError
from destseg_deploy.options import MOST_THREADS, Checked, option


@dataclass(frozen=True)
class Serving(Checked):
    """How a server runs a model."""

    error = ExportError

    server: str = option("triton", "What will serve it.", choices=("triton", "ovms"))
    model: str | None = option(
        None, "Name of the model.", metavar="NAME", unset="the artifact's, without its suffix"
    )
    device: str = option(
        "cpu",
        "Where the server runs it. gpu is NVIDIA's with Triton, and Intel's with OpenVINO Model "
        "Server.",
        choices=("cpu", "gpu"),
    )
    instances: int = option(1, "Calls that run at the same time.", between=(1, MOST_THREADS))
    delay_us: int = option(
        500,
        "Microseconds that Triton waits for more frames, to compute them in one batch.",
        between=(0, 10**7),
    )
    image: Path | None = option(
        None,
        "Frame with which Triton warms up.",
        metavar="FILE",
        unset="a test image of the training, or a drawn one",
    )
    any_size: bool = option(
        False,
        "Serve an artifact that was exported without --input-size: each client must resize as "
        "destseg does.",
    )
