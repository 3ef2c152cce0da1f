"""How an engine is built; the options of ``destseg-export`` are made from these fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from destseg_deploy.device import CUDA, Device
from destseg_deploy.errors import ExportError
from destseg_deploy.options import Checked, option
from destseg_deploy.runtime.trt.library import MODULES
from destseg_export.engine.site import AUTO, read_targets


@dataclass(frozen=True)
class BuildOptions(Checked):
    """For which GPUs an engine is built, and with what."""

    error = ExportError

    builder: str = option(
        AUTO,
        "TensorRT builds for the GPU it runs on, TensorRT-RTX also for others.",
        choices=(AUTO, *MODULES),
    )
    targets: tuple[str, ...] = option(
        (),
        "Compute capabilities to build for ahead of time, such as sm86,sm89, without a GPU; "
        "TensorRT-RTX only.",
        metavar="SM[,SM...]",
        unset="the GPU of this machine",
        name="target",
    )
    device: Device = option(CUDA, "GPU that runs the engine.", metavar="cuda[:N]", unset="cuda")
    workspace_mib: int | None = option(
        None,
        "GPU memory that the builder may plan for.",
        between=(1, 2**24),
        metavar="MiB",
        unset="all there is",
        name="workspace",
    )
    timing_cache: Path | None = option(
        None,
        "File that keeps the builder's measurements for the next build; TensorRT only.",
        metavar="FILE",
        unset="tensorrt.timing beside the engine",
    )
    refit: bool = option(
        False,
        "Build an engine that takes another category's weights: destseg-export refit.",
        name="refittable",
    )
    tf32: bool = option(
        False, "Let fp32 operators round their inputs to 10 bits of mantissa, for speed."
    )
    rebuild: bool = option(False, "Build although the same engine is there.")

    def __post_init__(self) -> None:
        """Refuse values out of range, and write the targets as ``sm_86``, sorted, each once.

        Raises:
            BackendError: If the device is none.
            ExportError: If another value is refused, or the device is not an NVIDIA GPU.
        """
        super().__post_init__()
        if self.device.kind != "cuda":
            raise ExportError(f"device '{self.device}': expected cuda or cuda:<index>.")
        object.__setattr__(self, "targets", read_targets(self.targets))

    def flags(self) -> tuple[str, ...]:
        """Return what changes the engine, sorted, for its record."""
        chosen = {
            "refit": self.refit,
            "tf32": self.tf32,
            f"workspace={self.workspace_mib}MiB": self.workspace_mib is not None,
        }
        return tuple(sorted(name for name, on in chosen.items() if on))
